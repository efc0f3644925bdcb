"""A folder of class folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tvp.sdk import errors, read_image

from .sample import CAPTION, SPLITS, Question, Sample, check_names, report

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
# What file managers leave behind, besides hidden files.
_NO_DATA = ("thumbs.db", "desktop.ini")
TEST_SHARE = 5  # of a folder without splits, every fifth picture of a class is for the test


class ClassFolder:
    """A folder with a folder of pictures for each class, named like the class (`_` is read as a space).

    Either root/<split>/<class>/…, with the splits train and test (or training, testing, val,
    valid, validation; in small letters or not), or root/<class>/….
    The second is split here: a fifth of each class's pictures, drawn the same way on every machine and at
    every seed, is for the test. The classes are those of the training pictures, in the order of their names.

    labels: the task's; where it has some, they are the classes, and every class folder must be one of them.
    rename: class names of folders that are called otherwise.
    skip_bad: files that are no pictures by their name are left out and their messages appended to it.
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
        # The classes that a model may answer with are the same in both splits, whichever pictures these hold.
        train_folder = own.get("train", folder)
        train = _classes(train_folder, rename or {})
        if not classes:
            raise errors.DataError(f"{root} holds no class folders; it needs one for each class, with its pictures.")
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
                f"{folder} has no pictures for {split}: {len(classes)} class folders, none of two pictures or more."
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
    """Whether a folder holds two class folders with pictures or more, or splits of them."""
    if own := _splits(root):
        return any(map(_holds_pictures, own.values()))
    return sum(map(_holds_pictures, _folders(root))) > 1


def _holds_pictures(folder: Path) -> bool:
    return any(map(_is_picture, folder.rglob("*")))


def _splits(root: Path) -> dict[str, Path]:
    """The split folders that hold class folders, by split; none for a folder that is not split."""
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
    """The pictures in a folder and the folders below it, by name; anything else there is a bad row."""
    pictures = []
    for file in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if file.is_dir() or file.name.startswith(".") or file.name.lower() in _NO_DATA:
            continue
        if _is_picture(file):
            pictures.append(file)
        else:
            message = (
                f"{file} is no picture by its name; what is read here ends in {', '.join(SUFFIXES)}. Move it away."
            )
            report(errors.DataError(message), skip_bad)
    return pictures


def _share(files: list[Path], split: str) -> list[Path]:
    """A split's share of a class's pictures; of one picture alone, training has it."""
    order = np.random.default_rng(0).permutation(len(files))  # not the run's seed: a test picture is one for good
    n_test = max(1, len(files) // TEST_SHARE) if len(files) > 1 else 0
    return [files[i] for i in sorted(order[:n_test] if split == "test" else order[n_test:])]
