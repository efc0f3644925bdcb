"""Variations of training pictures. A task says which of them keep its answers true (`TaskDefinition.augment`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

SMALLEST_SHARE = 0.6  # of a picture's area that a crop keeps
COLOUR = 0.3  # brightness, contrast and saturation are each scaled by 1 ± this at most

AUGMENTATIONS = ("crop", "flip", "colour")


def augment(picture: NDArray[np.uint8], names: Sequence[str], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Vary a picture at random; the size stays the same.

    Args:
        picture: uint8 (height, width, 3).
        names: which variations: `crop` enlarges a part of 60 to 100 % of the area, in the picture's own aspect;
            `flip` mirrors left and right, half the time; `colour` changes brightness, contrast and saturation, each
            by up to 30 %.
        rng: the source of chance.

    Returns:
        uint8 (height, width, 3).
    """
    image = Image.fromarray(picture)
    if "crop" in names:
        share = float(rng.uniform(SMALLEST_SHARE, 1)) ** 0.5
        width, height = (max(1, round(side * share)) for side in image.size)
        left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
        box = (left, top, left + width, top + height)
        image = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
    if "flip" in names and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if "colour" in names:
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = change(image).enhance(float(rng.uniform(1 - COLOUR, 1 + COLOUR)))
    return np.asarray(image)
