"""Batches: samples that are ready to be shown, and the order in which training reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tvp.sdk.errors import DataError

from .augment import augment
from .config import TrainConfig
from .data import Data, Question
from .prompt import Geometry
from .team import Team


@dataclass(frozen=True)
class Batch:
    """Samples that are ready to be shown.

    Attributes:
        indices: of the samples in the data.
        pictures: uint8 (n, side, side, 3), fitted to their place on the canvas.
        questions: for each sample, those that are asked.
        captions: for the guide, one for each sample.
        varied: whether the pictures are augmented, so that an index does not determine its picture.
        clean: the same pictures as `pictures` before a camera spoilt them, or other good ones; None where there are
            none.
    """

    indices: list[int]
    pictures: NDArray[np.uint8]
    questions: list[tuple[Question, ...]]
    captions: list[str]
    varied: bool = False
    clean: NDArray[np.uint8] | None = None

    def parts(self, n: int) -> list[Batch]:
        """Cut the batch into at most n batches of neighbours."""
        cuts = [list(c) for c in np.array_split(np.arange(len(self.indices)), n) if len(c)]
        return [
            Batch(
                [self.indices[i] for i in cut],
                self.pictures[cut],
                [self.questions[i] for i in cut],
                [self.captions[i] for i in cut],
                self.varied,
                None if self.clean is None else self.clean[cut],
            )
            for cut in cuts
        ]


def load_batch(
    data: Data,
    indices: Sequence[int],
    geometry: Geometry,
    n_questions: int | None,
    augmentations: Sequence[str] = (),
    seed: Sequence[int] = (),
) -> Batch:
    """Read samples and fit their pictures.

    A photo takes far more memory than its place on the canvas, so one full picture is held at a time.

    Args:
        data: where from.
        indices: of the samples.
        geometry: how their pictures are fitted.
        n_questions: most questions about each; None for all.
        augmentations: see `augment`. Default: none.
        seed: of the augmentations, together with the index of each sample.
    """
    pictures: list[NDArray[np.uint8]] = []
    clean: list[NDArray[np.uint8]] = []
    questions, captions = [], []
    before = None

    def shrink(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # Both pictures of a pair are varied alike.
        varied = augment(picture, augmentations, np.random.default_rng([*seed, i])) if augmentations else picture
        return geometry.shrink(varied)

    for i in indices:
        sample = data[i]
        # Data gives the very same array for further rows about a picture.
        again = not augmentations and sample.picture is before
        pictures.append(pictures[-1] if again else shrink(sample.picture))
        if sample.clean is not None:
            clean.append(clean[-1] if again and clean else shrink(sample.clean))
        before = sample.picture
        questions.append(sample.questions[:n_questions])
        captions.append(sample.caption)
    if clean and len(clean) < len(pictures):
        raise DataError("Some pictures have a clean one and others have none. Every picture must have one, or none.")
    both = np.stack(clean) if clean else None
    return Batch(list(indices), np.stack(pictures), questions, captions, bool(augmentations), both)


def read_batches(
    config: TrainConfig,
    data: Data,
    geometry: Geometry,
    start: int,
    n_steps: int,
    team: Team,
    n_questions: int,
    like: Data | None = None,
) -> Iterator[Batch]:
    """Read this process's share of every batch, one step ahead while the step before runs.

    Each epoch goes through the data in an order of its own, drawn from the seed.

    Args:
        start, n_steps: the first step, and how many there are in all.
        n_questions: most questions about each picture; 0 for none.
        like: other good pictures, as many in every batch, in an order of their own. Default: none.
    """

    @lru_cache(4)
    def order(n: int, epoch: int, *seed: int) -> NDArray[np.int64]:
        return np.random.default_rng([config.seed, epoch, *seed]).permutation(n)

    def mine(n: int, step: int, *seed: int) -> tuple[list[int], int]:
        epoch, place = divmod(step, n // config.batch)
        return order(n, epoch, *seed)[place * config.batch :][: config.batch].tolist()[team.rank :: team.size], epoch

    def load(step: int) -> Batch:
        indices, epoch = mine(len(data), step)
        batch = load_batch(data, indices, geometry, n_questions, config.augment, [config.seed, epoch])
        if like is None:
            return batch
        others, epoch = mine(len(like), step, 1)
        good = load_batch(like, others, geometry, 0, config.augment, [config.seed, epoch, 1])
        return replace(batch, clean=good.pictures)

    if start >= n_steps:
        return
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(load, start)
        for step in range(start, n_steps):
            batch = following.result()
            if step + 1 < n_steps:
                following = reader.submit(load, step + 1)
            yield batch
