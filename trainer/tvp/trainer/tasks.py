"""Tasks: what is asked, what may be answered, and how a picture is fitted. Tasks are data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tvp.sdk.errors import DataError, RequestError, near

from . import scenes
from .data import Data, Jsonl, Parquet, Scenes
from .prompt import Fit

# Dims to a third, tints towards orange and adds noise: the demo's task.
BAD_CAMERA = scenes.Camera(dim=0.32, cast=(1.0, 0.62, 0.38), noise=0.04)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Task:
    """A task.

    question: the question to ask where the data brings none, and what the sdk asks by default.
    labels: the answers to choose from; none for a task whose questions differ.
    source: the data that the task is about where none is named; '' for a task that needs --data.
    free: answer in free text, which must match exactly, even where a question has labels.
    fit: `crop` or `pad`, for pictures that are not square.
    camera: for scenes, the camera that they are seen through.
    """

    name: str
    question: str = ""
    labels: tuple[str, ...] = ()
    source: str = ""
    free: bool = False
    fit: Fit = "crop"
    camera: scenes.Camera | None = None
    topics: tuple[str, ...] = scenes.TOPICS
    augment: tuple[str, ...] = ("flip",)


TASKS = {
    task.name: task
    for task in (
        Task("scenes", source="scenes", free=True),
        Task("bad-camera", source="scenes", free=True, camera=BAD_CAMERA),
        Task("recognition", source="scenes", topics=scenes.TASKS["recognition"]),
        Task("count", "How many objects are there?", scenes.COUNTS, source="scenes", topics=scenes.TASKS["counting"]),
        Task("existence", labels=scenes.YES_NO, source="scenes", topics=scenes.TASKS["existence"]),
        Task("reasoning", labels=scenes.TRUE_FALSE, source="scenes", topics=scenes.TASKS["reasoning"]),
        Task("cifar10", "This is a photo of a", CIFAR10),
        Task("custom"),
    )
}


def get(name: str) -> Task:
    """Look a task up; raises RequestError with near matches."""
    if name not in TASKS:
        raise RequestError(f"There is no task {name!r}; there are {', '.join(TASKS)}.{near(name, TASKS)}")
    return TASKS[name]


def open_data(source: str, task: Task, split: str, n: int, seed: int, size: int = 64) -> Data:
    """Open a data source for a task.

    source: '' for the task's own, `scenes`, a folder with train*.parquet and test*.parquet, or a
        .jsonl file. For a JSONL file the split is the file's own: name one file for training and another for the test.
    split: `train` or `test`.
    n: how many scenes to draw; other sources give all that they have.
    seed: for scenes; train and test scenes differ at any seed.
    """
    source = source or task.source
    if not source:
        raise RequestError(f"The task {task.name!r} has no data of its own; name some with --data.")
    if source == "scenes":
        if task.source != "scenes":
            raise RequestError(f"The task {task.name!r} is not about scenes; name its data with --data.")
        return Scenes(n, seed * 2 + (split == "test"), size, camera=task.camera, topics=task.topics)
    path = Path(source)
    if path.is_dir():
        return Parquet(path, split, task.question or "What is in the photo?")
    if path.is_file():
        return Jsonl(path)
    raise DataError(
        f"There is no data source {source!r}; give 'scenes', a folder with train.parquet and test.parquet, "
        "or a .jsonl file."
    )
