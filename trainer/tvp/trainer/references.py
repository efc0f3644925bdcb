"""The features that Feature Consistency Alignment compares with: those of pictures without a prompt."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tvp.sdk.errors import DataError

from .batches import Batch
from .data import Data
from .families import Family
from .features import features
from .prompt import Geometry


class References:
    """A model's features of pictures without a prompt, each computed once.

    These are the features at some depths, see `features`. The last are the image embeddings, or the output of the
    vision encoder if the embeddings depend on the question.

    They are computed in fixed groups of neighbouring indices. So a picture's features have the same bits whichever
    batch asks for them first, and a resumed run equals one that was not interrupted. If the features of all data do
    not fit into the budget, each batch computes its own and nothing is kept.

    Args:
        family: the model.
        data: all pictures.
        geometry: how they lie on the canvas.
        kind: `unprompted`, the picture as it is on a black frame; or `clean`, the picture before a camera spoilt it,
            in the same place.
        n_depths: depths of features, see `features`.
        group: pictures in a group.
        budget: bytes of features to keep; 0 keeps none.
    """

    def __init__(
        self, family: Family, data: Data, geometry: Geometry, kind: str, n_depths: int, group: int, budget: int
    ) -> None:
        self._family, self._data, self._kind, self._n_depths = family, data, kind, n_depths
        self._geometry, self._group, self._budget = geometry, group, budget
        self._kept: list[list[Tensor] | None] = [None] * -(-len(data) // group)
        self._keep = None if budget else False  # None: not known before the size of the first features

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[Tensor]:
        """Return the features of a batch's pictures, a tensor (n, tokens, width) for each depth.

        Features of augmented pictures are not kept.
        """
        if self._keep is None and not batch.varied:
            self._of_group(batch.indices[0] // self._group)  # its size says whether all will fit
        if self._keep and not batch.varied:
            rows = [self._of_group(i // self._group) for i in batch.indices]
            places = [i % self._group for i in batch.indices]
            return [
                torch.stack([row[depth][place] for row, place in zip(rows, places, strict=True)])
                for depth in range(len(rows[0]))
            ]
        pictures = batch.pictures if self._kind == "unprompted" else batch.clean
        assert pictures is not None
        return self._see(self._geometry.place(torch.from_numpy(pictures)))

    def _see(self, canvas: Tensor) -> list[Tensor]:
        return features(self._family, self._family.to_pixels(canvas.to(self._family.device)), self._n_depths)[1]

    def _of_group(self, group: int) -> list[Tensor]:
        kept = self._kept[group]
        if kept is None:
            start = group * self._group
            members = range(start, min(start + self._group, len(self._data)))
            kept = self._see(self._geometry.show(self._picture(i) for i in members))
            n_bytes = sum(depth[0].nbytes for depth in kept)
            self._keep = n_bytes * len(self._data) <= self._budget
            if self._keep:
                self._kept[group] = kept
        return kept

    def _picture(self, index: int) -> np.ndarray:
        sample = self._data[index]
        if self._kind == "unprompted":
            return sample.picture
        if sample.clean is None:
            raise DataError(f"Row {index} of the data has no clean picture to compare with. Every row must have one.")
        return sample.clean
