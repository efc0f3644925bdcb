"""A disk that is full: how it is known, and named with the path that there was no room for."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
# What libraries say that do not pass the system's error on: of C++, of Rust, and numpy.
_SAID = re.compile(
    r"no space left on device|disk quota exceeded|os error (28|122)\b|\d+ requested and \d+ written", re.I
)


def is_full(error: BaseException) -> bool:
    """Return whether an error, or one that it comes from, says that a disk or a quota is full."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno is not None:
            if one.errno in FULL:
                return True
        elif _SAID.search(str(one)):
            return True
        one = one.__cause__ or one.__context__
    return False


@contextmanager
def room_for(target: Path) -> Iterator[None]:
    """Let an error that says that the disk is full name what there was no room for.

    Raises:
        OSError: the disk is full; its `filename` is the target.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        own = error.errno if isinstance(error, OSError) else None
        code = own if own in FULL and own is not None else errno.ENOSPC
        raise OSError(code, os.strerror(code), str(target)) from error


def told(error: OSError) -> str:
    """Return an error of the system in plain words."""
    if error.errno not in FULL or not error.filename:
        return str(error)
    what = "The disk is full" if error.errno == errno.ENOSPC else "Your share of the disk is full"
    return (
        f"{what}: there is no room for {error.filename}. Nothing half written is left. Free some room, and try again."
    )
