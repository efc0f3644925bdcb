"""Folders of pictures without questions, and pairs of such folders: what a camera spoilt, and clean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvp.sdk import errors, read_image
from tvp.sdk.formats.picture_files import files_below, is_picture

from .places import resolved_file
from .sample import Question, Row, Sample, report


class Pictures:
    """All pictures in a folder and in folders below it.

    Args:
        folder: the folder.
        skip_bad: a list, to which messages about files that are left out are appended. Default: such a file is an
            error.
        allow_outside: links may lead out of the folder. Default False.
        questions: asked about every picture; nobody knows the answers. Default: none.

    Raises:
        DataError: there is no folder, or no picture in it.
    """

    def __init__(
        self,
        folder: Path,
        skip_bad: list[str] | None = None,
        *,
        allow_outside: bool = False,
        questions: Sequence[Question] = (),
    ) -> None:
        self.folder, self._questions = folder, tuple(questions)
        self.files = list(_files(folder, skip_bad, allow_outside).values())

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> Row:
        file = str(self.files[index])
        return Row(file, file, self._questions)

    def __getitem__(self, index: int) -> Sample:
        return Sample(_read(self.files[index]), self._questions, "")


class Pairs:
    """Two folders of pictures with the same names: what a camera spoilt, and clean. Endings may differ.

    Args:
        spoilt, clean: the folders.
        skip_bad, allow_outside: as of `Pictures`.

    Raises:
        DataError: there is no such folder, the two are one, or they have no name in common.

    Attributes:
        alone: names that are in one folder only, and are left out.
    """

    def __init__(
        self, spoilt: Path, clean: Path, skip_bad: list[str] | None = None, *, allow_outside: bool = False
    ) -> None:
        if spoilt.resolve() == clean.resolve():
            raise errors.DataError(f"{spoilt} and {clean} are one folder. Name the spoilt pictures and the clean ones.")
        ours, theirs = (_files(folder, skip_bad, allow_outside) for folder in (spoilt, clean))
        self.alone = sorted(ours.keys() ^ theirs.keys())
        self.files = [(ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys())]
        if not self.files:
            raise errors.DataError(
                f"{spoilt} and {clean} have no pictures with the same names. A picture and its clean one have the same "
                "path in both folders; only their endings may differ."
            )

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> Row:
        file = str(self.files[index][0])
        return Row(file, file, ())

    def __getitem__(self, index: int) -> Sample:
        spoilt, clean = map(_read, self.files[index])
        return Sample(spoilt, (), "", clean)


def has_pictures(folder: Path) -> bool:
    """Return whether there is a picture in a folder or in folders below it."""
    return any(map(is_picture, files_below(folder)))


def _files(folder: Path, skip_bad: list[str] | None, allow_outside: bool) -> dict[str, Path]:
    """Return the pictures of a folder by their paths in it, without their endings."""
    if not folder.is_dir():
        raise errors.DataError(f"There is no folder {folder}. Name a folder of pictures.")
    root = folder.resolve()
    found: dict[str, Path] = {}
    for file in sorted(path for path in files_below(root) if is_picture(path)):
        name = file.relative_to(root).with_suffix("").as_posix()
        try:
            if name in found:
                raise errors.DataError(f"{folder} has two pictures {name}, with different endings. Leave one out.")
            found[name] = resolved_file(f"{folder} holds {file.relative_to(root)}", file, root, allow_outside)
        except errors.DataError as error:
            report(error, skip_bad)
    if not found:
        raise errors.DataError(f"{folder} holds no pictures.")
    return found


def _read(file: Path) -> NDArray[np.uint8]:
    try:
        return read_image(file)
    except errors.ImageError as error:
        raise errors.DataError(str(error)) from error  # which names the file
