"""Which files belong to a data folder.

A stranger may have written the folder. It must not lead out of itself, to files that its reader can see and it cannot,
and it must not name a pipe or a device, which may never end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tvp.sdk.errors import DataError

# Windows into the kernel, whose files look like regular ones.
_KERNEL = ((os.sep, "proc"), (os.sep, "sys"))


def resolved(where: str, place: Path, root: Path, allow_outside: bool) -> Path:
    """Return a file or a folder with all links followed.

    Args:
        where: the beginning of messages, which says who names the place.
        place: the place.
        root: the data folder, itself resolved.
        allow_outside: the place may be outside of the data folder.

    Raises:
        DataError: there is nothing, or it is outside of the data folder, or no regular file and no folder.
    """
    try:
        found = place.resolve(strict=True)
        mode = found.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name that is too long, a circle of links
        raise DataError(f"{where}, but there is no file {str(place)[:300]!r}.") from error
    if not allow_outside and not found.is_relative_to(root):
        raise DataError(
            f"{where}, which is outside of the data folder {root}: it is {found}. Data may only name files in its own "
            "folder. Copy the file there; or, if you trust who wrote the data, use --allow-outside."
        )
    if found.parts[:2] in _KERNEL or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{where}, which is no regular file but a pipe, a device or the like. Leave it out.")
    return found


def resolved_file(where: str, place: Path, root: Path, allow_outside: bool) -> Path:
    """Return a file with all links followed; the arguments and errors are those of `resolved`."""
    found = resolved(where, place, root, allow_outside)
    if not found.is_file():
        raise DataError(f"{where}, which is a folder. Name a file.")
    return found
