"""How good the prompt is as it stands, on pictures that training does not see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .batches import load_batch
from .data import Data, Subset
from .evaluate import accuracy
from .families import Family
from .features import features
from .losses import Moments, distance
from .preparation import Prepared
from .prompt import Prompt
from .team import Team

MOST_ROWS = 256  # questions that a language model reads at once


def validate(prompt: Prompt, prepared: Prepared, team: Team) -> dict[str, float]:
    """Return the accuracy over all source models, or where no answers are learned from, the distance.

    `accuracy` is the share of validation questions answered right, in [0, 1]. `distance` is the loss on validation
    pictures, as a share of the reference's length.
    """
    if prepared.learn_from == "answers":
        return {"accuracy": _accuracy(prompt, prepared, team)}
    found = 0.0
    for source in _in_turn(prepared):
        found += held_out_distance(source, prepared, prompt) / len(prepared.sources)
    # All processes measure the same; their last bits may differ, and they must agree on when to stop.
    return {"distance": team.sum(torch.tensor(found if team.leads else 0.0, dtype=torch.float64)).item()}


def score_of(line: dict[str, float]) -> float:
    """Return what a validation is ranked by; more is better."""
    return line["accuracy"] if "accuracy" in line else -line["distance"]


def _accuracy(prompt: Prompt, prepared: Prepared, team: Team) -> float:
    config, home = prepared.config, prepared.home
    mine = Subset(prepared.validation, range(team.rank, len(prepared.validation), team.size))
    # As many rows as training reads at once: these fit into memory even with all that a gradient needs.
    n_rows = min(MOST_ROWS, -(-config.batch // config.accumulate) * config.questions)
    right = torch.zeros(2, dtype=torch.float64, device=home)
    for source in _in_turn(prepared):
        result = accuracy(source, mine, prompt.geometry, prompt, prepared.task, n_rows)
        right += torch.tensor([result.right.sum(), result.n], device=home)
    n_right, n_asked = team.sum(right).tolist()
    return float(n_right / n_asked)


def _in_turn(prepared: Prepared) -> Iterator[Family]:
    for source in prepared.sources:
        if prepared.offload:
            source.model.to(prepared.home)
        yield source
        if prepared.offload:
            source.model.to("cpu")


@torch.no_grad()
def held_out_distance(family: Family, prepared: Prepared, prompt: Prompt | None) -> float:
    """Return how far a model's features of validation pictures are from the reference's, relative to its length.

    Pairs: the distance from the features of the clean pictures. Unpaired: of the moments of all pictures, the mean
    over depths and moments. Pixels: the mean absolute difference, in [0, 1].

    Args:
        family: any model, a source or not.
        prepared: whose validation pictures are shown.
        prompt: None for the pictures as they are.
    """
    config, geometry, depths = prepared.config, prepared.geometry, prepared.config.depths
    size = -(-config.batch // config.accumulate)

    def canvases(data: Data, clean: bool) -> Iterator[Tensor]:
        for start in range(0, len(data), size):
            batch = load_batch(data, range(start, min(start + size, len(data))), geometry, 0)
            canvas = geometry.place(torch.from_numpy(batch.clean if clean else batch.pictures).to(family.device))
            yield canvas if clean or prompt is None else prompt.on(canvas)

    def seen(data: Data, clean: bool = False) -> Iterator[list[Tensor]]:
        for canvas in canvases(data, clean):
            yield features(family, family.to_pixels(canvas), depths)[1]

    validation = prepared.validation
    if prepared.learn_from == "pixels":
        pairs = zip(canvases(validation, False), canvases(validation, True), strict=True)
        return float(np.average([(mine - theirs).abs().mean().item() for mine, theirs in pairs]))
    if prepared.like is None:
        away: list[Tensor] = []
        for mine, theirs in zip(seen(validation), seen(validation, True), strict=True):
            lengths = [distance(depth, torch.zeros_like(depth)).sum() for depth in theirs]
            apart = [distance(m, t).sum() for m, t in zip(mine, theirs, strict=True)]
            away.append(torch.tensor([apart, lengths], dtype=torch.float64))
        totals = torch.stack(away).sum(0)
        return float((totals[0] / totals[1]).mean())
    centres = [depth.float().mean((0, 1)) for depth in next(seen(prepared.like[1]))]
    good, found = (_moments(shown, centres) for shown in (seen(prepared.like[1]), seen(validation)))
    return float(np.mean([mine.distance(theirs).item() / 3 for mine, theirs in zip(found, good, strict=True)]))


def _moments(batches: Iterator[list[Tensor]], centres: list[Tensor]) -> list[Moments]:
    """Return the moments at each depth, added up over batches."""
    total: list[Moments] = []
    for seen in batches:
        here = [Moments.of(depth, centre) for depth, centre in zip(seen, centres, strict=True)]
        total = [before + more for before, more in zip(total, here, strict=True)] if total else here
    return total
