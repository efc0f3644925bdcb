"""The moments of a bundle: what is usual of the features of the pictures that it was made for.

A picture is described by the mean of every channel of its features over the image tokens, and by the spread of every
channel over them. `moments.npy` holds mean and spread of these numbers over the export's pictures. How far another
picture's numbers are from them, in spreads, is its unlikeness: about 1 for pictures like those.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ._npy import read_header
from .manifest import LensManifest, TaskManifest

FILE = "moments.npy"
LEAST = 8  # pictures; of fewer, a spread is a guess
FLOOR = 0.02  # of the usual spread, is the least one: a channel that hardly moved would count its rounding
MOST = 2**18  # numbers of a picture; a real model has some thousands


def describe(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return a picture's numbers: the mean and the spread of every channel over its tokens.

    Args:
        features: (n_tokens, n_channels) of the vision encoder.

    Returns:
        (2 * n_channels,), means first; (n_channels,), the features themselves, where there is one token.
    """
    values: NDArray[np.float32] = features.astype(np.float32, copy=False)
    if len(values) == 1:
        row: NDArray[np.float32] = values[0]
        return row
    mean = values.mean(0)
    apart = values - mean
    spread = np.sqrt(np.einsum("tc,tc->c", apart, apart) / len(values))
    return np.concatenate([mean, spread])


@dataclass(frozen=True, eq=False)
class Moments:
    """What is usual of the pictures that a bundle was made for.

    Attributes:
        mean: of each number of `describe`, (n,).
        spread: of each, (n,), above 0; such that unlikeness is 1 on average over pictures like these.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    @staticmethod
    def of(pictures: Sequence[NDArray[np.floating]]) -> Moments:
        """Learn them from pictures, each as `describe` returns it.

        Few pictures are nearer to their own mean than others are. So each is compared with the rest of them, and the
        spreads are scaled by the mean of what comes out.

        Raises:
            ValueError: there are fewer than LEAST pictures, all are alike, or a number is not finite.
        """
        rows = np.asarray(pictures, np.float64)
        n = len(rows)
        if n < LEAST:
            raise ValueError(f"{n} pictures; at least {LEAST} are needed")
        mean = rows.mean(0)
        apart = rows - mean
        squares = (apart**2).sum(0)
        variance = squares / (n - 1)
        least = FLOOR**2 * variance.mean()
        if not (np.isfinite(least) and least > 0):
            raise ValueError("all pictures are alike, or a feature is not finite")
        # Of all but one picture: how far it is from their mean, and their variance.
        left = apart * (n / (n - 1))
        others = (squares - apart * left).clip(0) / (n - 2)
        usual = np.sqrt((left**2 / others.clip(least)).mean(1)).mean()
        spread = np.sqrt(variance.clip(least)) * usual
        return Moments(mean.astype(np.float32), spread.astype(np.float32))

    def unlikeness(self, features: NDArray[np.floating]) -> float:
        """Return how far a picture is from the usual ones: the root of the mean square over its numbers, in spreads.

        Args:
            features: (n_tokens, n_channels) of the vision encoder.
        """
        return root_mean_square(self.away(features))

    def away(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return how far each number of a picture is from the usual mean, in spreads, (n,).

        Args:
            features: (n_tokens, n_channels) of the vision encoder.

        Raises:
            BundleError: the moments are of other features.
        """
        found = describe(features)
        if found.shape != self.mean.shape:
            raise BundleError(
                f"{FILE} is about {self.mean.size} numbers of a picture, and the vision encoder gives {found.size}. "
                "Export the bundle again."
            )
        away: NDArray[np.float32] = (found - self.mean) / self.spread
        return away

    def write(self, folder: Path) -> None:
        """Write moments.npy into the folder of a bundle."""
        np.save(folder / FILE, np.stack([self.mean, self.spread]).astype("<f4"))


def root_mean_square(away: NDArray[np.floating]) -> float:
    """Return what unlikeness is of numbers that are so many spreads away, (n,)."""
    return float(np.sqrt(np.dot(away, away) / len(away)))


def moments_in(folder: Path, manifest: TaskManifest | LensManifest) -> Moments | None:
    """Return the moments of a bundle that is verified; None where it has none. Raises BundleError for damaged ones."""
    if not manifest.n_moment_pictures:
        return None
    if FILE not in manifest.files:
        raise BundleError(f"The manifest in {folder} does not list {FILE}. Export the bundle again.")
    return read_moments(folder)


def read_moments(folder: Path) -> Moments:
    """Read moments.npy in a folder; raises BundleError for anything else."""
    file = folder / FILE
    try:
        if not file.is_file() or file.stat().st_size > 8 * MOST + 2**12:
            raise BundleError(f"The moments {file} are missing or too large. Export the bundle again.")
        data = file.read_bytes()
        stream = io.BytesIO(data)
        shape, by_columns, dtype = read_header(stream)
        begin = stream.tell()
    except OSError as error:
        raise BundleError(f"The moments {file} cannot be read: {error.strerror or error}.") from error
    except BundleError:
        raise
    except Exception as error:  # a head may be anything
        raise BundleError(f"The moments {file} are damaged: {error}") from error
    n = shape[1] if len(shape) == 2 else 0
    if dtype != np.dtype("<f4") or by_columns or shape != (2, n) or n < 1 or len(data) != begin + 8 * n:
        raise BundleError(f"{file} is {dtype} {shape}; it must be float32 (2, n), by rows. Export the bundle again.")
    values = np.frombuffer(data, "<f4", offset=begin).reshape(2, n)
    if not np.isfinite(values).all() or not (values[1] > 0).all():
        raise BundleError(f"{file} must hold finite means, and spreads above 0. Export the bundle again.")
    return Moments(values[0], values[1])
