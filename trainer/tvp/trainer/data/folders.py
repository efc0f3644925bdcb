"""A folder of class folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tvp.sdk import errors, read_image

from .sample import CAPTION, SPLITS, Question, Sample, check_names, report

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
# Files that file managers leave behind, besides hidden ones.
_NO_DATA = ("thumbs.db", "desktop.ini")
TEST_SHARE = 5  # in a folder without splits, one of five pictures of a class is for the test


class ClassFolder:
    """A folder that holds one folder of pictures for each class, named like the class (`_` is read as a space).

    The pictures are in root/<split>/<class>/ or in root/<class>/. Splits may be called train or training, and test,
    testing, val, valid or validation, in any case. Without splits, a fifth of each class is for the test: the same
    pictures on every machine and with every seed. The classes are those of the training pictures, sorted by name.

    Args:
        root: the folder.
        split: `train` or `test`.
        question: asked about every picture.
        caption: what the guide reads, with {label} for the class.
        labels: the task's. If there are some, they are the classes, and every class folder must be one of them.
        rename: folder name -> class name, where they differ.
        skip_bad: a list, to which messages are appended about files that are left out because their names are not
            those of pictures. Default: such a file is an error.

    Raises:
        DataError: the folder is laid out otherwise, or a file is bad.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        question: str,
        caption: str = CAPTION,
        labels: Sequence[str] = (),
        rename: Mapping[str, str] | None = None,
        skip_bad: list[str] | None = None,
    ) -> None:
        self._question, self._caption = question, caption
        own = _splits(root)
        if own and split not in own:
            raise errors.DataError(
                f"{root} has class folders in {', '.join(path.name for path in own.values())}, and none in "
                f"{' or '.join(SPLITS[split])}."
            )
        folder = own.get(split, root)
        classes = _classes(folder, rename or {})
        # The classes to choose from are the same in both splits, whichever pictures they hold.
        train_folder = own.get("train", folder)
        train = _classes(train_folder, rename or {})
        if not classes:
            raise errors.DataError(f"{root} holds no class folders. It needs one for each class, with its pictures.")
        check_names(str(folder), list(classes.values()), labels)
        check_names(str(train_folder), list(train.values()), labels)
        self.names = tuple(labels or train.values())
        if unknown := [path for path, name in classes.items() if name not in self.names]:
            raise errors.DataError(f"There are no training pictures of {unknown[0]}, but of {', '.join(self.names)}.")
        self._files: list[tuple[Path, str]] = []
        for path, name in classes.items():
            files = _pictures(path, skip_bad)
            if not files:
                raise errors.DataError(f"The class folder {path} holds no pictures ({', '.join(SUFFIXES)}).")
            self._files += [(file, name) for file in (files if own else _share(files, split))]
        if not self._files:
            raise errors.DataError(
                f"{folder} has no pictures for {split}: none of its {len(classes)} class folders holds "
                "two pictures or more."
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        file, name = self._files[index]
        try:
            picture = read_image(file)
        except errors.ImageError as error:
            raise errors.DataError(str(error)) from error  # which names the file
        return Sample(picture, (Question(self._question, name, self.names),), self._caption.format(label=name))


def is_class_folder(root: Path) -> bool:
    """Whether a folder holds at least two class folders with pictures, or splits with class folders."""
    if own := _splits(root):
        return any(map(_holds_pictures, own.values()))
    return sum(map(_holds_pictures, _folders(root))) > 1


def _holds_pictures(folder: Path) -> bool:
    return any(map(_is_picture, folder.rglob("*")))


def _splits(root: Path) -> dict[str, Path]:
    """Return the folder of each split; none for a folder without splits."""
    own: dict[str, Path] = {}
    there = {path.name.lower(): path for path in _folders(root) if _folders(path)}
    for split, names in SPLITS.items():
        if name := next((name for name in names if name in there), None):
            own[split] = there[name]
    return own


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes(folder: Path, rename: Mapping[str, str]) -> dict[Path, str]:
    return {path: rename.get(path.name) or path.name.replace("_", " ").strip() for path in _folders(folder)}


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def _pictures(folder: Path, skip_bad: list[str] | None) -> list[Path]:
    """Return the pictures in a folder and in folders below it, sorted by path; any other file is a bad row."""
    pictures = []
    for file in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if file.is_dir() or file.name.startswith(".") or file.name.lower() in _NO_DATA:
            continue
        if _is_picture(file):
            pictures.append(file)
        else:
            message = f"{file} is no picture by its name: names must end in {', '.join(SUFFIXES)}. Move it away."
            report(errors.DataError(message), skip_bad)
    return pictures


def _share(files: list[Path], split: str) -> list[Path]:
    """Return a split's share of the pictures of a class; a single picture is for training."""
    order = np.random.default_rng(0).permutation(len(files))  # not the run's seed: a test picture stays one
    n_test = max(1, len(files) // TEST_SHARE) if len(files) > 1 else 0
    return [files[i] for i in sorted(order[:n_test] if split == "test" else order[n_test:])]
