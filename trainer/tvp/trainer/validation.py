"""How good the prompt is as it stands, on pictures that training does not see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .batches import load_batch
from .config import TrainConfig
from .data import Data, Subset
from .evaluate import accuracy
from .families import Family
from .features import features
from .losses import Moments, distance, length
from .preparation import Prepared
from .prompt import Prompt
from .team import Team

MOST_ROWS = 256  # questions that a language model reads at once


def validate(prompt: Prompt | None, prepared: Prepared, team: Team) -> dict[str, float]:
    """Return the accuracy over all source models, or where no answers are learned from, the distance.

    `accuracy` is the share of validation questions answered right, in [0, 1]. `distance` is the loss on validation
    pictures: of features as a share of the reference's length, see `held_out_distance`; of pixels in [0, 1].

    Args:
        prompt: None for the pictures as they are.
        prepared: whose validation pictures are shown to whose source models.
        team: the processes that train together.
    """
    if prepared.learn_from == "answers":
        return {"accuracy": _accuracy(prompt, prepared, team)}
    if prepared.learn_from == "pixels":
        found = pixel_distance(prepared, prompt)
    else:
        found = sum(held_out_distance(source, prepared, prompt) for source in in_turn(prepared))
        found /= len(prepared.sources)
    return {"distance": agreed(found, prepared, team)}


def agreed(value: float, prepared: Prepared, team: Team) -> float:
    """Return the leading process's value: all measure the same, but their last bits may differ."""
    mine = torch.tensor(value if team.leads else 0.0, dtype=torch.float64, device=prepared.home)
    return float(team.sum(mine).item())


def score_of(line: dict[str, float]) -> float:
    """Return what a validation is ranked by; more is better."""
    return line["accuracy"] if "accuracy" in line else -line["distance"]


def _accuracy(prompt: Prompt | None, prepared: Prepared, team: Team) -> float:
    config, home = prepared.config, prepared.home
    mine = Subset(prepared.validation, range(team.rank, len(prepared.validation), team.size))
    right = torch.zeros(2, dtype=torch.float64, device=home)
    for source in in_turn(prepared):
        result = accuracy(source, mine, prepared.geometry, prompt, prepared.task, rows_of(config))
        right += torch.tensor([result.right.sum(), result.n], device=home)
    n_right, n_asked = team.sum(right).tolist()
    return float(n_right / n_asked)


def rows_of(config: TrainConfig) -> int:
    """Return how many rows are asked at once: as many as training reads, which fit with all that a gradient needs."""
    return min(MOST_ROWS, -(-config.batch // config.accumulate) * config.questions)


def in_turn(prepared: Prepared) -> Iterator[Family]:
    """Yield each source model while it is on the device where it runs."""
    for source in prepared.sources:
        if prepared.offload:
            source.model.to(prepared.home)
        yield source
        if prepared.offload:
            source.model.to("cpu")


@torch.no_grad()
def held_out_distance(family: Family, prepared: Prepared, prompt: Prompt | None) -> float:
    """Return how far a model's features of validation pictures are from the reference's, relative to its length.

    Where there are clean pictures, it is the distance from their features. Without pairs, it is that of the moments
    of all pictures from those of the other good ones, the mean over depths and moments.

    Args:
        family: any model, a source or not.
        prepared: whose validation pictures are shown.
        prompt: None for the pictures as they are.
    """

    def seen(data: Data, prompt: Prompt | None, clean: bool = False) -> Iterator[list[Tensor]]:
        for canvas in _canvases(data, prepared, prompt, clean, family.device):
            yield features(family, family.to_pixels(canvas), prepared.config.depths)[1]

    validation = prepared.validation
    if prepared.like is None:
        away: list[Tensor] = []
        for mine, theirs in zip(seen(validation, prompt), seen(validation, None, True), strict=True):
            lengths = [length(depth).sum() for depth in theirs]
            apart = [distance(m, t).sum() for m, t in zip(mine, theirs, strict=True)]
            away.append(torch.tensor([apart, lengths], dtype=torch.float64))
        totals = torch.stack(away).sum(0)
        return float((totals[0] / totals[1]).mean())
    centres = [depth.float().mean((0, 1)) for depth in next(seen(prepared.like[1], None))]
    good = _moments(seen(prepared.like[1], None), centres)
    found = _moments(seen(validation, prompt), centres)
    return float(np.mean([mine.distance(theirs).item() / 3 for mine, theirs in zip(found, good, strict=True)]))


@torch.no_grad()
def pixel_distance(prepared: Prepared, prompt: Prompt | None) -> float:
    """Return the mean absolute difference of validation pictures from their clean ones, in [0, 1]."""
    shown = _canvases(prepared.validation, prepared, prompt, False, prepared.home)
    clean = _canvases(prepared.validation, prepared, None, True, prepared.home)
    away = [(mine - theirs).abs().mean((1, 2, 3)) for mine, theirs in zip(shown, clean, strict=True)]
    return float(torch.cat(away).mean())


def _canvases(
    data: Data, prepared: Prepared, prompt: Prompt | None, clean: bool, device: torch.device
) -> Iterator[Tensor]:
    """Show all pictures of the data, or their clean ones, a part of a batch at a time."""
    config, geometry = prepared.config, prepared.geometry
    size = -(-config.batch // config.accumulate)
    prompt = prompt.to(device) if prompt else None
    for start in range(0, len(data), size):
        batch = load_batch(data, range(start, min(start + size, len(data))), geometry, 0)
        canvas = geometry.place(torch.from_numpy(batch.clean if clean else batch.pictures).to(device))
        yield prompt.on(canvas) if prompt else canvas


def _moments(batches: Iterator[list[Tensor]], centres: list[Tensor]) -> list[Moments]:
    """Return the moments at each depth, added up over batches."""
    total: list[Moments] = []
    for seen in batches:
        here = [Moments.of(depth, centre) for depth, centre in zip(seen, centres, strict=True)]
        total = [before + more for before, more in zip(total, here, strict=True)] if total else here
    return total
