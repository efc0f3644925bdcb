"""What a source of data gives, and what all sources share: subsets, the split, bad rows that are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tvp.sdk.errors import DataError, near

# How the files or folders of a split may be called. A set without test pictures, or that keeps their answers
# secret, is tested on its validation pictures; training never sees those.
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
CAPTION = "a {label}"


@dataclass(frozen=True)
class Question:
    """What is asked about a picture: the text, its answer, and the labels it is chosen from."""

    text: str
    answer: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A picture, uint8 (height, width, 3), what is asked about it, and its caption for the guide."""

    picture: NDArray[np.uint8]
    questions: tuple[Question, ...]
    caption: str


class Data(Protocol):
    """A finite, indexable set of samples; the same index always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Subset:
    """Some samples of another data set, by index."""

    def __init__(self, data: Data, indices: Sequence[int]) -> None:
        self._data, self._indices = data, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def picture_of(self, index: int) -> str:
        return picture_of(self._data, self._indices[index])

    def __getitem__(self, index: int) -> Sample:
        return self._data[self._indices[index]]


def picture_of(data: Data, index: int) -> str:
    """What names a sample's picture, where several samples may be about one."""
    named = getattr(data, "picture_of", None)
    return named(index) if named else str(index)


def split(data: Data, n_validation: int, seed: int) -> tuple[Data, Data]:
    """Split training data into (train, validation) without overlap, of pictures neither; at least one picture each."""
    about: dict[str, list[int]] = {}
    for i in range(len(data)):
        about.setdefault(picture_of(data, i), []).append(i)
    pictures = list(about.values())
    if len(pictures) < 2:
        raise DataError(f"A data set of {len(pictures)} picture(s) cannot be split into train and validation.")
    order = [pictures[i] for i in np.random.default_rng(seed).permutation(len(pictures))]
    n = n_samples = 0
    while n < len(order) - 1 and n_samples < max(1, n_validation):
        n_samples += len(order[n])
        n += 1
    train, validation = (list(chain.from_iterable(part)) for part in (order[n:], order[:n]))
    return Subset(data, train), Subset(data, validation)


def readable(data: Data, skip_bad: list[str]) -> Data:
    """Read every sample once and leave out those that cannot be read.

    skip_bad: what is wrong with each sample left out is appended to it.
    Raises DataError where none is left.
    """
    good = []
    for i in tqdm(range(len(data)), disable=None, desc="looking for bad rows"):
        try:
            data[i]
        except DataError as error:
            skip_bad.append(str(error))
        else:
            good.append(i)
    if not good:
        raise DataError(f"No row is left: all {len(data)} are bad. The last: {skip_bad[-1]}")
    return Subset(data, good)


def report(error: DataError, skip_bad: list[str] | None) -> None:
    """Raise a bad row's error, or append its message to the list where one is given."""
    if skip_bad is None:
        raise error
    skip_bad.append(str(error))


def check_names(where: str, names: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Check class names: every one a text, none twice, and all among the task's labels, if it has any.

    where: the file or folder that the names come from.
    """
    for name, count in Counter(names).items():
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where} has a class without a name, {name!r}; a model can only answer with a name.")
        if count > 1:
            raise DataError(f"{where} has {count} classes that are called {name!r}; a model cannot tell them apart.")
        if labels and name not in labels:
            raise DataError(
                f"{where} has the class {name!r}, which is none of the task's labels: {', '.join(labels)}."
                f"{near(name, labels)} Rename the class, or use the task 'custom'."
            )
