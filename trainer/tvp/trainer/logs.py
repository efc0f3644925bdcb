"""What a run shows while it goes on: log lines, TensorBoard, curves and pictures of the frame."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvp.sdk.errors import RequestError
from tvp.sdk.formats import strict_json
from tvp.sdk.formats.disk import room_for

from .files import write_whole
from .prompt import Prompt

LOG, CURVES, FRAMES, TENSORBOARD = "log.jsonl", "curves.png", "frames", "tensorboard"
Line = dict[str, float]
NO_LOSS = ("step", "seconds", "rate")  # what a step's line holds besides the parts of the loss


class Logs:
    """The file log.jsonl and, where it is wanted, the same for TensorBoard.

    A line is one step or one validation; a validation's has `accuracy` or `distance`.

    Args:
        folder: the run's.
        lines: what the run has logged so far, when it is resumed. The file is written anew with these, since a run
            that was killed may have logged more than its checkpoint remembers.
        step: steps done so far.
        tensorboard: write the folder tensorboard/ too.

    Raises:
        RequestError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, lines: Sequence[Line], step: int, tensorboard: bool) -> None:
        self._path = folder / LOG
        ordered = sorted(lines, key=lambda line: line["step"])
        write_whole(self._path, "".join(strict_json.dumps(line) + "\n" for line in ordered).encode())
        self._board = _board(folder / TENSORBOARD, step) if tensorboard else None

    def add(self, line: Line) -> None:
        with room_for(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(strict_json.dumps(line) + "\n")
        if self._board is not None:
            kind = "train" if "seconds" in line else "validation"
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
    return SummaryWriter(str(folder), purge_step=step + 1)


def draw_curves(path: Path, steps: Sequence[Line], validations: Sequence[Line]) -> None:
    """Write a PNG with a curve for each part of the loss, and one for the validation accuracy or distance."""
    from matplotlib.figure import Figure

    names = [name for name in steps[0] if name not in NO_LOSS] if steps else []
    figure = Figure(figsize=(4 * (len(names) + 1), 3), layout="constrained")
    all_axes = figure.subplots(1, len(names) + 1, squeeze=False)[0]
    for axes, name in zip(all_axes, names, strict=False):
        axes.plot([line["step"] for line in steps], [line[name] for line in steps], linewidth=0.8)
        axes.set(title=name, xlabel="step")
    measured = next(name for name in validations[-1] if name != "step") if validations else "accuracy"
    all_axes[-1].plot([v["step"] for v in validations], [100 * v[measured] for v in validations], marker="o")
    all_axes[-1].set(title=f"validation {measured}, %", xlabel="step")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_whole(path, buffer.getvalue())


def save_frame(folder: Path, prompt: Prompt, step: int) -> None:
    """Write the frame as it looks after a step, under frames/."""
    picture = prompt.picture()
    if picture is None:
        return
    (folder / FRAMES).mkdir(exist_ok=True)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_whole(folder / FRAMES / f"{step:06d}.png", buffer.getvalue())
