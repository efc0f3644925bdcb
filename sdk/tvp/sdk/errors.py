"""Every error that TVP raises on purpose.

    TvpError
    ├── BundleError      not found, damaged (which file), from a newer format, base mismatch
    ├── ImageError       unreadable, truncated, too large, empty
    ├── RequestError     bad question, bad option, no labels to rank, too long for the context
    ├── ProviderError    unknown, not available here, failed to start
    ├── ModelError       unsupported architecture, checkpoint incomplete
    ├── DataError        a row, with its file and line
    └── CheckError       parity or self-check failed, with every difference listed

A message says what was asked, what was found, what is allowed and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BundleError",
    "CheckError",
    "DataError",
    "ImageError",
    "ModelError",
    "ProviderError",
    "RequestError",
    "TvpError",
    "near",
]


class TvpError(Exception):
    """The root: `except TvpError` catches everything that TVP raises on purpose."""


class BundleError(TvpError):
    """A task bundle or its base cannot be used."""


class ImageError(TvpError):
    """A picture cannot be read."""


class RequestError(TvpError):
    """A question or an option is not one that can be answered."""


class ProviderError(TvpError):
    """An onnxruntime execution provider is unknown, absent or did not start."""


class ModelError(TvpError):
    """A checkpoint is of an architecture that is not supported, or is incomplete."""


class DataError(TvpError):
    """A data set or one of its rows is unusable; the message names file and line."""


class CheckError(TvpError):
    """An exported bundle does not answer as the PyTorch model does.

    Attributes:
        differences: one line for each difference found.
    """

    def __init__(self, message: str, differences: Iterable[str] = ()) -> None:
        self.differences = tuple(differences)
        super().__init__("\n  ".join([message, *self.differences]))


def near(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean a or b?' for a misspelt name, or '' where nothing is close."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    matches = matches or [other for other in known if other and (other in name or name in other)][:2]
    return f" Did you mean {' or '.join(matches)}?" if matches else ""
