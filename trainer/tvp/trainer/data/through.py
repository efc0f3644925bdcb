"""Another source's pictures, seen through a camera."""

from __future__ import annotations

from dataclasses import replace

from ..cameras import Camera
from .sample import Data, Row, Sample, row_of


class ThroughCamera:
    """Another source's samples, seen through a camera; questions and captions stay the same.

    Args:
        data: the other source.
        camera: the camera.
        seed: of its noise, together with the index of each sample. Default 0.
    """

    def __init__(self, data: Data, camera: Camera, seed: int = 0) -> None:
        self._data, self._camera, self._seed = data, camera, seed

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Row | None:
        return row_of(self._data, index)

    def __getitem__(self, index: int) -> Sample:
        sample = self._data[index]
        clean = sample.picture if sample.clean is None else sample.clean
        return replace(sample, picture=self._camera.shoot(sample.picture, (self._seed, index)), clean=clean)
