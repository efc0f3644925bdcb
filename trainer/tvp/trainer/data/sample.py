"""Samples, and the common parts of all sources: subsets, the validation split, and leaving bad rows out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tvp.sdk.errors import DataError, near

from ..progress import bar

# Split -> possible names of its files or folders. If a set has no test pictures, or keeps their answers secret, its
# validation pictures are the test; training never sees them.
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
CAPTION = "a {label}"
TEST_SHARE = 5  # of data without splits, one of five pictures of a class is for the test


@dataclass(frozen=True)
class Question:
    """A question about a picture: its text, its right answer, and the labels to choose from."""

    text: str
    answer: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A picture with its questions.

    Attributes:
        picture: uint8 (height, width, 3), as models are shown it.
        questions: about the picture.
        caption: for the guide.
        clean: the picture before a camera spoilt it, uint8 (height, width, 3); None where no camera is known.
    """

    picture: NDArray[np.uint8]
    questions: tuple[Question, ...]
    caption: str
    clean: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Row:
    """A sample as its file has it, without the work of reading its picture.

    Attributes:
        where: its file and line, for messages.
        picture: the resolved path of its picture, or another name that only samples of this picture have.
        questions: about the picture.
    """

    where: str
    picture: str
    questions: tuple[Question, ...]


class Data(Protocol):
    """A finite, indexable set of samples; the same index always gives the same sample.

    Data that is read from files also has `row(index)`, see `row_of`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Subset:
    """Some samples of another data set, by index."""

    def __init__(self, data: Data, indices: Sequence[int]) -> None:
        self._data, self._indices = data, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def row(self, index: int) -> Row | None:
        return row_of(self._data, self._indices[index])

    def __getitem__(self, index: int) -> Sample:
        return self._data[self._indices[index]]


def row_of(data: Data, index: int) -> Row | None:
    """Return a sample's row; None if its data has no rows, as drawn scenes."""
    find = getattr(data, "row", None)
    return find(index) if find else None


def questions_of(data: Data, index: int) -> tuple[Question, ...]:
    """Return a sample's questions, without reading its picture where that is possible."""
    row = row_of(data, index)
    return row.questions if row else data[index].questions


def picture_of(data: Data, index: int) -> str:
    """Return a name that only samples of the same picture have, without reading the picture."""
    row = row_of(data, index)
    return row.picture if row else str(index)


def split(data: Data, n_validation: int, seed: int) -> tuple[Data, Data]:
    """Split training data into (train, validation), which have no picture in common, and each answer in both.

    Of rows whose answers can be read without their pictures, each answer has the same share in both parts, as nearly
    as whole pictures allow.

    Args:
        data: the training data.
        n_validation: samples for validation, at least; all samples of a picture stay together. Training keeps at
            least one picture.
        seed: of the choice.

    Raises:
        DataError: there are fewer than two pictures.
    """
    pictures = list(_by_picture(data).values())
    if len(pictures) < 2:
        raise DataError(f"A data set of {len(pictures)} picture(s) cannot be split into train and validation.")
    order = _evenly(data, [pictures[i] for i in np.random.default_rng(seed).permutation(len(pictures))])
    n = n_samples = 0
    while n < len(order) - 1 and n_samples < max(1, n_validation):
        n_samples += len(order[n])
        n += 1
    train, validation = (list(chain.from_iterable(part)) for part in (order[n:], order[:n]))
    return Subset(data, train), Subset(data, validation)


def fifth(data: Data, part: str) -> Data:
    """Return the `test` or the `train` part of data without splits: a fifth of the pictures, or the others.

    The parts have no picture in common, and are the same on every machine and with every seed. Of each answer that
    five pictures or more have, a fifth is for the test; of the other pictures together, too.
    """
    about = _by_picture(data)
    answered: dict[str, list[str]] = {}
    for picture in sorted(about):
        answered.setdefault(_first_answer(data, about[picture]), []).append(picture)
    rare = [picture for pictures in answered.values() if len(pictures) < TEST_SHARE for picture in pictures]
    groups = [pictures for pictures in answered.values() if len(pictures) >= TEST_SHARE] + [sorted(rare)]
    test = {group[i] for group in groups for i in chosen_for_test(len(group))}
    if part == "test" and not test:
        raise DataError("One picture cannot be split into training and test. Give more pictures.")
    wanted = [i for picture, rows in about.items() if (picture in test) == (part == "test") for i in rows]
    return Subset(data, sorted(wanted))


def _by_picture(data: Data) -> dict[str, list[int]]:
    """Return the samples of each picture."""
    about: dict[str, list[int]] = {}
    for i in range(len(data)):
        about.setdefault(picture_of(data, i), []).append(i)
    return about


def _first_answer(data: Data, samples: Sequence[int]) -> str:
    """Return the right answer to the first question about a picture; '' where there is none."""
    first = next(iter(questions_of(data, samples[0])), None)
    return first.answer if first else ""


def _evenly(data: Data, pictures: Sequence[list[int]]) -> list[list[int]]:
    """Return pictures in an order whose every beginning has each answer as often as the whole, as nearly as it can."""
    if row_of(data, 0) is None:  # scenes, whose answers cost a drawing
        return list(pictures)
    answers = [_first_answer(data, samples) for samples in pictures]
    total, seen = Counter(answers), Counter[str]()
    places: list[float] = []
    for answer in answers:
        places.append((seen[answer] + 0.5) / total[answer])
        seen[answer] += 1
    return [pictures[i] for i in np.argsort(places, kind="stable")]


def chosen_for_test(n: int) -> set[int]:
    """Return which of n pictures are for the test: a fifth; of two to nine, one; a single one is for training."""
    order = np.random.default_rng(0).permutation(n)  # not the run's seed: a test picture stays one
    return set(order[: max(1, n // TEST_SHARE) if n > 1 else 0].tolist())


def readable(data: Data, skip_bad: list[str]) -> Data:
    """Read every sample once, and leave out those that cannot be read.

    Args:
        data: the samples.
        skip_bad: a list, to which a message about each sample that is left out is appended.

    Raises:
        DataError: no sample is left.
    """
    good = []
    for i in bar(range(len(data)), "looking for bad rows"):
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
    """Raise the error of a bad row; or, if there is a list, append its message."""
    if skip_bad is None:
        raise error
    skip_bad.append(str(error))


def is_readable(text: str) -> bool:
    """Return whether a tokenizer can read a text: JSON and names of files can hold half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_names(where: str, names: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Check that every class name is a text, that none is there twice, and that all are labels of the task.

    Args:
        where: the file or folder that the names come from.
        names: the class names.
        labels: the task's; none allows any name.

    Raises:
        DataError: a name is wrong.
    """
    for name, count in Counter(names).items():
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where} has a class without a name, {name!r}. A model can only answer with a name.")
        if not is_readable(name):  # the bytes of a folder's name may be no text
            raise DataError(f"{where} has a class whose name is no text, {name!r}. Rename it.")
        if count > 1:
            raise DataError(f"{where} has {count} classes that are called {name!r}. A model cannot tell them apart.")
        if labels and name not in labels:
            raise DataError(
                f"{where} has the class {name!r}, which is none of the task's labels: {', '.join(labels)}."
                f"{near(name, labels)} Rename the class, or use the task 'custom'."
            )
