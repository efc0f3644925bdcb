"""Tasks: what is asked, what may be answered, and how a picture is fitted. Tasks are data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from tvp.sdk.errors import RequestError, near

from . import scenes
from .augment import AUGMENTATIONS
from .data import IMAGENETTE, Data, open_data
from .metrics import METRICS
from .prompt import Fit

__all__ = ["BAD_CAMERA", "CIFAR10", "TASKS", "Task", "get", "open_data", "open_usable"]

log = logging.getLogger("tvp.trainer")

# Dims to a third, tints towards orange and adds noise: the demo's task.
BAD_CAMERA = scenes.Camera(dim=0.32, cast=(1.0, 0.62, 0.38), noise=0.04)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
CLEVR_COUNTS = tuple(str(count) for count in range(3, 11))
# Scenes ask of number, kind and colour, never of left and right; a crop would cut shapes off.
FLIP = ("flip",)


@dataclass(frozen=True)
class Task:
    """A task.

    question: the question to ask where the data brings none, and what the sdk asks by default.
    labels: the answers to choose from; none for a task whose questions differ.
    source: the data that the task is about where none is named; '' for a task that needs --data.
    free: answer in free text, which must match exactly, even where a question has labels.
    fit: `crop` or `pad`, for pictures that are not square.
    camera: the camera that pictures are seen through. topics: what is asked about scenes.
    published: the data set that the task is about, which is published in a layout of its own (a name of
        data.sources.LAYOUTS); '' for none.
    caption: what the guide reads after "this is a photo of", for data with class names ({label}).
    metric: what is reported besides accuracy, one of metrics.METRICS.
    augment: the augmentations, of augment.AUGMENTATIONS, that leave every answer as it is.
    """

    name: str
    question: str = ""
    labels: tuple[str, ...] = ()
    source: str = ""
    free: bool = False
    fit: Fit = "crop"
    camera: scenes.Camera | None = None
    topics: tuple[str, ...] = scenes.TOPICS
    published: str = ""
    caption: str = "a {label}"
    metric: str = "accuracy"
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise RequestError(
                f"The task {self.name!r} has the metric {self.metric!r}; there are {', '.join(METRICS)}."
            )
        if unknown := [name for name in self.augment if name not in AUGMENTATIONS]:
            raise RequestError(
                f"The task {self.name!r} has the augmentation {unknown[0]!r}; there are {', '.join(AUGMENTATIONS)}."
            )


_TASKS = (
    Task("scenes", source="scenes", free=True, augment=FLIP),
    Task("bad-camera", source="scenes", free=True, camera=BAD_CAMERA, augment=FLIP),
    Task("recognition", source="scenes", topics=scenes.TASKS["recognition"], augment=FLIP),
    Task(
        "count",
        "How many objects are there?",
        scenes.COUNTS,
        source="scenes",
        topics=scenes.TASKS["counting"],
        augment=FLIP,
    ),
    Task("existence", labels=scenes.YES_NO, source="scenes", topics=scenes.TASKS["existence"], augment=FLIP),
    Task("reasoning", labels=scenes.TRUE_FALSE, source="scenes", topics=scenes.TASKS["reasoning"], augment=FLIP),
    Task("cifar10", "This is a photo of a", CIFAR10, published="cifar10", augment=AUGMENTATIONS),
    Task(
        "svhn",
        "This is a photo of the digit",
        DIGITS,
        published="svhn",
        caption="the digit {label}",
        augment=("crop", "colour"),  # a flipped 2 is none
    ),
    Task(
        "imagenette",
        "This is a photo of a",
        tuple(IMAGENETTE.values()),
        published="imagenette",
        augment=AUGMENTATIONS,
    ),
    Task(
        "clevr-count",
        "How many objects are there in this image? Answer with a single number.",
        CLEVR_COUNTS,
        fit="pad",  # a crop would cut objects off
        published="clevr",
        caption="{label} objects",
        augment=("flip", "colour"),
    ),
    Task(
        "hateful-memes",
        labels=("no", "yes"),
        fit="pad",
        published="hateful-memes",
        metric="auc",
        augment=("colour",),  # the text is part of the picture
    ),
    *(
        Task(
            f"pope-{kind}",
            labels=scenes.YES_NO,
            fit="pad",
            published=f"pope-{kind}",
            metric="pope",
            augment=("flip", "colour"),
        )
        for kind in ("random", "popular", "adversarial")
    ),
    Task("custom"),
)
# The same tasks through the bad camera; `bad-camera` alone asks about scenes in free text.
TASKS = {task.name: task for task in _TASKS} | {
    f"bad-camera-{name}": replace(task, name=f"bad-camera-{name}", camera=BAD_CAMERA)
    for task in _TASKS
    for name in [task.name]
    if name in ("count", "existence", "reasoning", "cifar10")
}


def open_usable(
    source: str, task: Task, split: str, n: int, seed: int, skip_bad: bool = False, download: bool = False
) -> Data:
    """`open_data`, with a warning that counts and lists the rows that were left out."""
    bad: list[str] = []
    data = open_data(source, task, split, n, seed, skip_bad=bad if skip_bad else None, download=download)
    if bad:
        log.warning("left out %d bad rows of %s:\n  %s", len(bad), source, "\n  ".join(bad))
    return data


def get(name: str) -> Task:
    """Look a task up; raises RequestError with near matches."""
    if name not in TASKS:
        raise RequestError(f"There is no task {name!r}; there are {', '.join(TASKS)}.{near(name, TASKS)}")
    return TASKS[name]
