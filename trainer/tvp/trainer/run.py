"""One training run and its folder: the lock, the checkpoint, the logs, and how the run is resumed."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tvp.sdk.errors import DataError, RequestError

from .config import RENAMED, TrainConfig, to_toml
from .files import write_whole
from .learned import Learned
from .logs import CURVES, NO_LOSS, Line, Logs, draw_curves, save_frame
from .progress import say
from .prompt import Prompt
from .step import Objective
from .team import Team
from .tensor_files import load_tensors
from .update import Update
from .validation import score_of

log = logging.getLogger("tvp.trainer")

CHECKPOINT, LOCK = "checkpoint.pt", ".lock"
PROMPT, REJECTED = "prompt.safetensors", "rejected.safetensors"


@dataclass
class Progress:
    """All that changes during training. A run that starts from it ends as if it had never stopped.

    Attributes:
        step: steps done.
        values: the learned values, `Learned.values`.
        moments: state of the update rule of each group of values.
        scale, n_good: state of the loss scaling, see `Objective`.
        steps, validations: the lines of the log.
        best: the score of the best validation so far, see `score_of`.
        best_values: the learned values that reached it.
        stale: validations since then.
    """

    step: int = 0
    values: list[Tensor] = field(default_factory=list)
    moments: list[Any] = field(default_factory=list)
    scale: float = 1.0
    n_good: int = 0
    steps: list[Line] = field(default_factory=list)
    validations: list[Line] = field(default_factory=list)
    best: float = -math.inf
    best_values: list[Tensor] = field(default_factory=list)
    stale: int = 0


class Run:
    """A run's folder, and what has been done so far.

    Only the leading process of a team writes files; every process may call every method.

    Args:
        folder: where the run writes; made by `opened`.
        team: the processes that train together.
        tensorboard: log for TensorBoard too.

    Raises:
        RequestError: the folder is a task bundle, or a file.
    """

    def __init__(self, folder: str | Path, team: Team, tensorboard: bool = False) -> None:
        self.folder, self._team, self._tensorboard = Path(folder), team, tensorboard
        self.progress = Progress()
        self._logs: Logs | None = None
        self._n_kept = 0  # steps done when the checkpoint was written
        if self.folder.exists() and not self.folder.is_dir():
            raise RequestError(f"{self.folder} is a file. Name a folder for the run.")
        if (self.folder / "manifest.json").exists():  # the run's prompt.png would replace the bundle's
            raise RequestError(f"{self.folder} is a task bundle. Choose another folder for the run.")

    def refuse_other(self, config: TrainConfig, resume: bool) -> None:
        """Refuse, before models are loaded, what `opened` and `begin` would refuse after it.

        Args:
            config: of the run.
            resume: as of `begin`.

        Raises:
            RequestError: another run is writing here, or the checkpoint is of another configuration.
        """
        files = [self.folder / name for name in (CHECKPOINT, LOCK)]
        if not self._team.leads or not any(file.exists() for file in files):
            return
        with claimed(self.folder):
            if not resume or not files[0].exists():
                return
            try:
                theirs = _in_todays_names(json.loads(load_tensors(files[0])["identity"]))
            except Exception:  # `load_checkpoint` says how it is damaged
                return
        if all(isinstance(part, dict) for part in theirs.values()):
            _refuse_changed(self.folder, _changes(theirs, json.loads(json.dumps({"config": asdict(config)}))))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, and keep other runs out of it.

        Raises:
            RequestError: another run is writing here.
        """
        with claimed(self.folder) if self._team.leads else nullcontext():
            try:
                yield
            except KeyboardInterrupt as error:
                error.add_note(self._farewell())
                raise
            finally:
                if self._logs:
                    self._logs.close()

    def _farewell(self) -> str:
        """Return how a run that is stopped goes on."""
        if not self._n_kept:
            return "Stopped before the first checkpoint. The same command starts anew."
        return (
            f"Stopped after step {self.step}. The same command goes on from the checkpoint of step {self._n_kept}; "
            "with --restart it starts anew."
        )

    def begin(
        self, identity: dict[str, Any], learned: Learned, updates: Sequence[Update], objective: Objective, resume: bool
    ) -> None:
        """Go on from the folder's checkpoint, where there is one, and open the logs.

        Args:
            identity: what the run is made of, see `Prepared.identity`.
            learned, updates, objective: what a checkpoint holds the state of; restored from it.
            resume: go on from a checkpoint; without, delete it.

        Raises:
            DataError: the checkpoint is damaged.
            RequestError: the checkpoint is of another configuration, of other weights or of other data.
        """
        self._identity, self._learned, self._updates, self._objective = identity, learned, updates, objective
        if not resume and self._team.leads:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self._team.wait()
        self._restore(load_checkpoint(self.folder, identity, learned))
        if self._team.leads:
            lines = [*self.progress.steps, *self.progress.validations]
            self._logs = Logs(self.folder, lines, self.step, self._tensorboard)

    def _restore(self, progress: Progress | None) -> None:
        if progress is None:
            return
        self.progress, self._learned.values = progress, progress.values
        for update, moments in zip(self._updates, progress.moments, strict=True):
            update.moments = [(first, second) for first, second in moments]
        self._objective.scale, self._objective.n_good = progress.scale, progress.n_good
        self._n_kept = progress.step
        say(f"goes on after step {progress.step}, from {self.folder / CHECKPOINT} (--restart starts anew)")

    @property
    def step(self) -> int:
        """Steps done."""
        return self.progress.step

    @property
    def is_validated(self) -> bool:
        """Whether there was a validation after the last step."""
        return bool(self.progress.validations) and self.progress.validations[-1]["step"] == self.step

    def is_stale(self, patience: int) -> bool:
        """Whether `patience` validations have passed without a new best; never with a patience of 0."""
        return 0 < patience <= self.progress.stale

    def shown(self) -> dict[str, str]:
        """The last step's figures, for a progress bar."""
        shown = {name: f"{value:.3f}" for name, value in self.progress.steps[-1].items() if name not in NO_LOSS}
        if self.progress.validations:
            shown["validation"] = f"{abs(score_of(self.progress.validations[-1])):.1%}"
        return shown

    def add_step(self, facts: Line, rate: float, seconds: float) -> None:
        """Log a step that was done: the parts of its loss, its learning rate and how long it took."""
        self.progress.step += 1
        self.progress.steps.append({"step": self.step, "seconds": seconds, "rate": rate, **facts})
        if self._logs:
            self._logs.add(self.progress.steps[-1])

    def add_validation(self, measured: Line) -> None:
        """Log a validation, draw the curves and the prompt, and remember the values if they are the best so far."""
        progress, score = self.progress, score_of(measured)
        progress.validations.append({"step": self.step, **measured})
        if score > progress.best:
            progress.best, progress.best_values, progress.stale = score, [v.clone() for v in self._learned.values], 0
        else:
            progress.stale += 1
        if self._logs:
            self._logs.add(progress.validations[-1])
            draw_curves(self.folder / CURVES, progress.steps, progress.validations)
            save_frame(self.folder, self._learned.prompt(), self.step)

    def keep(self) -> None:
        """Write the checkpoint."""
        progress = self.progress
        progress.values, progress.moments = self._learned.values, [update.moments for update in self._updates]
        progress.scale, progress.n_good = self._objective.scale, self._objective.n_good
        if self._team.leads:
            save_checkpoint(self.folder, self._identity, progress)
        self._n_kept = self.step

    def result(self, config: TrainConfig) -> tuple[Prompt, Line]:
        """Return the prompt, and the validation of this very prompt.

        With early stopping, and where the best is kept, it is the prompt of the best validation, and of equals the
        first; else it is the last one.
        """
        chosen = self.progress.validations[-1]
        if (config.keep == "best" or config.patience) and self.progress.best_values:
            self._learned.values = self.progress.best_values
            chosen = max(self.progress.validations, key=score_of)
        prompt = self._learned.prompt()
        prompt.facts = {
            "method": config.method,
            "task": config.task,
            **self._identity,
            "steps": chosen["step"],
            "validation": [chosen],
            "versions": {name: version(name) for name in ("torch", "transformers", "open_clip_torch")},
        }
        return prompt, chosen

    def write(self, config: TrainConfig, prompt: Prompt, kept: bool = True) -> Path:
        """Write the configuration, and the prompt under the name that says whether it is kept; returns its file.

        The other name is deleted: it would be a prompt of an earlier run.
        """
        names = (PROMPT, REJECTED) if kept else (REJECTED, PROMPT)
        if self._team.leads:
            write_whole(self.folder / "config.toml", to_toml(config).encode())
            prompt.save(self.folder / names[0])
            for suffix in (".safetensors", ".png"):
                (self.folder / names[1]).with_suffix(suffix).unlink(missing_ok=True)
        self._team.wait()
        return self.folder / names[0]


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it.

    Raises:
        RequestError: another run is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)  # it ends with the process, however that ends
    try:
        lock.acquire()
    except Timeout as error:
        raise RequestError(
            f"Another run is writing to {folder}. Choose another folder, or wait for it. "
            f"If there is no other run, delete {folder / LOCK}."
        ) from error
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked, so a second run there would go unnoticed: %s", folder, error)
    try:
        yield
    finally:
        lock.release()


def save_checkpoint(folder: Path, identity: dict[str, Any], progress: Progress) -> None:
    buffer = io.BytesIO()
    torch.save({"identity": json.dumps(identity), **vars(progress)}, buffer)
    write_whole(folder / CHECKPOINT, buffer.getvalue())


def load_checkpoint(folder: Path, identity: dict[str, Any], learned: Learned) -> Progress | None:
    """Read the progress that a folder holds; None where it holds none.

    Raises:
        DataError: the checkpoint is damaged.
        RequestError: it is of another configuration, of other weights or of other data.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state = load_tensors(path, learned.device)
        theirs = _in_todays_names(json.loads(state.pop("identity")))
        changed = _changes(theirs, json.loads(json.dumps(identity)))
        progress = Progress(**state)
        complete = progress.step > 0 and _is_whole(progress, learned)
    except Exception as error:  # the unpickler raises whatever the damage leads to
        raise DataError(f"The checkpoint {path} is damaged: {error}. Start anew with --restart.") from error
    _refuse_changed(folder, changed)
    if not complete:
        raise DataError(f"The checkpoint {path} is damaged: it holds no whole step. Start anew with --restart.")
    return progress


def _refuse_changed(folder: Path, changed: Sequence[str]) -> None:
    if changed:
        raise RequestError(
            f"{folder} holds a run with another configuration ({'; '.join(changed)}). "
            "Choose another folder, or start anew with --restart."
        )


def _is_whole(progress: Progress, learned: Learned) -> bool:
    """Whether all fields are of their types, and the tensors have the shapes of the learned values."""
    if any(type(getattr(progress, name)) is not type(value) for name, value in vars(Progress()).items()):
        return False
    shapes = [value.shape for value in learned.values]
    if len(progress.moments) != len(learned.groups):
        return False
    sets = [(progress.values, shapes)]
    sets += [(progress.best_values, shapes)] if progress.best_values else []
    for group, moments in zip(learned.groups, progress.moments, strict=True):
        sets += [(list(one), shapes[group]) for one in zip(*moments, strict=True)]
    lines = [*progress.steps, *progress.validations]
    return all([value.shape for value in values] == wanted for values, wanted in sets) and all(
        isinstance(name, str) and isinstance(value, int | float) for line in lines for name, value in line.items()
    )


def _changes(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """What is not the same in two identities, in words."""
    return [
        f"{key}: {theirs.get(part, {}).get(key)!r} there, {mine[part][key]!r} now"
        for part in mine
        for key in mine[part]
        if mine[part][key] != theirs.get(part, {}).get(key)
    ]


def _in_todays_names(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity of a checkpoint, in which earlier versions lack a field, or call a field and a class otherwise."""
    config = {RENAMED.get(name, name): value for name, value in identity["config"].items()}
    defaults = {one.name: one.default for one in fields(TrainConfig) if one.default is not MISSING}
    config = {**json.loads(json.dumps(defaults)), **config}
    asked = {model: text.replace("(Layout(", "(PromptLayout(", 1) for model, text in identity.get("asked", {}).items()}
    return {**identity, "config": config, "asked": asked}
