"""The folder that an export writes to: never overwritten by accident, replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvp.sdk.errors import BundleError


def refuse_to_overwrite(output: Path, force: bool) -> None:
    """Raise BundleError for a place that an export must not replace; force: a bundle may be replaced."""
    if output.name in ("", ".."):
        raise BundleError(f"{str(output)!r} is where you are, or above it; name a folder of the bundle's own.")
    if output.is_symlink():
        raise BundleError(f"{output} is a symbolic link; name the folder itself.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise BundleError(f"{output} exists already. Choose another folder, or replace it with --force.")
    # Web applications have a manifest.json too.
    if not all((output / name).is_file() for name in ("manifest.json", "base/manifest.json")):
        raise BundleError(f"{output} is not a bundle, so --force does not replace it. Choose another folder.")


@contextmanager
def written_whole(output: Path, force: bool) -> Iterator[Path]:
    """Give a folder to write in, which becomes `output` at the end, or vanishes where an error is raised."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the last step is one rename on the same disk.
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        yield work
        refuse_to_overwrite(output, force)
        os.chmod(work, 0o755)  # mkdtemp makes folders that only their owner reads
        _put(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, output: Path) -> None:
    """Move a finished bundle to its place; a bundle that was there goes only after the new one has come."""
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
