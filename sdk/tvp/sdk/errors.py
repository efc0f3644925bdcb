"""Every error that TVP raises on purpose.

    TvpError
    ├── BundleError      not found, damaged (which file), of a newer format, another base
    ├── ImageError       unreadable, truncated, too large, empty
    ├── RequestError     a wrong question or option, no labels to rank, too long
    ├── AnswerError      an answer that ended before it had the structure that it must have
    ├── ProviderError    unknown, not available here, did not start
    ├── ModelError       unsupported architecture, checkpoint incomplete
    ├── DataError        an unusable row, with its file and line
    └── CheckError       parity gate or golden cases failed, with every difference

A message says what was asked, what was found, what is allowed and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AnswerError",
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
    """The root of the tree: `except TvpError` catches every error that TVP raises on purpose."""


class BundleError(TvpError):
    """A task bundle or its base cannot be used."""


class ImageError(TvpError):
    """A picture cannot be read."""


class RequestError(TvpError):
    """A question, a label or an option cannot be used."""


class AnswerError(TvpError):
    """An answer ended before it had the structure that was asked for, so there is none."""


class ProviderError(TvpError):
    """An execution provider of onnxruntime is unknown, is not available or did not start."""


class ModelError(TvpError):
    """A checkpoint is incomplete, or its architecture is not supported."""


class DataError(TvpError):
    """A data set or one of its rows cannot be used. The message names file and line."""


class CheckError(TvpError):
    """An exported bundle does not answer as the PyTorch model does.

    Attributes:
        differences: one line for each difference.
    """

    def __init__(self, message: str, differences: Iterable[str] = ()) -> None:
        self.differences = tuple(differences)
        super().__init__("\n  ".join([message, *self.differences]))


def near(name: str, known: Iterable[str], before: str = "") -> str:
    """Return ' Did you mean a or b?' for a misspelt name, or '' if no known name is close.

    Args:
        name: as it was given.
        known: the names that there are.
        before: what is put before each name that is told. Default: nothing.
    """
    import difflib  # of no use before a mistake

    known = list(known)
    matches = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    matches = matches or [other for other in known if other and (other in name or name in other)][:2]
    return f" Did you mean {' or '.join(before + match for match in matches)}?" if matches else ""
