"""Which kind of source a name or folder is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvp.sdk import read_image
from tvp.sdk.errors import DataError, RequestError

from ..task_definition import TaskDefinition
from .drawn import Scenes
from .folders import ClassFolder, is_class_folder
from .jsonl import Jsonl
from .memes import FILES as MEMES_FILES
from .memes import NAME as MEMES_NAME
from .memes import HatefulMemes
from .parquet import Parquet, parquet_files
from .pope import Pope
from .sample import SPLITS, Data, readable
from .through import ThroughCamera
from .vision import IMAGENETTE, Vision

log = logging.getLogger("tvp.trainer")

QUESTION = "What is in the photo?"  # of class folders and parquet, where the task has none
IMAGENETTE_SIZES = {"imagenette2": "full", "imagenette2-320": "320px", "imagenette2-160": "160px"}


@dataclass(frozen=True)
class PublishedSet:
    """A folder layout that a set is published in.

    marks: paths below the folder, of which one at least is there.
    open: opens a split of the set in such a folder; takes the folder, task, split, download and skip_bad.
    downloads: whether torchvision can fetch the set.
    """

    marks: tuple[str, ...]
    open: Callable[[Path, TaskDefinition, str, bool, list[str] | None], Data]
    downloads: bool = False

    def is_in(self, folder: Path) -> bool:
        return any((folder / mark).exists() for mark in self.marks)


def open_data(
    source: str,
    task: TaskDefinition,
    split: str,
    n: int,
    seed: int,
    size: int = 64,
    *,
    skip_bad: list[str] | None = None,
    download: bool = False,
) -> Data:
    """Open a data source for a task.

    source: '' for the task's own; `scenes`; a .jsonl file, or a file of the set that the task is of; or a folder,
        which is taken for the first of
        1. the layout that the task's data set is published in (PUBLISHED_SETS, by the task's `published`),
        2. parquet: train*.parquet and test*.parquet, in it or in its folder data,
        3. class folders: train/<class>/ and test/<class>/, or <class>/.
        For a JSONL file the split is the file's own: name one file for training and another for the test.
    split: `train` or `test`. Sets without (published) answers for the test give their validation pictures for it.
    n: how many scenes to draw; other sources give all that they have.
    seed: of scenes and of a camera's noise; train and test differ at any seed.
    size: side of a scene, px.
    skip_bad: leave bad rows and unreadable pictures out, and append what is wrong with each to this list. Every
        picture is read once for that. Without a list, a bad row is a DataError: when the source is opened, or for
        an unreadable picture when it is asked for.
    download: let torchvision fetch the task's data set into the folder, where it is not there yet.
    Raises RequestError for a task without data, DataError for data that is not there or not as it should be.
    """
    source = source or task.source
    if not source:
        raise RequestError(f"The task {task.name!r} has no data of its own; name some with --data.")
    if split not in SPLITS:
        raise RequestError(f"There is no split {split!r}; there are {' and '.join(SPLITS)}.")
    published = PUBLISHED_SETS.get(task.published)
    if download and not (published and published.downloads):
        able = ", ".join(name for name, other in PUBLISHED_SETS.items() if other.downloads)
        raise RequestError(f"The data of the task {task.name!r} cannot be downloaded; torchvision fetches {able}.")
    if source == "scenes":
        if task.source != "scenes":
            raise RequestError(f"The task {task.name!r} is not about scenes; name its data with --data.")
        n_questions = 1 if task.topics == ("number",) else 4  # there is one way to ask for a number
        return Scenes(n, seed * 2 + (split == "test"), size, n_questions, task.camera, task.topics)
    path = Path(source)
    if published and (download or (path.is_dir() and published.is_in(path))):
        data = published.open(path, task, split, download, skip_bad)
    elif path.is_dir():
        data = _open_folder(path, task, split, skip_bad)
    elif path.is_file():
        data = _open_file(path, task, split, skip_bad)
    else:
        raise DataError(
            f"There is no data source {source!r}; give 'scenes', a folder (of parquet files, of class folders, or "
            "as the task's data set is published), or a .jsonl file."
        )
    if skip_bad is not None:
        data = readable(data, skip_bad)
    return data if task.camera is None else ThroughCamera(data, task.camera, seed * 2 + (split == "test"))


def _open_file(file: Path, task: TaskDefinition, split: str, skip_bad: list[str] | None) -> Data:
    """A file of the task's published set, told by its name, or a JSONL file of one's own."""
    if task.published == "hateful-memes" and MEMES_NAME.fullmatch(file.name) and (file.parent / "img").is_dir():
        return HatefulMemes(file, skip_bad)
    if task.published.startswith("pope-") and file.suffix == ".json":
        _refuse_training_on_pope(file, task, split)
        return Pope(file, skip_bad)
    return Jsonl(file, skip_bad, task.labels, task.caption)


def _open_folder(folder: Path, task: TaskDefinition, split: str, skip_bad: list[str] | None) -> Data:
    question = task.question or QUESTION
    if any(parquet_files(folder, name) for name in SPLITS):
        return Parquet(folder, split, question, task.caption, task.labels, skip_bad)
    others = [name for name, other in PUBLISHED_SETS.items() if other.is_in(folder)]
    files = sorted(file.name for file in folder.glob("*.jsonl"))
    # The folders of another set's layout, or beside a JSONL file, hold pictures too, and are no classes.
    if not others and not files and is_class_folder(folder):
        return ClassFolder(folder, split, question, task.caption, task.labels, IMAGENETTE, skip_bad)
    published = PUBLISHED_SETS.get(task.published)
    looked = [f"{' or '.join(published.marks)} ({task.published})"] if published else []
    looked += [
        "train*.parquet or test*.parquet, in it or in its folder data",
        "train/<class>/ and test/<class>/, or two or more folders <class>/, with pictures",
    ]
    hint = f" It looks like the published set {others[0]}, which has a task of its own." if others else ""
    hint += f" To use one of its JSONL files, name the file: {', '.join(files)}." if files else ""
    raise DataError(
        f"{folder} is in no layout that the task {task.name!r} can read. Looked for: {'; '.join(looked)}.{hint}"
    )


def _vision(loader: str, splits: dict[str, dict[str, Any]], first: int = 0) -> Callable[..., Data]:
    def open_set(root: Path, task: TaskDefinition, split: str, download: bool, skip_bad: list[str] | None) -> Data:
        from torchvision import datasets

        chosen = dict(splits[split])
        if loader == "Imagenette":
            there = [size for name, size in IMAGENETTE_SIZES.items() if (root / name).is_dir()]
            chosen["size"] = there[0] if there else "320px"  # the canvas is smaller than that
        return Vision(
            getattr(datasets, loader), root, chosen, task.labels, task.question, task.caption, first, download
        )

    return open_set


def _open_memes(folder: Path, task: TaskDefinition, split: str, download: bool, skip_bad: list[str] | None) -> Data:
    names = MEMES_FILES[split]
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        raise DataError(f"{folder} has no {' or '.join(names)}; Hateful Memes has it beside the folder img.")
    if name != names[0]:
        log.warning("%s has no %s; the test is on %s", folder, names[0], name)
    return HatefulMemes(folder / name, skip_bad)


def _refuse_training_on_pope(place: Path, task: TaskDefinition, split: str) -> None:
    if split == "train":
        raise DataError(
            f"POPE has questions for the test only; {place} has nothing to train the task {task.name!r} on. "
            "Train on a JSONL file of your own, about other pictures, and test on POPE."
        )


def _pope(kind: str) -> PublishedSet:
    name = f"coco_pope_{kind}.json"

    def open_set(folder: Path, task: TaskDefinition, split: str, download: bool, skip_bad: list[str] | None) -> Data:
        _refuse_training_on_pope(folder, task, split)
        return Pope(folder / name, skip_bad)

    return PublishedSet((name,), open_set)


# The validation pictures of Imagenette and CLEVR are their test: the first has no others, the second keeps the
# answers of its test secret. Pictures are read by read_image, so that an unreadable one is named.
PUBLISHED_SETS = {
    "cifar10": PublishedSet(
        ("cifar-10-batches-py",), _vision("CIFAR10", {"train": {"train": True}, "test": {"train": False}}), True
    ),
    "svhn": PublishedSet(
        ("train_32x32.mat", "test_32x32.mat"),
        _vision("SVHN", {"train": {"split": "train"}, "test": {"split": "test"}}),
        True,
    ),
    "imagenette": PublishedSet(
        tuple(IMAGENETTE_SIZES),
        _vision(
            "Imagenette",
            {"train": {"split": "train", "loader": read_image}, "test": {"split": "val", "loader": read_image}},
        ),
        True,
    ),
    "clevr": PublishedSet(
        ("clevr/CLEVR_v1.0",),
        _vision(
            "CLEVRClassification",
            {"train": {"split": "train", "loader": read_image}, "test": {"split": "val", "loader": read_image}},
            first=3,
        ),
        True,
    ),
    "hateful-memes": PublishedSet(("img",), _open_memes),
    **{f"pope-{kind}": _pope(kind) for kind in ("random", "popular", "adversarial")},
}
