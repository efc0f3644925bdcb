"""What a run leaves in its folder while it goes on: checkpoint, logs, pictures; and how it is taken up again."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tvp.sdk.errors import DataError, RequestError

from .files import write_whole
from .prompt import Prompt

log = logging.getLogger("tvp.trainer")

CHECKPOINT, LOG, CURVES, LOCK = "checkpoint.pt", "log.jsonl", "curves.png", ".lock"


@dataclass
class Progress:
    """All that changes while a prompt is trained: with it a run goes on as if it had never stopped.

    values: what is learned (`Frame.values`); update, scale, n_good: state of the update and of the loss scaling.
    steps, validations: what the log says, a dictionary each.
    best: the best validation accuracy so far; best_values: the values that had it; stale: validations since.
    """

    step: int = 0
    values: list[Tensor] = field(default_factory=list)
    update: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    n_good: int = 0
    steps: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)
    best: float = -1.0
    best_values: list[Tensor] = field(default_factory=list)
    stale: int = 0


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it; raises RequestError where one is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)  # which ends with the process, however that ends
    try:
        lock.acquire()
    except Timeout as error:
        raise RequestError(
            f"Another run is writing to {folder}. Choose another folder, or wait for it. "
            f"Where there is none, delete {folder / LOCK}."
        ) from error
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked, so that a second run there would not be noticed: %s", folder, error)
    try:
        yield
    finally:
        lock.release()


def save_checkpoint(folder: Path, identity: dict[str, Any], progress: Progress) -> None:
    buffer = io.BytesIO()
    torch.save({"identity": json.dumps(identity), **vars(progress)}, buffer)
    write_whole(folder / CHECKPOINT, buffer.getvalue())


def load_checkpoint(folder: Path, identity: dict[str, Any], device: torch.device | str) -> Progress | None:
    """The progress that a folder holds; None where it holds none.

    Raises DataError for a damaged checkpoint, RequestError for one of another configuration, of other
    weights or of other data.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location=device)
        theirs = json.loads(state.pop("identity"))
        progress = Progress(**state)
        complete = progress.step > 0 and progress.values
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise DataError(f"The checkpoint {path} is damaged: {error}. Start anew with --restart.") from error
    if not complete:
        raise DataError(f"The checkpoint {path} is damaged: it holds no step. Start anew with --restart.")
    mine = json.loads(json.dumps(identity))
    changed = [
        f"{key}: {theirs.get(part, {}).get(key)!r} there, {mine[part][key]!r} now"
        for part in mine
        for key in mine[part]
        if mine[part][key] != theirs.get(part, {}).get(key)
    ]
    if changed:
        raise RequestError(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}). "
            "Choose another folder, or start anew with --restart."
        )
    return progress


class Logs:
    """log.jsonl, a line a step or validation, and the same for TensorBoard where it is wanted.

    A line is one dictionary; a validation's has `accuracy`.
    """

    def __init__(self, folder: Path, progress: Progress, tensorboard: bool) -> None:
        # Written anew, since a run that was killed may have logged more than its checkpoint remembers.
        lines = sorted([*progress.steps, *progress.validations], key=lambda line: line["step"])
        self._path = folder / LOG
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._board = _board(folder, progress.step) if tensorboard else None

    def add(self, line: dict[str, float]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            kind = "validation" if "accuracy" in line else "train"
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(f"{kind}/{name}", value, int(line["step"]))

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RequestError("TensorBoard logs need its package: pip install tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def draw_curves(path: Path, steps: Sequence[dict[str, float]], validations: Sequence[dict[str, float]]) -> None:
    """Write a PNG with a curve for each part of the loss, and one of the validation accuracy."""
    from matplotlib.figure import Figure

    names = [name for name in steps[0] if name not in ("step", "seconds", "rate")] if steps else []
    figure = Figure(figsize=(4 * (len(names) + 1), 3), layout="constrained")
    all_axes = figure.subplots(1, len(names) + 1, squeeze=False)[0]
    for axes, name in zip(all_axes, names, strict=False):
        axes.plot([line["step"] for line in steps], [line[name] for line in steps], linewidth=0.8)
        axes.set(title=name, xlabel="step")
    all_axes[-1].plot([v["step"] for v in validations], [100 * v["accuracy"] for v in validations], marker="o")
    all_axes[-1].set(title="validation accuracy, %", xlabel="step")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_whole(path, buffer.getvalue())


def save_pictures(folder: Path, prompt: Prompt, progress: Progress) -> None:
    """Write curves.png, and the frame as it looks now under frames/."""
    draw_curves(folder / CURVES, progress.steps, progress.validations)
    (folder / "frames").mkdir(exist_ok=True)
    buffer = io.BytesIO()
    prompt.picture().save(buffer, format="PNG")
    write_whole(folder / "frames" / f"{progress.step:06d}.png", buffer.getvalue())
