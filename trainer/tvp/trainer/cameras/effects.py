"""What each part of a camera does to a picture.

An effect takes values, float64 (height, width, 3) with 1 for white, then its strengths, then a source of chance. It
returns values of the same shape, which may lie outside of [0, 1]: only a camera's end cuts them off, and an effect that
cannot go on without that (over-exposure, JPEG).

Noise, blur, contrast, JPEG and fog are those of Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", ICLR 2019 (arXiv 1903.12261). Different here: pictures may have any size and
aspect, and values are rounded to 8 bits, where the published scripts truncate them.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[np.float64]

GAMMA = 2.2  # of displays: a value is the light's 1 / 2.2th power
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's mode L


def expose(
    levels: NDArray[np.float32], gain: NDArray[np.float32], deviation: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Multiply by gains and add noise, as one step, in the arithmetic that the first prompts were learned with.

    Args:
        levels: (height, width, 3), with 255 for white.
        gain: factors of the channels, (1,) or (3,).
        deviation: of Gaussian noise, for white at 1. 0 draws nothing.
        rng: the source of chance.
    """
    seen = levels * gain
    if deviation:
        seen += rng.standard_normal(seen.shape, np.float32) * np.float32(deviation * 255)
    return seen


def noise(values: Values, deviation: float, rng: np.random.Generator) -> Values:
    """Add Gaussian noise, independent in each channel: the noise of reading a sensor."""
    return values + rng.normal(scale=deviation, size=values.shape)


def shot(values: Values, deviation: float, rng: np.random.Generator) -> Values:
    """Add the noise of counting photons, whose variance grows with the light; as a Gaussian.

    White that n photons make has the deviation 1 / sqrt(n). The same draw is used at every strength, which a Poisson
    distribution would not allow.
    """
    result: Values = values + np.sqrt(values.clip(0)) * rng.normal(scale=deviation, size=values.shape)
    return result


def blur(values: Values, deviation: float, rng: np.random.Generator) -> Values:
    """Blur with a Gaussian that ends at four deviations; beyond the edge, the last pixel is repeated."""
    reach = int(4 * deviation + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    height, width = values.shape[:2]
    padded = np.pad(values, [(reach, reach), (0, 0), (0, 0)], mode="edge")
    values = np.zeros(values.shape)
    for start, weight in enumerate(weights):
        values += weight * padded[start : start + height]
    padded = np.pad(values, [(0, 0), (reach, reach), (0, 0)], mode="edge")
    values = np.zeros(values.shape)
    for start, weight in enumerate(weights):
        values += weight * padded[:, start : start + width]
    return values


def defocus(values: Values, radius: float, rng: np.random.Generator) -> Values:
    """Blur with an even disc, as a lens that is out of focus does."""
    n = max(16, math.ceil(8 * radius))
    axis = (np.arange(n) + 0.5) / n * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    inside = y**2 + x**2 <= 1
    return _mean_at(values, np.stack([y[inside], x[inside]], 1) * radius)


def motion(values: Values, length: float, angle: float, rng: np.random.Generator) -> Values:
    """Blur along a line, as a steady movement during the exposure does; the angle is in degrees from horizontal."""
    n = max(16, math.ceil(8 * length))
    along = ((np.arange(n) + 0.5) / n - 0.5) * length
    turn = math.radians(angle)
    return _mean_at(values, np.stack([-along * math.sin(turn), along * math.cos(turn)], 1))


def _mean_at(values: Values, points: Values) -> Values:
    """Return the mean of a picture at points around each pixel, (n, 2) of (y, x) in px, which a half turn leaves alike.

    Between pixels the picture is interpolated linearly; beyond the edge, the last pixel is repeated.
    """
    reach = math.ceil(np.abs(points).max())
    kernel = np.zeros((2 * reach + 2, 2 * reach + 2))  # the last row and column stay empty
    corner = np.floor(points).astype(int)
    share = points - corner
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - down - share[:, 0]) * np.abs(1 - right - share[:, 1]) / len(points)
            np.add.at(kernel, (corner[:, 0] + reach + down, corner[:, 1] + reach + right), weight)
    kernel = kernel[:-1, :-1]
    height, width = values.shape[:2]
    padded = np.pad(values, [(reach, reach), (reach, reach), (0, 0)], mode="edge")
    size = padded.shape[:2]
    # A product of spectra convolves, which is the same for such points.
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, size)[:, :, None]
    whole: Values = np.fft.irfft2(spectrum, size, axes=(0, 1))
    return whole[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def resolution(values: Values, share: float, rng: np.random.Generator) -> Values:
    """Keep this share of the rows and columns: average over larger pixels, then repeat these."""
    height, width = values.shape[:2]
    smaller = max(1, int(width * share)), max(1, int(height * share))
    channels = []
    for i in range(3):
        image = Image.fromarray(values[..., i].astype(np.float32)).resize(smaller, Image.Resampling.BOX)
        channels.append(np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float64))
    return np.stack(channels, 2)


def jpeg(values: Values, quality: float, rng: np.random.Generator) -> Values:
    """Compress as JPEG."""
    buffer = io.BytesIO()
    picture = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    picture.save(buffer, "JPEG", quality=round(quality))
    return np.asarray(Image.open(buffer), np.float64) / 255


def fog(values: Values, amount: float, decay: float, rng: np.random.Generator) -> Values:
    """Add a cloud, then dim everything so that the brightest value stays the same."""
    height, width = values.shape[:2]
    brightest = values.max()
    cloud = plasma(max(height, width), decay, rng)[:height, :width, None]
    result: Values = (values + amount * cloud) * brightest / (brightest + amount)
    return result


def plasma(side: int, decay: float, rng: np.random.Generator) -> Values:
    """Make a cloud in [0, 1] of at least (side, side), with the diamond-square algorithm on a torus.

    The midpoints of squares, then of their edges, become the mean of their four neighbours plus a random value. That
    value is uniform, and its range falls by decay² with each halving of the step.
    """
    n = max(2, 1 << (side - 1).bit_length())  # a power of two
    cloud = np.zeros((n, n))
    step, amplitude = n, 1.0

    def fill(rows: slice, columns: slice, total: Values) -> None:
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


def contrast(values: Values, share: float, rng: np.random.Generator) -> Values:
    """Draw each channel towards its mean."""
    mean: Values = values.mean((0, 1), keepdims=True)
    return (values - mean) * share + mean


def overexpose(values: Values, stops: float, rng: np.random.Generator) -> Values:
    """Let in twice the light for each stop; what becomes brighter than white is white."""
    result: Values = (values * 2 ** (stops / GAMMA)).clip(max=1)
    return result


def grey(values: Values, share: float, rng: np.random.Generator) -> Values:
    """Replace this share of each channel by the picture's brightness."""
    brightness: Values = (values @ np.asarray(LUMA))[..., None]
    return values * (1 - share) + brightness * share


def dead(values: Values, share: float, rng: np.random.Generator) -> Values:
    """Make this share of all pixels black or white, as many of each; a larger share has those of a smaller one."""
    place = rng.random(values.shape[:2])
    values = values.copy()
    values[place < share / 2] = 0
    values[place >= 1 - share / 2] = 1
    return values


def vignette(values: Values, share: float, rng: np.random.Generator) -> Values:
    """Take light away with the square of the distance from the middle; the corners lose this share."""
    height, width = values.shape[:2]
    y, x = (np.arange(n) - (n - 1) / 2 for n in (height, width))
    squared = y[:, None] ** 2 + x[None, :] ** 2
    left: Values = 1 - share * squared / max(squared.max(), 1e-9)
    return values * left[..., None]
