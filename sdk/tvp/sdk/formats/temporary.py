"""Files and folders that are written beside their place and then renamed, so that they are there whole or not at all.

A process that is killed leaves its temporary file behind. The next one that writes to the same place removes it: a lock
says whether the process that made it still lives.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .disk import room_for

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and so nothing is swept
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".partial"
YOUNG = 60  # seconds; a younger one may not be locked yet


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`, to be renamed to it. What is left of it at the end is removed.

    Raises:
        OSError: the disk is full; its `filename` is the target.
    """
    sweep(target)
    with room_for(target):
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=SUFFIX, dir=target.parent))
        lock = _lock(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)


@contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """Give an empty file beside `target`, to be renamed to it. It is removed if that did not happen.

    Raises:
        OSError: the disk is full; its `filename` is the target.
    """
    sweep(target)
    with room_for(target):
        # A unique name: two processes that write the same file must not write into each other's.
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=SUFFIX, dir=target.parent)
        os.close(handle)
        file = Path(name)
        lock = _lock(file)
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)
            _unlock(lock)


def readable(folder: Path) -> None:
    """Let everybody read a folder and its files, and nobody but their owner write: temporary ones are private."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def replace_folder(work: Path, target: Path) -> None:
    """Move a finished folder to `target`. A folder that is there is removed only when the new one is in place."""
    old = aside(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    try:
        os.rename(work, target)
    except BaseException:
        if not target.exists() and old.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def aside(target: Path) -> Path:
    """Return where `replace_folder` puts the folder before it, for the moment of the replacement."""
    return target.parent / f".{target.name}.replaced"


def sweep(target: Path) -> None:
    """Remove temporary files and folders for `target` that ended processes left."""
    for left in target.parent.glob(f".{_literal(target.name)}.????????{SUFFIX}"):
        with suppress(OSError):  # another process removed it, or it belongs to somebody else
            if left.is_symlink() or time.time() - left.stat().st_mtime < YOUNG:
                continue
            if (lock := _lock(left)) is not None:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
                _unlock(lock)


def _lock(path: Path) -> int | None:
    """Lock a file or a folder; returns its descriptor, or None where another process holds it or there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
