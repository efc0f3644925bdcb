"""The kinds of parts that a camera can have: their values, their effects, and their five severities.

Severities are those that made CIFAR-10-C, Tiny ImageNet-C and ImageNet-C, by the size of the picture, wherever these
sets have the kind: noise, shot (1 / sqrt of their photons), blur, defocus, motion (a line that spreads as far as their
half Gaussian), resolution ("pixelate"), jpeg, fog, contrast and dead ("impulse noise"). The others are this project's.
Source: hendrycks/robustness, ImageNet-C/create_c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .effects import (
    Values,
    blur,
    contrast,
    dead,
    defocus,
    fog,
    grey,
    jpeg,
    motion,
    noise,
    overexpose,
    resolution,
    shot,
    vignette,
)

SEVERITIES = (1, 2, 3, 4, 5)
Number = float | tuple[float, float]  # fixed, or a range from which each picture draws its own
Effect = Callable[..., Values]
# Shorter side from which a published set's strengths hold, px: its pictures have 32, 64 or 224.
CIFAR_10_C, TINY_IMAGENET_C, IMAGENET_C = 0, 64, 128


@dataclass(frozen=True)
class Value:
    """A strength: its name and unit for messages, its range, and its default; without one it must be given."""

    name: str
    low: float
    high: float
    default: Number | None = None
    whole: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    Args:
        about: what it does, in a few words.
        effect: computes it; None for the factors of light, which a camera computes together with the noise behind.
        values: its strengths.
        severities: shorter side from which they hold, px -> the strengths at severities 1 to 5. A single number stands
            for the first strength, where the others have defaults.
        neutral: the first value that changes nothing, where there is one.
    """

    about: str
    effect: Effect | None
    values: tuple[Value, ...]
    severities: Mapping[int, tuple[float | tuple[float, ...], ...]]
    neutral: float | None

    def at(self, severity: int, height: int, width: int) -> tuple[Number, ...]:
        """Return the values of a severity for a picture of this size."""
        sizes = [side for side in self.severities if side <= min(height, width)]
        found = self.severities[max(sizes)][severity - 1]
        return self.filled(found if isinstance(found, tuple) else (found,))

    def filled(self, values: tuple[Number, ...]) -> tuple[Number, ...]:
        """Add the defaults of values that are left out."""
        rest = [value.default for value in self.values[len(values) :] if value.default is not None]
        return (*values, *rest)


def _photons(*counts: int) -> tuple[float, ...]:
    return tuple(round(count**-0.5, 4) for count in counts)


_SHARE = (0.0, 1.0)
_FACTOR = (0.0, 16.0)
_CAST = np.array([0.0, 0.38, 0.62])  # what the cast of the bad camera takes; it is this kind's severity 4

KINDS: dict[str, Kind] = {
    "gain": Kind(
        "a factor of all values: below 1 it is dark",
        None,
        (Value("factor", *_FACTOR),),
        {0: (0.8, 0.6, 0.45, 0.32, 0.2)},
        1,
    ),
    "cast": Kind(
        "a colour cast: a factor of each channel",
        None,
        tuple(Value(f"factor of {colour}", *_FACTOR) for colour in ("red", "green", "blue")),
        {0: tuple(tuple((1 - _CAST * step / 4).round(4).tolist()) for step in SEVERITIES)},
        None,
    ),
    "noise": Kind(
        "the noise of reading, alike at all levels",
        noise,
        (Value("deviation, where white is 1", *_SHARE),),
        {
            CIFAR_10_C: (0.04, 0.06, 0.08, 0.09, 0.10),
            TINY_IMAGENET_C: (0.04, 0.08, 0.12, 0.15, 0.18),
            IMAGENET_C: (0.08, 0.12, 0.18, 0.26, 0.38),
        },
        0,
    ),
    "shot": Kind(
        "shot noise, which grows with the light",
        shot,
        (Value("deviation of white, where white is 1", *_SHARE),),
        {
            CIFAR_10_C: _photons(500, 250, 100, 75, 50),
            TINY_IMAGENET_C: _photons(250, 100, 50, 30, 15),
            IMAGENET_C: _photons(60, 25, 12, 5, 3),
        },
        0,
    ),
    "blur": Kind(
        "a Gaussian blur",
        blur,
        (Value("deviation in px", 0.0, 32.0),),
        {
            CIFAR_10_C: (0.4, 0.6, 0.7, 0.8, 1.0),
            TINY_IMAGENET_C: (0.5, 0.75, 1.0, 1.25, 1.5),
            IMAGENET_C: (1.0, 2.0, 3.0, 4.0, 6.0),
        },
        0,
    ),
    "defocus": Kind(
        "out of focus: an even disc",
        defocus,
        (Value("radius in px", 0.0, 32.0),),
        {
            CIFAR_10_C: (0.3, 0.4, 0.5, 1.0, 1.5),
            TINY_IMAGENET_C: (0.5, 1.0, 1.5, 2.5, 3.0),
            IMAGENET_C: (3.0, 4.0, 6.0, 8.0, 10.0),
        },
        0,
    ),
    "motion": Kind(
        "motion blur: a line",
        motion,
        (Value("length in px", 0.0, 64.0), Value("angle in degrees", -180.0, 180.0, (-45.0, 45.0))),
        {
            CIFAR_10_C: (2.0, 3.0, 4.0, 4.5, 5.0),
            TINY_IMAGENET_C: (2.0, 3.0, 4.0, 5.0, 6.0),
            IMAGENET_C: (6.0, 10.0, 17.0, 25.0, 31.0),
        },
        0,
    ),
    "resolution": Kind(
        "fewer pixels, at the same size",
        resolution,
        (Value("share of the side", 0.001, 1.0),),
        {
            CIFAR_10_C: (0.95, 0.9, 0.85, 0.75, 0.65),
            TINY_IMAGENET_C: (0.9, 0.8, 0.7, 0.6, 0.5),
            IMAGENET_C: (0.6, 0.5, 0.4, 0.3, 0.25),
        },
        1,
    ),
    "jpeg": Kind(
        "JPEG compression",
        jpeg,
        (Value("quality, as in Pillow", 1.0, 100.0, whole=True),),
        {
            CIFAR_10_C: (80.0, 65.0, 58.0, 50.0, 40.0),
            TINY_IMAGENET_C: (65.0, 58.0, 50.0, 40.0, 25.0),
            IMAGENET_C: (25.0, 18.0, 15.0, 10.0, 7.0),
        },
        None,
    ),
    "fog": Kind(
        "a cloud before the picture",
        fog,
        (Value("amount, where white is 1", 0.0, 16.0), Value("how steeply fine structure fades", 1.0, 8.0, 2.0)),
        {
            CIFAR_10_C: ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
            TINY_IMAGENET_C: ((0.4, 3.0), (0.7, 3.0), (1.0, 2.5), (1.5, 2.0), (2.0, 1.75)),
            IMAGENET_C: ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        },
        0,
    ),
    "contrast": Kind(
        "less contrast",
        contrast,
        (Value("share that is left", *_SHARE),),
        {
            CIFAR_10_C: (0.75, 0.5, 0.4, 0.3, 0.15),
            TINY_IMAGENET_C: (0.4, 0.3, 0.2, 0.1, 0.05),
            IMAGENET_C: (0.4, 0.3, 0.2, 0.1, 0.05),
        },
        1,
    ),
    "overexposure": Kind(
        "too much light, cut off at white",
        overexpose,
        (Value("stops", 0.0, 8.0),),
        {0: (0.5, 1.0, 1.5, 2.0, 3.0)},
        0,
    ),
    "grey": Kind(
        "less colour",
        grey,
        (Value("share that is lost", *_SHARE),),
        {0: (0.2, 0.4, 0.6, 0.8, 1.0)},
        0,
    ),
    "dead": Kind(
        "dead pixels, black and white",
        dead,
        (Value("share of all pixels", *_SHARE),),
        {
            CIFAR_10_C: (0.01, 0.02, 0.03, 0.05, 0.07),
            TINY_IMAGENET_C: (0.01, 0.02, 0.05, 0.08, 0.14),
            IMAGENET_C: (0.03, 0.06, 0.09, 0.17, 0.27),
        },
        0,
    ),
    "vignette": Kind(
        "less light towards the corners",
        vignette,
        (Value("share that the corners lose", *_SHARE),),
        {0: (0.2, 0.4, 0.6, 0.8, 1.0)},
        0,
    ),
}
