"""Data sets that torchvision loads, in torchvision's own folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvp.sdk import errors, read_image

from .sample import CAPTION, Question, Sample

IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class Vision:
    """A split of one of torchvision's classification sets.

    Args:
        loader: torchvision's class.
        root: the folder that it reads.
        split: its arguments that choose the split, such as {"train": False}.
        names: the classes, in the order of their numbers.
        question: asked about every picture.
        caption: what the guide reads, with {label} for the class.
        first: number of the first class. Default 0.
        download: download the set into root, if it is not there yet. Default False.

    Raises:
        DataError: torchvision does not find its files, or they are damaged.
    """

    def __init__(
        self,
        loader: Callable[..., Any],
        root: Path,
        split: Mapping[str, Any],
        names: Sequence[str],
        question: str,
        caption: str = CAPTION,
        first: int = 0,
        download: bool = False,
    ) -> None:
        self._name = getattr(loader, "__name__", str(loader))
        self._root, self.names, self._first = root, tuple(names), first
        self._question, self._caption = question, caption
        try:
            self._set = loader(root, **split, download=download)
            self._n = len(self._set)
        except Exception as error:  # torchvision passes on errors of pickle, scipy, json, zip and the network
            raise errors.DataError(
                f"torchvision's {self._name} cannot load {root} with {dict(split)}: {type(error).__name__}: {error}"
            ) from error
        if not self._n:
            raise errors.DataError(f"torchvision's {self._name} finds no pictures in {root} with {dict(split)}.")
        # Imagenette numbers the class folders that it finds: if one is missing, all later ones get wrong names.
        found = [name if isinstance(name, str) else name[0] for name in getattr(self._set, "classes", self.names)]
        if found != list(self.names):
            raise errors.DataError(f"{root} has the classes {found}, but {self._name} has {list(self.names)}.")

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Sample:
        where = f"{self._root}, picture {index} of {self._name}"
        try:
            image, target = self._set[index]
            picture = read_image(image)
        except errors.ImageError as error:
            raise errors.DataError(f"{where}: {error}") from error
        if target is None or not 0 <= target - self._first < len(self.names):
            raise errors.DataError(f"{where}: the label {target} is none of {', '.join(self.names)}.")
        name = self.names[target - self._first]
        return Sample(picture, (Question(self._question, name, self.names),), self._caption.format(label=name))
