"""How well the pictures of pairs lie on each other: recorded pairs may be shifted, and a lens cannot shift back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .data import Data
from .prompt import Geometry

N_PAIRS = 32  # whose shifts are measured
DETAIL = 0.12  # cycles per pixel: what is finer is mostly noise, and a blurred picture has none
WHITENING = 0.7  # 1 takes the phase alone, which noise and fog disturb most; 0 the picture's own contrast
MOST_SHIFT = 0.25  # of a picture's side
STEPS = 8  # of a pixel, in which the peak is looked for
NOISE = 1.0  # px: what noise and blur alone add to the spread of single pairs
# Of a side. A lens learned on zoo:blip2 (100 steps, scenes, the bad camera) gave back 80 % of what the camera took from
# aligned pairs and from pairs shifted by 1 px of 64; 71 % at 2 px and 15 % at 4 px.
HURTS = 1.5 / 64


@dataclass(frozen=True)
class Alignment:
    """The shift of spoilt pictures from their clean ones, in px of the canvas.

    Attributes:
        shift: that all pairs have in common, as of two cameras side by side.
        spread: the median distance of a pair's own shift from it, as of a camera in a hand. Noise adds to it.
        n: pairs that were measured.
        side: of the canvas.
    """

    shift: float
    spread: float
    n: int
    side: int

    @property
    def off(self) -> float:
        """How far pictures lie from their clean ones, as a share of the canvas's side."""
        return max(self.shift, self.spread if self.spread > NOISE else 0.0) / self.side

    @property
    def hurts(self) -> bool:
        """Whether a lens learns much less from such pairs."""
        return self.off >= HURTS

    def __str__(self) -> str:
        if self.off * self.side <= NOISE / 2:
            return f"pairs are aligned within {max(self.shift, 1 / STEPS):.1f} px of {self.side}"
        own = f", and each by about {self.spread:.0f} px more in its own way" if self.spread > NOISE else ""
        return f"pairs are shifted by {self.shift:.1f} px of {self.side}{own}"


def measure(data: Data, geometry: Geometry) -> Alignment:
    """Measure the shift of pairs, by phase correlation at the size that models are shown.

    Args:
        data: samples with clean pictures; some, spread over all, are read.
        geometry: how they lie on the canvas.
    """
    chosen = np.linspace(0, len(data) - 1, min(len(data), N_PAIRS), dtype=int).tolist()
    samples = [data[i] for i in chosen]
    crosses = [_cross(geometry.shrink(s.picture), geometry.shrink(s.clean)) for s in samples if s.clean is not None]
    common = _peak(np.mean(crosses, axis=0))
    spread = float(np.median([np.hypot(*(_peak(cross) - common)) for cross in crosses]))
    return Alignment(float(np.hypot(*common)), spread, len(crosses), geometry.canvas)


def _cross(spoilt: NDArray[np.uint8], clean: NDArray[np.uint8]) -> NDArray[np.complex128]:
    """Return the cross spectrum of two pictures, (side, side), in which every pair counts alike."""
    product = _spectrum(spoilt) * np.conj(_spectrum(clean))
    frequency = np.fft.fftfreq(len(product))
    radius = frequency[:, None] ** 2 + frequency**2
    strength = np.abs(product)
    cross = product / (strength + 1e-9) ** WHITENING * np.exp(-radius / (2 * DETAIL**2))
    return cross / (np.abs(cross).sum() + 1e-9)  # type: ignore[no-any-return]


def _spectrum(picture: NDArray[np.uint8]) -> NDArray[np.complex128]:
    grey = picture.mean(-1)
    line = np.hanning(len(grey) + 2)[1:-1]
    window = line[:, None] * line  # the edges of a shifted picture do not meet
    return np.fft.fft2((grey - (grey * window).sum() / window.sum()) * window)


def _peak(cross: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Return where two pictures fit best, (down, right) in px."""
    side = len(cross)
    reach = int(side * MOST_SHIFT) * STEPS
    offsets = np.arange(-reach, reach + 1)
    # The inverse transform at these places alone: a whole one, STEPS times as fine, takes several times as long.
    waves = np.exp(2j * np.pi / STEPS * np.outer(offsets, np.fft.fftfreq(side)))
    fit = (waves @ cross @ waves.T).real
    if fit.max() < 1e-3:  # there is nothing to see
        return np.zeros(2)
    down, right = np.unravel_index(fit.argmax(), fit.shape)
    return np.array([offsets[down], offsets[right]]) / STEPS
