"""What a run starts from: the frame, and the lens, whose kind and start may be chosen by trying them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import Data
from .files import write_whole
from .frame import Frame
from .learned import Learned
from .lens import LensDesign
from .preparation import Prepared
from .progress import bar
from .prompt import lens_of
from .step import Objective
from .team import Team
from .validation import Validation, score_of

KINDS = ("conv", "kernel", "colour")  # the simplest last
STARTS = ("identity", "normalise", "statistics")  # the simplest first; the last one needs good pictures
CHOICE = "choice.json"
TRY_SHARE, FEWEST_TRIED = 10, 4  # a try takes a tenth of the run's steps, and 4 at least,
TRY_PART, FEWEST_SHOWN = 4, 8  # pictures: a quarter of a batch, and 8 at least; five tries take an eighth of the time
BEHIND = 1.1  # times the loss of the best try, half-way, is clearly behind
NOISE = 0.02  # of a loss after a try
N_STATISTICS = 256  # pictures whose mean and spread are taken


@dataclass(frozen=True)
class Choice:
    """The kind and the start of a run's lens.

    Attributes:
        kind, start: as in the configuration.
        tried: `kind` and `start` of each lens that was tried, its `score`, see `validation.score_of`, and after how
            many `steps`; none where the configuration names one lens.
    """

    kind: str
    start: str
    tried: tuple[dict[str, Any], ...] = ()


def start(
    prepared: Prepared,
    objective: Objective,
    validate: Validation,
    folder: Path,
    team: Team,
    resume: bool,
    identity: dict[str, Any],
    quiet: bool | None,
) -> tuple[Learned, Choice | None]:
    """Return what the run learns, as it is before the first step, and the choice of its lens; None without a lens.

    Args:
        prepared: the run.
        objective: of the run.
        validate: measures lenses on the run's validation pictures.
        folder: the run's. It remembers which lens was chosen.
        team: the processes that train together.
        resume: take the choice that the folder remembers.
        identity: what the run is made of, see `Prepared.identity`.
        quiet: show no progress bars, see `train`.
    """
    config = prepared.config
    if config.lens == "none":
        return _learned(prepared, None, ""), None
    choice = Choice(config.lens, config.lens_start)
    if "auto" in (choice.kind, choice.start):
        choice = (_remembered(folder, identity) if resume else None) or _choose(
            prepared, objective, validate, team, quiet
        )
        if team.leads:
            write_whole(folder / CHOICE, json.dumps({"identity": identity, **asdict(choice)}, indent=1).encode())
        team.wait()
    return _learned(prepared, choice.kind, choice.start), choice


def _learned(prepared: Prepared, kind: str | None, begin: str) -> Learned:
    config, geometry = prepared.config, prepared.geometry
    frame = Frame(geometry, config.pixel_range, config.rank, config.seed) if config.frame else None
    behind = lens_of(config.behind) if config.behind else None
    if kind is None:
        return Learned(geometry, frame, behind=behind).to(prepared.home)
    design = LensDesign(kind, begin == "normalise", config.lens_width, config.lens_depth)  # type: ignore[arg-type]
    values = design.start(config.seed)
    if begin == "statistics":
        values |= _statistics(prepared)
    return Learned(geometry, frame, design, values).to(prepared.home)


def _statistics(prepared: Prepared) -> dict[str, Tensor]:
    """Return the matrix and the bias that bring each channel's mean and spread to those of the good pictures."""
    mean, spread = _mean_and_spread(prepared, prepared.train, False)
    good = (prepared.train, True) if prepared.like is None else (prepared.like[0], False)
    wanted_mean, wanted_spread = _mean_and_spread(prepared, *good)
    gain = wanted_spread / np.maximum(spread, 1 / 255)
    matrix, bias = np.diag(gain), wanted_mean - gain * mean
    return {"matrix": torch.from_numpy(matrix).float(), "bias": torch.from_numpy(bias).float()}


def _has_good(prepared: Prepared) -> bool:
    return prepared.like is not None or prepared.train[0].clean is not None


def _mean_and_spread(prepared: Prepared, data: Data, clean: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each channel, for values in [0, 1]."""
    sums = []
    for i in np.linspace(0, len(data) - 1, min(len(data), N_STATISTICS), dtype=int).tolist():
        sample = data[i]
        picture = sample.clean if clean else sample.picture
        assert picture is not None
        values = prepared.geometry.shrink(picture) / 255
        sums.append([values.mean((0, 1)), np.square(values).mean((0, 1))])
    mean, square = np.mean(sums, axis=0)
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _remembered(folder: Path, identity: dict[str, Any]) -> Choice | None:
    """Return the choice of an earlier start of the same run; None where there is none, or none that can be read."""
    try:
        kept = json.loads((folder / CHOICE).read_text(encoding="utf-8"))
        if kept.pop("identity") != json.loads(json.dumps(identity)):
            return None
        found = Choice(kept["kind"], kept["start"], tuple(kept["tried"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return found if found.kind in KINDS and found.start in STARTS else None


def _choose(prepared: Prepared, objective: Objective, validate: Validation, team: Team, quiet: bool | None) -> Choice:
    """Try lenses for a few steps each, and return the kind and the start of the one that validates best.

    First the starts are tried with the first kind, then the other kinds with the best start. A simpler one is taken
    where its loss is not worse by more than noise.
    """
    config = prepared.config
    kinds = KINDS if config.lens == "auto" else (config.lens,)
    able = STARTS if _has_good(prepared) else STARTS[:-1]
    starts = able if config.lens_start == "auto" else (config.lens_start,)
    trials = _Trials(prepared, objective, validate, team, quiet)
    begin = _simplest({begin: trials.loss(kinds[0], begin) for begin in starts})
    kind = _simplest({kind: trials.loss(kind, begin) for kind in kinds[::-1]})
    return Choice(kind, begin, tuple(trials.tried))


def _simplest(losses: dict[str, float]) -> str:
    """Return the first name whose loss is not worse than the least by more than noise."""
    return next(name for name, loss in losses.items() if loss <= min(losses.values()) * (1 + NOISE))


class _Trials:
    """Short runs of lenses, in small batches. One that is clearly behind the best so far is stopped half-way."""

    def __init__(
        self, prepared: Prepared, objective: Objective, validate: Validation, team: Team, quiet: bool | None
    ) -> None:
        batch = prepared.config.batch
        batch = min(batch, max(batch // TRY_PART, FEWEST_SHOWN, team.size))
        self._prepared = replace(prepared, config=replace(prepared.config, batch=batch, warm_up=0))
        self._objective, self._validate, self._team, self._quiet = objective, validate, team, quiet
        self._n_steps = max(FEWEST_TRIED, prepared.n_steps // TRY_SHARE)
        self._best: list[float] = []  # the loss of each step of the best try
        self._losses: dict[tuple[str, str], float] = {}
        self.tried: list[dict[str, Any]] = []

    def loss(self, kind: str, begin: str) -> float:
        """Return the loss on validation pictures that a lens has after its try."""
        if (kind, begin) not in self._losses:
            learned, course = self._run(kind, begin)
            line = self._validate(learned.prompt())
            loss = 1 - line["accuracy"] if "accuracy" in line else line["distance"]
            if len(course) == self._n_steps and loss < min(self._losses.values(), default=float("inf")):
                self._best = course
            self._losses[kind, begin] = loss
            self.tried.append({"kind": kind, "start": begin, "score": score_of(line), "steps": len(course)})
        return self._losses[kind, begin]

    def _run(self, kind: str, begin: str) -> tuple[Learned, list[float]]:
        learned = _learned(self._prepared, kind, begin)
        updates = learned.updates(self._prepared.config, self._n_steps)
        course: list[float] = []
        batches = self._prepared.batches(0, self._n_steps, self._team)
        shown = bar(batches, f"trying {kind} from {begin}", quiet=self._quiet, total=self._n_steps)
        for step, batch in enumerate(shown):
            facts, gradients = self._objective(batch, learned, self._team)
            learned.move(updates, gradients, step)
            course.append(self._objective.loss_of(facts))
            if len(course) == self._n_steps // 2 and self._is_behind(course):
                break
        shown.close()
        self._objective.restart()
        return learned, course

    def _is_behind(self, course: list[float]) -> bool:
        """Whether the last steps went clearly worse than the best try's, on the same pictures."""
        last = slice(len(course) // 2, len(course))
        return bool(self._best) and sum(course[last]) > BEHIND * sum(self._best[last])
