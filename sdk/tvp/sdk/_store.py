"""The folder of this user's tasks and caches: $TVP_HOME, or ~/.tvp."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import BundleError, near
from .formats.archive import digest, unpack


def home() -> Path:
    """Return the folder that names are looked up in: $TVP_HOME, or ~/.tvp."""
    try:
        return Path(os.environ.get("TVP_HOME") or Path.home() / ".tvp")
    except RuntimeError:  # a user without a home, as in some containers, may still load a folder
        return Path("/nonexistent/.tvp")


def tasks() -> list[str]:
    """Return the names of the tasks under $TVP_HOME/tasks."""
    return sorted(path.parent.name for path in (home() / "tasks").glob("[!.]*/manifest.json"))


def find(task: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle.

    Args:
        task: a folder, a name under $TVP_HOME/tasks, or a `.tvp` file. A file is unpacked once, to $TVP_HOME/cache.

    Raises:
        BundleError: there is no such bundle, or it cannot be read.
    """
    try:
        return _find(Path(task), os.fspath(task)).absolute()
    except OSError as error:
        raise BundleError(f"The bundle {os.fspath(task)!r} cannot be read: {error.strerror or error}.") from error


def _find(path: Path, name: str) -> Path:
    if (path / "manifest.json").is_file():
        return path
    named = len(path.parts) == 1 and not (path.suffix == ".tvp" and path.is_file())
    if named and (home() / "tasks" / path / "manifest.json").is_file():
        return home() / "tasks" / path
    if path.is_dir():
        raise BundleError(f"The folder {path} has no manifest.json; it is not a bundle. `tvp export` makes one.")
    if path.is_file():
        if path.suffix != ".tvp":
            raise BundleError(f"{path} is a file; a bundle is a folder with a manifest.json, or a .tvp file.")
        return _unpacked(path)
    known = tasks()
    raise BundleError(
        f"There is no bundle {name!r}: no folder of that path, and {home() / 'tasks'} has "
        f"{', '.join(known) or 'no tasks'}.{near(name, known)} `tvp export` makes one."
    )


def _unpacked(file: Path) -> Path:
    expected = digest(file)
    folder = home() / "cache" / expected
    if not folder.exists():
        try:
            unpack(file, folder, expected)
        except BundleError:
            if not folder.exists():  # another process may have been faster
                raise
    return folder
