"""A bundle as one file: `name.tvp`, an uncompressed zip of exactly the files that its manifests list."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import BundleError
from ._sealed import MAX_MANIFEST
from .graph import read_graph
from .integrity import FileEntry, linked, verify
from .manifest import (
    BaseManifest,
    TaskManifest,
    bases_in,
    read_base_manifest,
    read_task_manifest,
)
from .temporary import readable, temporary_file, temporary_folder

MANIFESTS = ("manifest.json", "base/manifest.json")
MAX_FILES = 1024  # a real bundle has some twenty
BLOCK = 2**20  # bytes read at a time
MAX_READ = 2 * MAX_MANIFEST  # bytes; the largest single reads are of a manifest and of the zip's table of files
# zipfile raises these for archives that are damaged, encrypted or of an unknown kind.
NOT_INTACT = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)
AGAIN = "Get the file again, or make it with `tvp pack`."
EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's earliest time; with a fixed time, equal bundles are equal bytes


def pack(folder: Path, file: Path) -> None:
    """Write a bundle to one file. The file appears whole or not at all.

    Args:
        folder: of the bundle. Every digest in it is checked first.
        file: to write, usually NAME.tvp. It must not exist.

    Raises:
        BundleError: the bundle is damaged or has too many files, or `file` exists.
    """
    task, base = _manifests(folder)
    if (n_files := len(task.files) + len(base.files) + len(MANIFESTS)) > MAX_FILES:
        raise BundleError(f"{folder} has {n_files:,} files; a .tvp file holds at most {MAX_FILES:,}.")
    verify(folder, task.files)
    verify(folder / "base", base.files)
    if file.exists():
        raise BundleError(f"{file} exists already. Choose another name.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(file) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted([*MANIFESTS, *_listed(task, base)]):
                with (
                    archive.open(zipfile.ZipInfo(name, EPOCH), "w", force_zip64=True) as to,
                    open(folder / name, "rb") as f,
                ):
                    shutil.copyfileobj(f, to, BLOCK)
        temporary.chmod(0o644)
        os.replace(temporary, file)


def unpack(file: Path, folder: Path, expected: str = "") -> None:
    """Write the bundle in a `.tvp` file to a folder. The folder appears whole or not at all.

    The archive must hold exactly the files that its manifests list, with their sizes, uncompressed. This is checked
    before anything is written, so a file that would lie outside of the folder, be a link or grow is refused.
    If an intact bundle beside `folder` has the same base, its files are linked and not written again.

    Args:
        file: the `.tvp` file.
        folder: to write. It must not exist.
        expected: the `digest` that the file must have; '' (default) for any.

    Raises:
        BundleError: the file is damaged or not such an archive, or `folder` exists.
    """
    if folder.exists():
        raise BundleError(f"{folder} exists already. Choose another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as work, _opened(file) as (stream, archive):
            task, base = _read_manifests(archive, work, file, expected)
            listed = _listed(task, base)
            _refuse_unlisted(archive, listed, file)
            _refuse_graphs(stream, archive, listed, file)
            twin = next((f for f, other in bases_in(folder.parent) if other.digest == base.digest), None)
            for name, entry in listed.items():
                if not (twin and name.startswith("base/") and _shared(twin / name, entry, work / name)):
                    _extract(archive, name, entry, work / name, file)
            readable(work)
            os.rename(work, folder)
    except OSError as error:
        raise BundleError(
            f"{file} cannot be unpacked to {folder}: {error.strerror or error}. Choose another folder, or, if this one "
            "is in TVP's cache, set TVP_HOME to a folder that can be written."
        ) from error


def read_manifests(file: Path) -> tuple[TaskManifest, BaseManifest]:
    """Read the two manifests in a `.tvp` file; raises BundleError as `unpack` does. Nothing else is read."""
    try:
        with tempfile.TemporaryDirectory() as work, _opened(file) as (_, archive):
            return _read_manifests(archive, Path(work), file)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror or error}.") from error


def digest(file: Path) -> str:
    """Return the sha256 of the manifest in a `.tvp` file; it names the unpacked bundle in the cache."""
    try:
        with _opened(file) as (_, archive):
            return hashlib.sha256(archive.read(MANIFESTS[0])).hexdigest()
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror or error}.") from error


@contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, zipfile.ZipFile]]:
    """Open an archive that `pack` may have written; zipfile's errors become BundleErrors."""
    try:
        with _Reader(io.FileIO(file)) as stream, zipfile.ZipFile(stream) as archive:
            _refuse_unusual(archive, file)
            yield stream, archive
    except NOT_INTACT as error:
        raise BundleError(f"{file} is not an intact .tvp file: {error}. {AGAIN}") from error


def _read_manifests(
    archive: zipfile.ZipFile, work: Path, file: Path, expected: str = ""
) -> tuple[TaskManifest, BaseManifest]:
    """Write an archive's manifests to a folder and read them; see `unpack`."""
    (work / "base").mkdir()
    for name in MANIFESTS:
        (work / name).write_bytes(archive.read(name))
    if expected and hashlib.sha256((work / MANIFESTS[0]).read_bytes()).hexdigest() != expected:
        raise BundleError(f"{file} was replaced while it was read. Load it again.")
    return _manifests(work)


def _manifests(folder: Path) -> tuple[TaskManifest, BaseManifest]:
    task = read_task_manifest(folder / "manifest.json")
    base = read_base_manifest(folder / "base" / "manifest.json")
    if base.digest != task.base:
        raise BundleError(
            f"The task in {folder} was exported with the base {task.base[:16]}…, and its folder 'base' holds "
            f"{base.digest[:16]}…. Put the right base there or export again."
        )
    return task, base


def _listed(task: TaskManifest, base: BaseManifest) -> dict[str, FileEntry]:
    return {**task.files, **{f"base/{name}": entry for name, entry in base.files.items()}}


class _Reader(io.BufferedReader):
    """A file that refuses to read more than MAX_READ bytes at once.

    zipfile reads the table of files at an archive's end at once and makes an object of some hundred bytes for each
    entry before anybody can count them. A hostile table may be as long as the file.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_READ:
            raise zipfile.BadZipFile(f"its table of files has {size:,} bytes, more than any bundle's")
        return super().read(size)


def _refuse_unusual(archive: zipfile.ZipFile, file: Path) -> None:
    """Raise BundleError for an archive that `pack` cannot have written, whatever its manifests say."""
    entries, n_bytes = archive.infolist(), file.stat().st_size
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_FILES:
        raise BundleError(f"{file} holds {len(entries):,} files; a bundle has at most {MAX_FILES:,}. {AGAIN}")
    if len(set(names)) < len(names):
        raise BundleError(f"{file} holds a file twice: {next(n for n in names if names.count(n) > 1)!r}. {AGAIN}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise BundleError(f"{file}: {entry.filename!r} is compressed or encrypted; it must be neither. {AGAIN}")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise BundleError(f"{file}: {entry.filename!r} is a link or a device, not a file. {AGAIN}")
    if (total := sum(entry.file_size for entry in entries)) > n_bytes:
        raise BundleError(
            f"{file} is not an intact .tvp file: it has {n_bytes:,} bytes, and its files {total:,}. {AGAIN}"
        )
    for name in MANIFESTS:
        if name not in names:
            raise BundleError(f"{file} has no {name}; it is not a packed bundle. `tvp pack` makes one.")
        if archive.getinfo(name).file_size > MAX_MANIFEST:
            raise BundleError(f"{file}: {name} is larger than {MAX_MANIFEST >> 20} MiB; it is not a manifest.")


def _refuse_unlisted(archive: zipfile.ZipFile, listed: Mapping[str, FileEntry], file: Path) -> None:
    """Raise BundleError unless the archive holds exactly the listed files. Listed names lie inside of the bundle."""
    found = {entry.filename: entry.file_size for entry in archive.infolist() if entry.filename not in MANIFESTS}
    if unknown := sorted(found.keys() - listed.keys()):
        raise BundleError(f"{file} holds {unknown[0]!r}, which its manifests do not list. {AGAIN}")
    if missing := sorted(listed.keys() - found.keys()):
        raise BundleError(f"{file} lacks {missing[0]!r}, which its manifests list. {AGAIN}")
    for name, entry in listed.items():
        if found[name] != entry.size:
            raise BundleError(f"{file}: {name!r} has {found[name]} bytes, and its manifest says {entry.size}. {AGAIN}")


def _refuse_graphs(stream: BinaryIO, archive: zipfile.ZipFile, listed: Mapping[str, FileEntry], file: Path) -> None:
    """Raise BundleError for a graph that reads other files, or runs other operators, than a bundle's graphs do."""
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
        for name in (name for name in listed if name.endswith(".onnx")):
            with archive.open(name):  # zipfile compares the entry's own header with the table at the end
                begin = archive.getinfo(name).header_offset
            n_name, n_extra = struct.unpack_from("<HH", view, begin + 26)
            begin += 30 + n_name + n_extra
            beside = {PurePosixPath(other).name for other in listed if _folder(other) == _folder(name)}
            with view[begin : begin + listed[name].size] as graph:
                read_graph(graph, f"{file}: {name}").refuse_unusual(f"{file}: {name}", beside)


def _folder(name: str) -> PurePosixPath:
    return PurePosixPath(name).parent


def _shared(file: Path, entry: FileEntry, to: Path) -> bool:
    """Link a file of another bundle if it is intact; returns whether it was. Otherwise nothing is at `to`."""
    if not linked(file, to):
        return False
    try:
        verify(to.parent, {to.name: entry})
    except BundleError:
        to.unlink()
        return False
    return True


def _extract(archive: zipfile.ZipFile, name: str, entry: FileEntry, to: Path, file: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    total, left = hashlib.sha256(), entry.size
    with archive.open(name) as source, open(to, "xb") as target:
        while block := source.read(min(BLOCK, left)):
            total.update(block)
            target.write(block)
            left -= len(block)
    if left or total.hexdigest() != entry.sha256:
        raise BundleError(f"{file}: {name!r} is damaged: its sha256 is not the one in its manifest. {AGAIN}")
