"""The moments of a bundle: what is usual of the features of the pictures that it is exported with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tvp.sdk import Task
from tvp.sdk.errors import DataError, RequestError
from tvp.sdk.formats.moments import LEAST, Moments, describe
from tvp.trainer.data import Data, picture_of
from tvp.trainer.families import Family
from tvp.trainer.prompt import Prompt

from .choices import N_PICTURES as N_PICTURES
from .parity import pixel_values

log = logging.getLogger("tvp.export")

Picture = NDArray[np.uint8]


def check_number(n_pictures: int) -> None:
    """Raise RequestError for a number of pictures that gives no moments, and is not 0."""
    if n_pictures and n_pictures < LEAST:
        raise RequestError(f"n_moment_pictures is {n_pictures}; it must be 0, for no moments, or at least {LEAST}.")


def different_pictures(data: Data, n_pictures: int) -> Iterator[Picture]:
    """Yield different pictures from all over a data set, whose rows may be in the order of their classes."""
    seen: set[str] = set()
    for index in np.random.default_rng(0).permutation(len(data)).tolist():
        if len(seen) == n_pictures:
            return
        if (name := picture_of(data, index)) in seen:
            continue
        try:
            picture = data[index].picture
        except DataError as error:  # the parity gate has read what it needs
            log.info("not among the pictures that say what is usual: %s", error)
            continue
        seen.add(name)
        yield picture


def moments_of(
    features: Callable[[Picture], NDArray[np.float32]], pictures: Iterable[Picture]
) -> tuple[Moments | None, int]:
    """Learn the moments of the features behind a prompt.

    Args:
        features: returns the vision encoder's features (n_tokens, n_channels) of a picture behind the prompt.
        pictures: different ones; none for no moments.

    Returns:
        The moments and the number of pictures behind them; None and 0 where there cannot be any.
    """
    rows = [describe(features(picture)) for picture in pictures]
    try:
        return (Moments.of(rows), len(rows)) if rows else (None, 0)
    except ValueError as error:
        log.warning("the bundle does not say how unlike a picture is: %s", error)
        return None, 0


def features_by(task: Task) -> Callable[[Picture], NDArray[np.float32]]:
    """Return what makes a picture's features in a loaded bundle."""

    def features(picture: Picture) -> NDArray[np.float32]:
        (seen,) = task.model.see(task.pixel_values(picture))
        return task.model.features(seen)

    return features


def features_of(family: Family, prompt: Prompt) -> Callable[[Picture], NDArray[np.float32]]:
    """Return what makes the same features in PyTorch."""

    @torch.no_grad()
    def features(picture: Picture) -> NDArray[np.float32]:
        pixels = pixel_values(family, prompt.geometry, prompt, picture)
        found = family.encode(pixels) if family.reads_question else family.see(pixels)
        return found.flatten(0, -2).float().cpu().numpy()

    return features
