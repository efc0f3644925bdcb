"""From a canvas in [0, 1] to the pixels of a vision encoder: resized as by Pillow, normalised, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PixelFormat:
    """The pixels that a vision encoder takes: a square, with (value - mean) / std in each channel.

    Args:
        size: side of the square, px.
        mean: of red, green and blue, for values in [0, 1].
        std: of red, green and blue.
        filter: how the canvas is resized: `bicubic`, `bilinear` or `lanczos`. Default `bicubic`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    filter: str = "bicubic"


def _bicubic(x: float) -> float:
    x, a = abs(x), -0.5
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _bilinear(x: float) -> float:
    return max(0.0, 1 - abs(x))


def _lanczos(x: float) -> float:
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0


# name -> kernel and its reach, as in Pillow's Resample.c
KERNELS: dict[str, tuple[Callable[[float], float], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
    "lanczos": (_lanczos, 3.0),
}
ROUNDING = 1e-6  # of a value in [0, 1]; a thousandth of an 8-bit level is four times as much
PILLOW = {3: "bicubic", 2: "bilinear", 1: "lanczos"}  # Pillow's number -> name


@lru_cache(maxsize=32)
def resize_matrix(n_in: int, n_out: int, filter: str) -> Float[Tensor, "n_out n_in"]:
    """Return the weights with which a line of n_in pixels is resized to n_out pixels.

    Reproduces precompute_coeffs of Pillow's Resample.c: if the line shrinks, the kernel is stretched accordingly
    (antialiasing). The weights of each pixel add up to one.
    """
    kernel, reach = KERNELS[filter]
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        middle = (i + 0.5) * scale
        first = max(0, math.floor(middle - reach * stretch + 0.5))
        last = min(n_in, math.floor(middle + reach * stretch + 0.5))
        weights = np.array([kernel((j - middle + 0.5) / stretch) for j in range(first, last)])
        matrix[i, first:last] = weights / weights.sum()
    return torch.from_numpy(matrix)


def _clip(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip, and pass the whole gradient where a value equals a bound up to rounding, as all values of a zero frame do.

    There, minimum, maximum and clamp pass half of the gradient or none.
    """
    values = torch.where(values < low - ROUNDING, low, values)
    return torch.where(values > high + ROUNDING, high, values)


def to_pixels(canvas: Float[Tensor, "n 3 height width"], format: PixelFormat) -> Float[Tensor, "n 3 size size"]:
    """Resize and normalise a canvas in [0, 1]; differentiable.

    As Pillow does, it filters along the width, then along the height, and clips the filter's overshoot after each.
    The bounds are black and white; or the extremes of the canvas, if a prompt in the `free` range goes beyond them.
    """
    height, width = canvas.shape[-2:]
    if (height, width) != (format.size, format.size):
        low = canvas.detach().amin((1, 2, 3), keepdim=True).clamp(max=0.0)
        high = canvas.detach().amax((1, 2, 3), keepdim=True).clamp(min=1.0)
        across, down = (resize_matrix(n, format.size, format.filter).to(canvas) for n in (width, height))
        canvas = _clip(canvas @ across.T, low, high)
        canvas = _clip(down @ canvas, low, high)
    mean, std = (canvas.new_tensor(v).view(1, 3, 1, 1) for v in (format.mean, format.std))
    return (canvas - mean) / std
