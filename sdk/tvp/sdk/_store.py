"""The folder of this user's tasks and caches: $TVP_HOME, or ~/.tvp."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .errors import BundleError, near
from .formats.integrity import private_folder, sha256_of
from .formats.manifest import (
    BaseManifest,
    LensManifest,
    TaskManifest,
    read_base_manifest,
    read_lens_manifest,
    read_task_manifest,
)
from .formats.temporary import aside

log = logging.getLogger("tvp.sdk")


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


def read_manifests(task: str | os.PathLike[str]) -> tuple[TaskManifest, BaseManifest]:
    """Read the manifests of a bundle, as `find` finds it. A `.tvp` file is not unpacked for it."""
    if Path(task).suffix == ".tvp" and Path(task).is_file():
        from .formats import archive  # as in _unpacked

        return archive.read_manifests(Path(task))
    folder = find(task)
    return read_task_manifest(folder / "manifest.json"), read_base_manifest(folder / "base" / "manifest.json")


def read_lens(folder: Path) -> LensManifest | None:
    """Read the manifest of a lens bundle; None where the folder is none."""
    try:
        return read_lens_manifest(folder / "manifest.json")
    except (BundleError, OSError):
        return None


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
    old = aside(path) if path.name not in ("", "..") else path
    if (old / "manifest.json").is_file():
        raise BundleError(
            f"There is no bundle {name!r}: an export that was to replace it was interrupted. The bundle before it is "
            f"{old}; rename it, or export again."
        )
    known = tasks()
    raise BundleError(
        f"There is no bundle {name!r}: no folder of that path, and {home() / 'tasks'} has "
        f"{', '.join(known) or 'no tasks'}.{near(name, known)} `tvp export` makes one."
    )


def _unpacked(file: Path) -> Path:
    """Return the folder in the cache that holds a `.tvp` file's bundle; it is unpacked where it is not there yet."""
    # Imported with the first .tvp file: most bundles are folders, and zip files need many modules.
    import shutil

    from .formats import archive

    expected = archive.digest(file)
    try:
        folder = private_folder(home() / "cache") / expected
    except OSError as error:
        raise BundleError(
            f"{file} cannot be unpacked to {home() / 'cache'}: {error.strerror or error}. Please set TVP_HOME to a "
            "folder that can be written."
        ) from error
    if _is_copy(folder, expected):
        return folder
    if folder.is_symlink() or folder.exists():
        log.warning("%s is not what it is named after; it is unpacked again.", folder)
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    try:
        archive.unpack(file, folder, expected)
    except BundleError:
        if not _is_copy(folder, expected):  # another process may have been faster
            raise
    return folder


def _is_copy(folder: Path, expected: str) -> bool:
    """Return whether a folder holds the manifest of this sha256. `load` verifies the files that the manifest lists."""
    file = folder / "manifest.json"
    return not folder.is_symlink() and file.is_file() and sha256_of(file) == expected
