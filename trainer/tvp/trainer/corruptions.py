"""Corruptions of pictures: noise, blur, contrast, JPEG and fog, each at severities 1 to 5.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019 (arXiv 1903.12261), and the published scripts that made ImageNet-C, Tiny ImageNet-C and CIFAR-10-C.
Different here: every picture has a seed of its own, pictures may have any size and aspect, and values are rounded to
8 bits, where the scripts truncate them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvp.sdk.errors import RequestError, near

from .data import Data, Row, Sample, row_of

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Strengths:
    """How strong each corruption is at severities 1 to 5.

    Attributes:
        noise: standard deviation of the Gaussian, for values in [0, 1].
        blur: standard deviation of the Gaussian, px.
        contrast: the share that is left of the distance from the mean.
        jpeg: Pillow's quality, 1 to 100.
        fog: the amount of fog added to values in [0, 1], and how steeply its amplitude falls with the scale.
    """

    noise: tuple[float, ...]
    blur: tuple[float, ...]
    contrast: tuple[float, ...]
    jpeg: tuple[int, ...]
    fog: tuple[tuple[float, float], ...]


CIFAR_10_C = Strengths(
    noise=(0.04, 0.06, 0.08, 0.09, 0.10),
    blur=(0.4, 0.6, 0.7, 0.8, 1.0),
    contrast=(0.75, 0.5, 0.4, 0.3, 0.15),
    jpeg=(80, 65, 58, 50, 40),
    fog=((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
)
TINY_IMAGENET_C = Strengths(
    noise=(0.04, 0.08, 0.12, 0.15, 0.18),
    blur=(0.5, 0.75, 1.0, 1.25, 1.5),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    jpeg=(65, 58, 50, 40, 25),
    fog=((0.4, 3.0), (0.7, 3.0), (1.0, 2.5), (1.5, 2.0), (2.0, 1.75)),
)
IMAGENET_C = Strengths(
    noise=(0.08, 0.12, 0.18, 0.26, 0.38),
    blur=(1.0, 2.0, 3.0, 4.0, 6.0),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    jpeg=(25, 18, 15, 10, 7),
    fog=((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
)


def strengths(height: int, width: int) -> Strengths:
    """Return the strengths of the published set whose pictures have about this size: 32, 64 or 224 px."""
    side = min(height, width)
    if side < 64:
        return CIFAR_10_C
    return TINY_IMAGENET_C if side < 128 else IMAGENET_C


def noise(values: NDArray[np.float64], deviation: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Add Gaussian noise, independent in each channel."""
    return values + rng.normal(scale=deviation, size=values.shape)


def blur(values: NDArray[np.float64], deviation: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Blur with a Gaussian that ends at four deviations; beyond the edge, the last pixel is repeated."""
    reach = int(4 * deviation + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        n = values.shape[axis]
        padded = np.pad(values, [(reach, reach) if i == axis else (0, 0) for i in range(3)], mode="edge")
        shifted = (np.take(padded, range(start, start + n), axis) for start in range(len(weights)))
        values = sum((weight * part for weight, part in zip(weights, shifted, strict=True)), np.zeros_like(values))
    return values


def contrast(values: NDArray[np.float64], share: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw each channel towards its mean."""
    mean: NDArray[np.float64] = values.mean((0, 1), keepdims=True)
    return (values - mean) * share + mean


def jpeg(values: NDArray[np.float64], quality: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Compress as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray((values * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float64) / 255


def fog(values: NDArray[np.float64], strength: tuple[float, float], rng: np.random.Generator) -> NDArray[np.float64]:
    """Add a cloud, then dim everything so that the brightest value stays the same."""
    amount, decay = strength
    height, width = values.shape[:2]
    brightest = values.max()
    cloud = plasma(max(height, width), decay, rng)[:height, :width, None]
    result: NDArray[np.float64] = (values + amount * cloud) * brightest / (brightest + amount)
    return result


def plasma(side: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Make a cloud in [0, 1] of at least (side, side), with the diamond-square algorithm on a torus.

    The midpoints of squares, then of their edges, become the mean of their four neighbours plus a random value. That
    value is uniform, and its range falls by decay² with each halving of the step.
    """
    n = max(2, 1 << (side - 1).bit_length())  # a power of two
    cloud = np.zeros((n, n))
    step, amplitude = n, 1.0

    def fill(rows: slice, columns: slice, total: NDArray[np.float64]) -> None:
        cloud[rows, columns] = total / 4 + rng.uniform(-amplitude, amplitude, total.shape)

    while step > 1:
        corners, middles = slice(0, n, step), slice(step // 2, n, step)
        corner = cloud[corners, corners]
        below = corner + np.roll(corner, -1, 0)
        fill(middles, middles, below + np.roll(below, -1, 1))
        middle = cloud[middles, middles]
        # Above and below a horizontal edge lie middles, left and right of it corners; a vertical one the other way.
        fill(corners, middles, middle + np.roll(middle, 1, 0) + corner + np.roll(corner, -1, 1))
        fill(middles, corners, middle + np.roll(middle, 1, 1) + corner + np.roll(corner, -1, 0))
        step //= 2
        amplitude /= decay**2
    cloud -= cloud.min()
    cloud /= cloud.max()
    return cloud


# name -> its function of values in [0, 1], (height, width, 3); results outside of the range are clipped.
CORRUPTIONS: dict[str, Callable[[NDArray[np.float64], Any, np.random.Generator], NDArray[np.float64]]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "jpeg": jpeg,
    "fog": fog,
}


def corrupt(picture: NDArray[np.uint8], name: str, severity: int, seed: int | tuple[int, ...]) -> NDArray[np.uint8]:
    """Corrupt a picture.

    Args:
        picture: uint8 (height, width, 3).
        name: one of CORRUPTIONS.
        severity: 1 to 5.
        seed: of the picture; the same at every severity, so that a higher severity is more of the same noise.

    Returns:
        uint8 (height, width, 3).

    Raises:
        RequestError: there is no such corruption or severity.
    """
    _check(name, severity)
    strength = getattr(strengths(*picture.shape[:2]), name)[severity - 1]
    values = CORRUPTIONS[name](picture / 255, strength, np.random.default_rng(seed))
    levels: NDArray[np.uint8] = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return levels


class Corrupted:
    """Another data set with its pictures corrupted; questions and captions stay the same."""

    def __init__(self, data: Data, name: str, severity: int, seed: int = 0) -> None:
        _check(name, severity)
        self._data, self._name, self._severity, self._seed = data, name, severity, seed

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Row | None:
        return row_of(self._data, index)

    def __getitem__(self, index: int) -> Sample:
        sample = self._data[index]
        return replace(sample, picture=corrupt(sample.picture, self._name, self._severity, (self._seed, index)))


def parse(text: str) -> list[tuple[str, int]]:
    """Read `NAME` (every severity), `NAME:SEVERITY`, `all` or `all:SEVERITY` as names and severities.

    Raises:
        RequestError: there is no such corruption or severity; the message has near matches.
    """
    name, colon, severity = text.partition(":")
    if name not in (*CORRUPTIONS, "all"):
        raise RequestError(
            f"There is no corruption {name!r}. There are {', '.join(CORRUPTIONS)}, and all."
            f"{near(name, [*CORRUPTIONS, 'all'])}"
        )
    if colon and severity not in map(str, SEVERITIES):
        raise RequestError(f"The severity {severity!r} of {name} is unknown. It is a whole number from 1 to 5.")
    names = list(CORRUPTIONS) if name == "all" else [name]
    return [(one, step) for one in names for step in ((int(severity),) if colon else SEVERITIES)]


def _check(name: str, severity: int) -> None:
    if severity not in SEVERITIES:
        raise RequestError(f"The severity {severity} is unknown. It is a whole number from 1 to 5.")
    if name not in CORRUPTIONS:
        raise RequestError(
            f"There is no corruption {name!r}. There are {', '.join(CORRUPTIONS)}.{near(name, CORRUPTIONS)}"
        )
