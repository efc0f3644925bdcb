"""Which files of a folder are pictures, by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif")
# What file managers, notebooks and network drives leave behind, besides names that begin with a dot.
_LEFTOVERS = {
    "__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip


def is_picture(file: Path) -> bool:
    """Return whether a file is a picture by its name."""
    return file.suffix.lower() in SUFFIXES


def is_leftover(name: str) -> bool:
    """Return whether a file or a folder of this name is no data: hidden, or a leftover of some program."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def files_below(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder and in folders below it, but no leftovers; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_leftover(name)]
        yield from (Path(place, name) for name in names if not is_leftover(name))
