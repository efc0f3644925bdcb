"""How good the prompt is as it stands, on pictures that training does not see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batches import Batch, load_batch
from .config import TrainConfig
from .data import Data, Subset
from .evaluate import accuracy
from .families import Family
from .features import features
from .losses import Moments, distance, length
from .preparation import Prepared
from .progress import working
from .prompt import Prompt
from .references import References
from .team import Team

MOST_ROWS = 256  # questions that a language model reads at once
BUDGET = 2**29  # bytes of features of clean validation pictures kept in memory, all source models together


class Validation:
    """Measures prompts on a run's validation pictures. What they are compared with is computed once.

    Args:
        prepared: whose validation pictures are shown to whose source models.
        team: the processes that train together.
    """

    def __init__(self, prepared: Prepared, team: Team) -> None:
        self._prepared, self._team = prepared, team
        budget = BUDGET // len(prepared.sources)
        self._held_out = [HeldOut(source, prepared, budget) for source in prepared.sources]

    def __call__(self, prompt: Prompt | None) -> dict[str, float]:
        """Return the accuracy over all source models, or where no answers are learned from, the distance.

        `accuracy` is the share of validation questions answered right, in [0, 1]. `distance` is the loss on validation
        pictures: of features as a share of the reference's length, see `HeldOut`; of pixels in [0, 1].

        Args:
            prompt: None for the pictures as they are.
        """
        prepared, team = self._prepared, self._team
        with working("measuring on validation pictures"):
            if prepared.learn_from == "answers":
                return {"accuracy": _accuracy(prompt, prepared, team)}
            if prepared.learn_from == "pixels":
                found = pixel_distance(prepared, prompt)
            else:
                turns = zip(in_turn(prepared), self._held_out, strict=True)
                found = sum(held_out.distance(prompt) for _, held_out in turns) / len(self._held_out)
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


class HeldOut:
    """How far a model's features of validation pictures are from the reference's, relative to its length.

    Where there are clean pictures, it is the distance from their features. Without pairs, it is that of the moments
    of all pictures from those of the other good ones, the mean over depths and moments.

    The reference never changes. Its features are kept if all of them fit into the budget; else they are computed
    whenever they are needed. Moments are small, and are kept always.

    Args:
        family: any model, a source or not.
        prepared: whose validation pictures are shown.
        budget: bytes of reference features to keep; 0 keeps none. Default 512 MiB.
    """

    def __init__(self, family: Family, prepared: Prepared, budget: int = BUDGET) -> None:
        self._family, self._prepared = family, prepared
        data, depths, size = prepared.validation, prepared.config.depths, _n_shown(prepared)
        self._references = References(family, data, prepared.geometry, "clean", depths, size, budget)
        self._good: list[Moments] = []

    @torch.no_grad()
    def distance(self, prompt: Prompt | None) -> float:
        """Return the distance of the pictures with a prompt; None for the pictures as they are."""
        return self._of_pairs(prompt) if self._prepared.like is None else self._of_moments(prompt)

    def _of_pairs(self, prompt: Prompt | None) -> float:
        away: list[Tensor] = []
        for batch in _batches(self._prepared.validation, self._prepared):
            mine, theirs = self._seen(batch, prompt), self._references(batch)
            lengths = [length(depth).sum() for depth in theirs]
            apart = [distance(m, t).sum() for m, t in zip(mine, theirs, strict=True)]
            away.append(torch.tensor([apart, lengths], dtype=torch.float64))
        totals = torch.stack(away).sum(0)
        return float((totals[0] / totals[1]).mean())

    def _of_moments(self, prompt: Prompt | None) -> float:
        assert self._prepared.like is not None
        self._good = self._good or self._moments(self._prepared.like[1], None)
        found = self._moments(self._prepared.validation, prompt, [depth.centre for depth in self._good])
        away = [mine.distance(theirs).item() / 3 for mine, theirs in zip(found, self._good, strict=True)]
        return float(np.mean(away))

    def _moments(self, data: Data, prompt: Prompt | None, centres: list[Tensor] | None = None) -> list[Moments]:
        """Return the moments at each depth, added up over batches; around the first batch's mean by default."""
        total: list[Moments] = []
        for batch in _batches(data, self._prepared):
            seen = self._seen(batch, prompt)
            centres = centres or [depth.float().mean((0, 1)) for depth in seen]
            here = [Moments.of(depth, at) for depth, at in zip(seen, centres, strict=True)]
            total = [before + more for before, more in zip(total, here, strict=True)] if total else here
        return total

    def _seen(self, batch: Batch, prompt: Prompt | None) -> list[Tensor]:
        canvas = _shown(batch.pictures, self._prepared, prompt, self._family.device)
        return features(self._family, self._family.to_pixels(canvas), self._prepared.config.depths)[1]


@torch.no_grad()
def pixel_distance(prepared: Prepared, prompt: Prompt | None) -> float:
    """Return the mean absolute difference of validation pictures from their clean ones, in [0, 1]."""
    home, away = prepared.home, []
    for batch in _batches(prepared.validation, prepared):
        assert batch.clean is not None
        mine, theirs = _shown(batch.pictures, prepared, prompt, home), _shown(batch.clean, prepared, None, home)
        away.append((mine - theirs).abs().mean((1, 2, 3)))
    return float(torch.cat(away).mean())


def _n_shown(prepared: Prepared) -> int:
    """Return how many pictures are shown at a time: as many as training shows."""
    return -(-prepared.config.batch // prepared.config.accumulate)


def _batches(data: Data, prepared: Prepared) -> Iterator[Batch]:
    """Read all pictures of the data."""
    size = _n_shown(prepared)
    for start in range(0, len(data), size):
        yield load_batch(data, range(start, min(start + size, len(data))), prepared.geometry, 0)


def _shown(pictures: NDArray[np.uint8], prepared: Prepared, prompt: Prompt | None, device: torch.device) -> Tensor:
    canvas = prepared.geometry.place(torch.from_numpy(pictures).to(device))
    return prompt.to(device).on(canvas) if prompt else canvas
