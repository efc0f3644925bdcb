"""What a person would try first on the pictures of a bad camera, without learning anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from tvp.trainer.data import Data, Sample

Picture = NDArray[np.uint8]
CUTOFF = 1  # percent of the pixels at either end that autocontrast does not count
PATCH, WINDOW = 5, 11  # px: what non-local means compares, and how far it looks
STRENGTH = 0.8  # of non-local means: a multiple of the noise's deviation


def autocontrast(picture: Picture) -> Picture:
    """Stretch each channel to the whole range."""
    return np.asarray(ImageOps.autocontrast(Image.fromarray(picture), cutoff=CUTOFF))


def grey_world(picture: Picture) -> Picture:
    """Balance white as if the picture were grey on average, brighten it to a mean of one half, and take a median."""
    means = np.maximum(picture.mean((0, 1)), 1)
    balanced = np.clip(np.rint(picture * (127.5 / means)), 0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(balanced).filter(ImageFilter.MedianFilter(3)))


def non_local_means(picture: Picture) -> Picture:
    """Average each pixel with those near it whose surroundings look alike (Buades et al., CVPR 2005)."""
    values = picture.astype(np.float32)
    deviation = max(noise_of(values), 0.5)
    far, reach = WINDOW // 2, PATCH // 2
    padded = np.pad(values, [(far, far), (far, far), (0, 0)], mode="reflect")
    height, width = values.shape[:2]
    total, weights = np.zeros_like(values), np.zeros((height, width, 1), np.float32)
    for down in range(WINDOW):
        for right in range(WINDOW):
            other = padded[down : down + height, right : right + width]
            apart = np.square(values - other).mean(2)
            sums = np.pad(apart, reach, mode="edge")
            for axis in (0, 1):
                lines = np.lib.stride_tricks.sliding_window_view(sums, PATCH, axis)
                sums = lines.mean(-1)
            # Two noisy copies of the same differ by twice the noise's variance.
            alike = np.exp(-np.maximum(sums - 2 * deviation**2, 0) / (STRENGTH * deviation) ** 2)[..., None]
            total += alike * other
            weights += alike
    return np.clip(np.rint(total / weights), 0, 255).astype(np.uint8)


def noise_of(values: NDArray[np.float32]) -> float:
    """Estimate the deviation of the noise from differences of neighbours that any smooth picture cancels."""
    second = values[:-1, :-1] - values[1:, :-1] - values[:-1, 1:] + values[1:, 1:]
    return float(np.median(np.abs(second)) / 0.6745 / 2)


def stretched_means(picture: Picture) -> Picture:
    """Non-local means, then autocontrast."""
    return autocontrast(non_local_means(picture))


BY_HAND: dict[str, Callable[[Picture], Picture]] = {
    "autocontrast": autocontrast,
    "grey world and median": grey_world,
    "non-local means": non_local_means,
    "non-local means and autocontrast": stretched_means,
}


class Changed:
    """Another data set with its pictures changed."""

    def __init__(self, data: Data, change: Callable[[Picture], Picture]) -> None:
        self._data, self._change = data, change

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Sample:
        sample = self._data[index]
        return replace(sample, picture=self._change(sample.picture))
