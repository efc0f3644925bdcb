"""Are a bundle's files those that its manifest lists, and who else may write them? Sizes, sha256 digests, owners."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError

SETTLED = 2 * 10**9  # ns; the coarsest clock of a file system in use is FAT's
Identity = tuple[int, int, int, int, int, str]  # device, inode, size, times of content and inode in ns, sha256


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 of one file."""

    size: int
    sha256: str


def list_files(folder: Path, skip: str = "") -> dict[str, FileEntry]:
    """Return an entry for every file in a folder except its manifest.json.

    Args:
        folder: the folder of a bundle or of a base.
        skip: name of a folder directly inside it that is left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "manifest.json" and name.split("/")[0] != skip:
            found[name] = FileEntry(path.stat().st_size, sha256_of(path))
    return found


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(folder: Path, files: Mapping[str, FileEntry], known: set[Identity] | None = None) -> None:
    """Check size and sha256 of every file.

    A link is followed: hub clients keep the files of a bundle elsewhere, and the digest says what they must hold.

    Args:
        folder: where the files are.
        files: the entry of each file, by its name below the folder.
        known: files that were verified before. They are not hashed again; those verified now are added.

    Raises:
        BundleError: a file is missing, unreadable or damaged; the message names the first one.
    """
    known = set() if known is None else known
    for name, entry in files.items():
        path = folder / name
        try:
            if not path.is_file():
                raise BundleError(f"The bundle's file {path} is missing. Export or copy the bundle again.")
            now, status = time.time_ns(), path.stat()
            size = status.st_size
            if size != entry.size:
                raise BundleError(
                    f"The bundle's file {path} is damaged: it has {size} bytes, and its manifest says {entry.size}. "
                    "Export or copy the bundle again."
                )
            identity = _identity(status, entry)
            if identity in known:
                continue
            found = sha256_of(path)
        except OSError as error:
            raise BundleError(f"The bundle's file {path} cannot be read: {error.strerror or error}.") from error
        if found != entry.sha256:
            raise BundleError(
                f"The bundle's file {path} is damaged: its sha256 is {found[:16]}…, and its manifest says "
                f"{entry.sha256[:16]}…. Export or copy the bundle again."
            )
        if _is_settled(status, now):
            known.add(identity)


def identities(folder: Path, files: Mapping[str, FileEntry]) -> set[Identity]:
    """Return what tells each file from others and from itself once it is written again. Nothing is read.

    A file that is missing, or that was written just now, is left out.

    Args:
        folder: where the files are.
        files: the entry of each file, by its name below the folder.
    """
    found = set()
    for name, entry in files.items():
        try:
            now, status = time.time_ns(), (folder / name).stat()
        except OSError:
            continue
        if _is_settled(status, now):
            found.add(_identity(status, entry))
    return found


def _identity(status: os.stat_result, entry: FileEntry) -> Identity:
    times = status.st_mtime_ns, status.st_ctime_ns
    return (status.st_dev, status.st_ino, status.st_size, *times, entry.sha256)


def _is_settled(status: os.stat_result, now: int) -> bool:
    """Whether a change would show: a file that is written again within one tick of the clock keeps its times."""
    return now - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED


def refuse_links(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Raise BundleError for a file that is a link. Where no digest is checked, a link could lead to any file."""
    for name in files:
        if (folder / name).is_symlink():
            raise BundleError(f"The bundle's file {folder / name} is a link. Load the bundle with verify_files=True.")


def linked(file: Path, to: Path) -> bool:
    """Share a file of another bundle by a hard link; returns whether that was possible.

    It is not if the file does not belong to this user, if others may write to it, or if the disk has no links. Then
    nothing is at `to`. The content is not looked at: whoever calls this verifies it, before or after.

    Args:
        file: to share.
        to: the new link.
    """
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        os.link(file.resolve(), to)
    except OSError:
        return False
    if is_private(to.lstat()):  # of the link: `file` may be another one by now
        return True
    to.unlink()
    return False


def is_private(status: os.stat_result) -> bool:
    """Return whether a file or a folder belongs to this user, and nobody else may write to it."""
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user may read and write, and return it. What is loaded from it later is trusted.

    One that belongs to root and that others cannot write to will do too: a machine may be set up so.

    Raises:
        BundleError: somebody else may write to it.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if not hasattr(os, "getuid") or (status.st_uid == 0 and not status.st_mode & 0o022):
        return folder
    if status.st_uid != os.getuid():
        raise BundleError(
            f"The folder {folder} belongs to another user, who could change what is loaded from it. Remove it, or set "
            "TVP_HOME to a folder of your own."
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        folder.chmod(0o700)
    return folder
