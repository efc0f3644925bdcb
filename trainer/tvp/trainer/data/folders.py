"""A folder of class folders."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from tvp.sdk import errors, read_image
from tvp.sdk.formats.picture_files import SUFFIXES, files_below, is_leftover, is_picture

from .places import resolved, resolved_file
from .sample import CAPTION, SPLITS, Question, Row, Sample, check_names, chosen_for_test, report


class ClassFolder:
    """A folder that holds one folder of pictures for each class, named like the class (`_` is read as a space).

    The pictures are in root/<split>/<class>/ or in root/<class>/. Splits may be called train or training, and test,
    testing, val, valid or validation, in any case. Without splits, a fifth of each class is for the test: the same
    pictures on every machine and with every seed. The classes are those of the training pictures, sorted by name.
    Hidden files and leftovers of other programs, such as `.ipynb_checkpoints` and `@eaDir`, are no data. One file
    under several names is one picture.

    Args:
        root: the folder.
        split: `train` or `test`.
        question: asked about every picture.
        caption: what the guide reads, with {label} for the class.
        labels: the task's. If there are some, they are the classes, and every class folder must be one of them.
        rename: folder name -> class name, where they differ.
        skip_bad: a list, to which messages are appended about files that are left out: their names are not those of
            pictures, or they are links that lead elsewhere. Default: such a file is an error.
        allow_outside: links may lead out of the folder. Default False.

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
        *,
        allow_outside: bool = False,
    ) -> None:
        self._question, self._caption = question, caption
        self._root, self._allow_outside, self._skip_bad = root.resolve(), allow_outside, skip_bad
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
        # One picture is not for training and for the test.
        self._others = [path.resolve() for name, path in own.items() if name != split]
        self._class_of: dict[Path, str] = {}  # of each picture, by its resolved path
        self._files: list[Path] = []
        for path, name in classes.items():
            files = self._pictures(path, name)
            if not files:
                raise errors.DataError(f"The class folder {path} holds no pictures ({', '.join(SUFFIXES)}).")
            self._files += files if own else _share(files, split)
        if not self._files:
            raise errors.DataError(
                f"{folder} has no pictures for {split}: none of its {len(classes)} class folders holds "
                "two pictures or more."
            )

    def _pictures(self, folder: Path, name: str) -> list[Path]:
        """Return the pictures of a class, resolved, sorted by path; any other file is a bad row."""
        place = resolved(f"{self._root} has the class folder {folder}", folder, self._root, self._allow_outside)
        pictures: dict[Path, None] = {}
        for file in sorted(files_below(place), key=lambda path: path.relative_to(place).as_posix()):
            try:
                pictures[self._picture(file, folder / file.relative_to(place), name)] = None
            except errors.DataError as error:
                report(error, self._skip_bad)
        return list(pictures)

    def _picture(self, file: Path, shown: Path, name: str) -> Path:
        """Return a picture's resolved path.

        Args:
            file: the picture, or another file, or a link.
            shown: its path as the user knows it.
            name: the class.
        """
        if not is_picture(file):
            raise errors.DataError(
                f"{shown} is no picture by its name: names must end in {', '.join(SUFFIXES)}. Move it away."
            )
        if not stat.S_ISREG(file.lstat().st_mode):
            file = resolved_file(f"The pictures of {name!r} hold {shown}", file, self._root, self._allow_outside)
        if any(file.is_relative_to(other) for other in self._others):
            raise errors.DataError(f"{shown} is the picture {file} of the other split too. Leave one of them out.")
        owner = self._class_of.setdefault(file, name)
        if owner != name:
            raise errors.DataError(f"{shown} is a picture of {owner!r} and of {name!r}. Leave one of them out.")
        return file

    def __len__(self) -> int:
        return len(self._files)

    def row(self, index: int) -> Row:
        file = self._files[index]
        return Row(str(file), str(file), (Question(self._question, self._class_of[file], self.names),))

    def __getitem__(self, index: int) -> Sample:
        file = self._files[index]
        try:
            picture = read_image(file)
        except errors.ImageError as error:
            raise errors.DataError(str(error)) from error  # which names the file
        name = self._class_of[file]
        return Sample(picture, (Question(self._question, name, self.names),), self._caption.format(label=name))


def is_class_folder(root: Path) -> bool:
    """Whether a folder holds at least two class folders with pictures, or splits with class folders."""
    if own := _splits(root):
        return any(map(_holds_pictures, own.values()))
    return sum(map(_holds_pictures, _folders(root))) > 1


def _holds_pictures(folder: Path) -> bool:
    return any(map(is_picture, files_below(folder)))


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
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_leftover(path.name))


def _classes(folder: Path, rename: Mapping[str, str]) -> dict[Path, str]:
    return {path: rename.get(path.name) or path.name.replace("_", " ").strip() for path in _folders(folder)}


def _share(files: list[Path], split: str) -> list[Path]:
    """Return a split's share of the pictures of a class; a single picture is for training."""
    test = chosen_for_test(len(files))
    return [file for i, file in enumerate(files) if (i in test) == (split == "test")]
