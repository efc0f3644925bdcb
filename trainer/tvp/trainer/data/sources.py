"""Opening data: which source a name or a folder is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvp.sdk import read_image
from tvp.sdk.errors import DataError, RequestError
from tvp.sdk.formats.picture_files import is_leftover

from ..task_definition import TaskDefinition
from .drawn import Scenes
from .folders import ClassFolder, is_class_folder
from .jsonl import Jsonl
from .memes import FILES as MEMES_FILES
from .memes import NAME as MEMES_NAME
from .memes import HatefulMemes
from .parquet import Parquet, parquet_files
from .places import resolved_file
from .pope import Pope
from .sample import SPLITS, Data, fifth, readable
from .through import ThroughCamera
from .vision import IMAGENETTE, Vision

log = logging.getLogger("tvp.trainer")

QUESTION = "What is in the photo?"  # about class folders and parquet, if the task has none
IMAGENETTE_SIZES = {"imagenette2": "full", "imagenette2-320": "320px", "imagenette2-160": "160px"}


@dataclass(frozen=True)
class Opening:
    """How data is opened; the fields are arguments of `open_data`."""

    skip_bad: list[str] | None
    download: bool
    allow_outside: bool


@dataclass(frozen=True)
class PublishedSet:
    """A published data set, and the layout of its folder.

    Args:
        marks: paths below the folder; at least one of them is there.
        open: opens a split; its arguments are the folder, task, split, and how.
        downloads: whether torchvision can download the set. Default False.
    """

    marks: tuple[str, ...]
    open: Callable[[Path, TaskDefinition, str, Opening], Data]
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
    allow_outside: bool = False,
) -> Data:
    """Open a data source for a task.

    A folder is taken for the first of these that fits:

    1. the task's published data set (PUBLISHED_SETS), in the layout that it is published in;
    2. parquet: train*.parquet and test*.parquet, in the folder or in its folder data;
    3. class folders: train/<class>/ and test/<class>/, or <class>/.

    Args:
        source: '' for the task's own data, `scenes`, a folder, a .jsonl file, or a file of the task's published set.
            A JSONL file has no splits: use one file for training and another one for the test. Of the file that a
            task file names, a fifth is for the test, see `fifth`.
        task: the task.
        split: `train` or `test`. If a set has no published answers for its test, the test is its validation pictures.
        n: number of scenes to draw; other sources are opened whole.
        seed: of scenes and of the camera's noise; train and test differ with every seed.
        size: side of a scene, px. Default 64.
        skip_bad: a list. Bad rows and unreadable pictures are left out, and a message about each is appended. Every
            picture is read once for this. Default: a bad row is an error when the source is opened, and an
            unreadable picture is one when it is read.
        download: let torchvision download the task's data set into the folder, if it is not there yet. Default False.
        allow_outside: rows and links may lead out of the data folder, which is the folder of a JSONL file. Default
            False: such a row is a bad one.

    Raises:
        RequestError: the task has no data of its own, the split is unknown, or the set cannot be downloaded.
        DataError: the data is missing or bad.
    """
    is_own = not source  # the task's; of a file that is typed, every row is for the split
    source = source or (task.test if split == "test" else "") or task.source
    if not source and (task.pairs or task.pictures):
        raise RequestError(f"The task {task.name!r} has pictures without questions and answers. Name some with --data.")
    if not source:
        raise RequestError(f"The task {task.name!r} has no data of its own. Name some with --data.")
    if split not in SPLITS:
        raise RequestError(f"There is no split {split!r}. There are {' and '.join(SPLITS)}.")
    published = PUBLISHED_SETS.get(task.published)
    if download and not (published and published.downloads):
        able = ", ".join(name for name, other in PUBLISHED_SETS.items() if other.downloads)
        raise RequestError(f"The data of the task {task.name!r} cannot be downloaded; torchvision fetches {able}.")
    if source == "scenes":
        if task.source != "scenes":
            raise RequestError(f"The task {task.name!r} is not about scenes. Name its data with --data.")
        n_questions = 1 if task.topics == ("number",) else 4  # there is only one way to ask for a number
        return Scenes(n, seed * 2 + (split == "test"), size, n_questions, task.camera, task.topics)
    path, how = Path(source), Opening(skip_bad, download, allow_outside)
    if published and (download or (path.is_dir() and published.is_in(path))):
        data = published.open(path, task, split, how)
    elif path.is_dir():
        data = _open_folder(path, task, split, how)
    elif path.is_file():
        data = _open_file(path, task, split, how)
        if is_own and task.file and not task.test:
            data = fifth(data, split)
    else:
        raise DataError(
            f"There is no data source {source!r}. Name scenes, a .jsonl file, or a folder: of parquet files, of class "
            "folders, or of the task's published data set."
        )
    if skip_bad is not None:
        data = readable(data, skip_bad)
    return data if task.camera is None else ThroughCamera(data, task.camera, seed * 2 + (split == "test"))


def _open_file(file: Path, task: TaskDefinition, split: str, how: Opening) -> Data:
    """Open a file of the task's published set, which its name tells, or else a JSONL file."""
    if task.published == "hateful-memes" and MEMES_NAME.fullmatch(file.name) and (file.parent / "img").is_dir():
        return HatefulMemes(file, how.skip_bad, allow_outside=how.allow_outside)
    if task.published.startswith("pope-") and file.suffix == ".json":
        _refuse_training_on_pope(file, task, split)
        return Pope(file, how.skip_bad, allow_outside=how.allow_outside)
    rows = Jsonl(file, how.skip_bad, task.labels, task.caption, allow_outside=how.allow_outside)
    if rows.has_clean and task.camera is not None:
        raise DataError(
            f"{file} has clean pictures of its own, and the camera would spoil its pictures a second time. Leave the "
            "camera out (--camera none)."
        )
    return rows


def _open_folder(folder: Path, task: TaskDefinition, split: str, how: Opening) -> Data:
    question = task.question or QUESTION
    about = (question, task.caption, task.labels)
    if any(parquet_files(folder, name) for name in SPLITS):
        return Parquet(folder, split, *about, how.skip_bad, allow_outside=how.allow_outside)
    others = [name for name, other in PUBLISHED_SETS.items() if other.is_in(folder)]
    files = sorted(file.name for file in folder.glob("*.jsonl") if not is_leftover(file.name))
    # Folders of another published set, or beside a JSONL file, hold pictures too, but are no classes.
    if not others and not files and is_class_folder(folder):
        return ClassFolder(folder, split, *about, IMAGENETTE, how.skip_bad, allow_outside=how.allow_outside)
    published = PUBLISHED_SETS.get(task.published)
    looked = [f"{' or '.join(published.marks)} ({task.published})"] if published else []
    looked += [
        "train*.parquet or test*.parquet, in it or in its folder data",
        "train/<class>/ and test/<class>/, or two or more folders <class>/, with pictures",
    ]
    hint = f" It looks like the published set {others[0]}, which has a task of its own." if others else ""
    hint += f" To use one of its JSONL files, name the file: {', '.join(files)}." if files else ""
    raise DataError(
        f"{folder} has no layout that the task {task.name!r} can read. Looked for: {'; '.join(looked)}.{hint}"
    )


def _vision(loader: str, splits: dict[str, dict[str, Any]], first: int = 0) -> Callable[..., Data]:
    def open_set(root: Path, task: TaskDefinition, split: str, how: Opening) -> Data:
        from torchvision import datasets

        chosen = dict(splits[split])
        if loader == "CLEVRClassification":  # the others have no file for each picture
            top = root.resolve()
            chosen["loader"] = lambda file: read_image(resolved_file(str(file), Path(file), top, how.allow_outside))
        return Vision(
            getattr(datasets, loader), root, chosen, task.labels, task.question, task.caption, first, how.download
        )

    return open_set


def _open_imagenette(root: Path, task: TaskDefinition, split: str, how: Opening) -> Data:
    """Open Imagenette as class folders, because torchvision would read leftovers of other programs as pictures."""
    there = [name for name in IMAGENETTE_SIZES if (root / name).is_dir()]
    name = there[0] if there else "imagenette2-320"  # the canvas is smaller
    if how.download:
        from torchvision import datasets

        size = {"size": IMAGENETTE_SIZES[name]}
        Vision(datasets.Imagenette, root, size, task.labels, task.question, download=True)
    folder = root / name
    for part in ("train", "val"):
        for code, label in IMAGENETTE.items():
            if not (folder / part / code).is_dir():
                raise DataError(f"{folder} has no folder {part}/{code}, with pictures of {label}. Download it again.")
    return ClassFolder(
        folder,
        split,
        task.question,
        task.caption,
        task.labels,
        IMAGENETTE,
        how.skip_bad,
        allow_outside=how.allow_outside,
    )


def _open_memes(folder: Path, task: TaskDefinition, split: str, how: Opening) -> Data:
    names = MEMES_FILES[split]
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        raise DataError(f"{folder} has no {' or '.join(names)}. Hateful Memes has it beside the folder img.")
    if name != names[0]:
        log.warning("%s has no %s; the test is on %s", folder, names[0], name)
    return HatefulMemes(folder / name, how.skip_bad, allow_outside=how.allow_outside)


def _refuse_training_on_pope(place: Path, task: TaskDefinition, split: str) -> None:
    if split == "train":
        raise DataError(
            f"POPE has questions for the test only, so {place} cannot train the task {task.name!r}. "
            "Train on a JSONL file about other pictures, and test on POPE."
        )


def _pope(kind: str) -> PublishedSet:
    name = f"coco_pope_{kind}.json"

    def open_set(folder: Path, task: TaskDefinition, split: str, how: Opening) -> Data:
        _refuse_training_on_pope(folder, task, split)
        return Pope(folder / name, how.skip_bad, allow_outside=how.allow_outside)

    return PublishedSet((name,), open_set)


# The test of Imagenette and CLEVR is their validation pictures: Imagenette has no others, and CLEVR keeps the answers
# of its test secret.
PUBLISHED_SETS = {
    "cifar10": PublishedSet(
        ("cifar-10-batches-py",), _vision("CIFAR10", {"train": {"train": True}, "test": {"train": False}}), True
    ),
    "svhn": PublishedSet(
        ("train_32x32.mat", "test_32x32.mat"),
        _vision("SVHN", {"train": {"split": "train"}, "test": {"split": "test"}}),
        True,
    ),
    "imagenette": PublishedSet(tuple(IMAGENETTE_SIZES), _open_imagenette, True),
    "clevr": PublishedSet(
        ("clevr/CLEVR_v1.0",),
        _vision("CLEVRClassification", {"train": {"split": "train"}, "test": {"split": "val"}}, first=3),
        True,
    ),
    "hateful-memes": PublishedSet(("img",), _open_memes),
    **{f"pope-{kind}": _pope(kind) for kind in ("random", "popular", "adversarial")},
}
