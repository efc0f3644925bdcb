"""What a run starts from: the frame, and the lens, whose kind and start may be chosen by trying them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tvp.sdk.errors import RequestError

from .data import Data
from .files import write_whole
from .frame import Frame
from .learned import Learned
from .lens import LensDesign
from .preparation import Prepared
from .prompt import Prompt
from .step import Objective
from .team import Team
from .validation import score_of, validate

log = logging.getLogger("tvp.trainer")

KINDS = ("conv", "kernel", "colour")
STARTS = ("identity", "normalise", "statistics")
CHOICE = "choice.json"
TRY_SHARE, FEWEST_TRIED = 10, 20  # a try takes a tenth of the run's steps, and 20 at least
N_STATISTICS = 256  # pictures whose mean and spread are taken


def start(prepared: Prepared, folder: Path, team: Team, resume: bool) -> Learned:
    """Return what the run learns, as it is before the first step.

    Args:
        prepared: the run.
        folder: the run's. It remembers which lens was chosen.
        team: the processes that train together.
        resume: take the choice that the folder remembers.
    """
    config = prepared.config
    if config.lens == "none":
        return _learned(prepared, None, "")
    kind: str = config.lens
    begin: str = config.lens_start
    if "auto" in (kind, begin):
        kind, begin = _choose(prepared, folder, team, resume)
    return _learned(prepared, kind, begin)


def _learned(prepared: Prepared, kind: str | None, begin: str) -> Learned:
    config, geometry = prepared.config, prepared.geometry
    frame = Frame(geometry, config.pixel_range, config.rank, config.seed) if config.frame else None
    behind = None
    if config.behind:
        behind = Prompt.load(config.behind).lens
        if behind is None:
            raise RequestError(f"{config.behind} has no lens; it is a frame alone. Name a prompt with a lens.")
    if kind is None:
        return Learned(geometry, frame, behind=behind).to(prepared.home)
    design = LensDesign(kind, begin == "normalise", config.lens_width, config.lens_depth)  # type: ignore[arg-type]
    values = design.start(config.seed)
    if begin == "statistics":
        values |= _statistics(prepared)
    return Learned(geometry, frame, design, values).to(prepared.home)


def _statistics(prepared: Prepared) -> dict[str, Tensor]:
    """Return the matrix and the bias that bring each channel's mean and spread to those of the good pictures."""
    if prepared.like is None and prepared.train[0].clean is None:
        raise RequestError("The start 'statistics' needs good pictures: pairs, a camera, or --like.")
    mean, spread = _mean_and_spread(prepared, prepared.train, False)
    good = (prepared.train, True) if prepared.like is None else (prepared.like[0], False)
    wanted_mean, wanted_spread = _mean_and_spread(prepared, *good)
    gain = wanted_spread / np.maximum(spread, 1 / 255)
    matrix, bias = np.diag(gain), wanted_mean - gain * mean
    return {"matrix": torch.from_numpy(matrix).float(), "bias": torch.from_numpy(bias).float()}


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


def _choose(prepared: Prepared, folder: Path, team: Team, resume: bool) -> tuple[str, str]:
    """Try lenses for a few steps each, and return the kind and the start of the one that validates best.

    First the starts are tried with the first kind, then the other kinds with the best start.
    """
    config = prepared.config
    identity = prepared.identity()
    place = folder / CHOICE
    if resume and place.is_file():
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["identity"] == json.loads(json.dumps(identity)):
            return kept["kind"], kept["start"]
    kinds = KINDS if config.lens == "auto" else (config.lens,)
    starts = STARTS if config.lens_start == "auto" else (config.lens_start,)
    scores = {(kinds[0], begin): _try(prepared, kinds[0], begin, team) for begin in starts}
    begin = max(starts, key=lambda begin: scores[kinds[0], begin])
    scores |= {(kind, begin): _try(prepared, kind, begin, team) for kind in kinds[1:]}
    kind, begin = max(scores, key=lambda tried: scores[tried])
    for (tried, its_start), score in scores.items():
        log.info("tried the lens %s from %s: %.4f", tried, its_start, abs(score))
    log.info("took the lens %s from %s", kind, begin)
    if team.leads:
        folder.mkdir(parents=True, exist_ok=True)
        tried_lenses = [{"kind": k, "start": s, "score": score} for (k, s), score in scores.items()]
        content = {"identity": identity, "kind": kind, "start": begin, "tried": tried_lenses}
        write_whole(place, json.dumps(content, indent=1).encode())
    team.wait()
    return kind, begin


def _try(prepared: Prepared, kind: str, begin: str, team: Team) -> float:
    """Return the validation score of a lens after a few steps of training."""
    n_steps = max(FEWEST_TRIED, prepared.n_steps // TRY_SHARE)
    short = replace(prepared, config=replace(prepared.config, steps=n_steps, warm_up=0))
    learned = _learned(short, kind, begin)
    updates = learned.updates(short.config, n_steps)
    objective = Objective.of(short)
    for step, batch in enumerate(short.batches(0, n_steps, team)):
        _, gradients = objective(batch, learned, team)
        learned.move(updates, gradients, step)
    return score_of(validate(learned.prompt(), short, team))
