"""The folder that an export writes to. It is never overwritten by accident, and replaced completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvp.sdk.errors import BundleError


def refuse_to_overwrite(output: Path, force: bool) -> None:
    """Raise BundleError if an export must not write to `output`. With `force`, it may replace a bundle."""
    if output.name in ("", ".."):
        raise BundleError(f"{str(output)!r} is the current folder or above it. Please name a folder for the bundle.")
    if output.is_symlink():
        raise BundleError(f"{output} is a symbolic link. Please name a folder instead.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise BundleError(f"{output} exists already. Choose another folder, or replace it with --force.")
    # Web applications have a manifest.json too.
    if not all((output / name).is_file() for name in ("manifest.json", "base/manifest.json")):
        raise BundleError(f"{output} is not a bundle, so --force does not replace it. Choose another folder.")


@contextmanager
def written_whole(output: Path, force: bool) -> Iterator[Path]:
    """Give a temporary folder to write in. At the end it becomes `output`; after an error it is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # It is beside `output`, so that the last step is one rename on the same disk.
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        yield work
        refuse_to_overwrite(output, force)
        os.chmod(work, 0o755)  # mkdtemp makes folders that only their owner can read
        _put(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, output: Path) -> None:
    """Move a finished bundle to `output`. A bundle that is there is removed only when the new one is in place."""
    old = output.with_name(f".{output.name}.replaced")
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(output, old)
    try:
        os.rename(work, output)
    except BaseException:
        if old.exists() and not output.exists():
            os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)
