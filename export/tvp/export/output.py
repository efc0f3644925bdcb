"""The folder that an export writes to. It is never overwritten by accident, and replaced completely or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvp.sdk.errors import BundleError
from tvp.sdk.formats.temporary import aside, readable, replace_folder, temporary_folder

log = logging.getLogger("tvp.export")


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
    # Web applications have a manifest.json too. Only a lens bundle has no base.
    marks = [output / name for name in ("base/manifest.json", "preprocess.onnx")]
    if not (output / "manifest.json").is_file() or not any(mark.is_file() for mark in marks):
        raise BundleError(f"{output} is not a bundle, so --force does not replace it. Choose another folder.")


@contextmanager
def written_whole(output: Path, force: bool) -> Iterator[Path]:
    """Give a temporary folder to write in. At the end it becomes `output`; after an error it is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # It is beside `output`, so that the last step is one rename on the same disk.
    with temporary_folder(output) as work:
        yield work
        refuse_to_overwrite(output, force)
        readable(work)
        replace_folder(work, output)


def restore(output: Path) -> None:
    """Put back a bundle that an interrupted export had moved aside and not replaced."""
    old = aside(output)
    if (old / "manifest.json").is_file() and not output.exists():
        log.warning("An export that was to replace %s was interrupted. The bundle before it is put back.", output)
        os.rename(old, output)
