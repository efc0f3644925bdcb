"""The tasks that TVP knows, by name."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tvp.sdk.errors import RequestError, near

from . import cameras, scenes
from .augment import AUGMENTATIONS
from .data import IMAGENETTE, Data, open_data
from .data.labelled import with_inferred
from .task_definition import TaskDefinition
from .task_files import is_task_file, read_task

__all__ = [
    "BAD_CAMERA",
    "CIFAR10",
    "TASKS",
    "TaskDefinition",
    "get",
    "is_task_file",
    "open_data",
    "open_usable",
    "through",
]

log = logging.getLogger("tvp.trainer")

BAD_CAMERA = cameras.NAMED["bad"]  # the demo repairs it
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
CLEVR_COUNTS = tuple(str(count) for count in range(3, 11))
# Questions about scenes are never about left and right; a crop would cut shapes off.
FLIP = ("flip",)


_TASKS = (
    TaskDefinition("scenes", source="scenes", free=True, augment=FLIP),
    TaskDefinition("bad-camera", source="scenes", free=True, camera=BAD_CAMERA, augment=FLIP),
    TaskDefinition("recognition", source="scenes", topics=scenes.TASKS["recognition"], augment=FLIP),
    TaskDefinition(
        "count",
        "How many objects are there?",
        scenes.COUNTS,
        source="scenes",
        topics=scenes.TASKS["counting"],
        augment=FLIP,
    ),
    TaskDefinition("existence", labels=scenes.YES_NO, source="scenes", topics=scenes.TASKS["existence"], augment=FLIP),
    TaskDefinition(
        "reasoning", labels=scenes.TRUE_FALSE, source="scenes", topics=scenes.TASKS["reasoning"], augment=FLIP
    ),
    TaskDefinition("cifar10", "This is a photo of a", CIFAR10, published="cifar10", augment=AUGMENTATIONS),
    TaskDefinition(
        "svhn",
        "This is a photo of the digit",
        DIGITS,
        published="svhn",
        caption="the digit {label}",
        augment=("crop", "colour"),  # a mirrored 2 is no digit
    ),
    TaskDefinition(
        "imagenette",
        "This is a photo of a",
        tuple(IMAGENETTE.values()),
        published="imagenette",
        augment=AUGMENTATIONS,
    ),
    TaskDefinition(
        "clevr-count",
        "How many objects are there in this image? Answer with a single number.",
        CLEVR_COUNTS,
        fit="pad",  # a crop would cut objects off
        published="clevr",
        caption="{label} objects",
        augment=("flip", "colour"),
    ),
    TaskDefinition(
        "hateful-memes",
        labels=("no", "yes"),
        fit="pad",
        published="hateful-memes",
        metric="auc",
        augment=("colour",),  # the picture holds text
    ),
    *(
        TaskDefinition(
            f"pope-{kind}",
            labels=scenes.YES_NO,
            fit="pad",
            published=f"pope-{kind}",
            metric="pope",
            augment=("flip", "colour"),
        )
        for kind in ("random", "popular", "adversarial")
    ),
    TaskDefinition("custom", match="loose"),
)
# Some of these again, seen through the bad camera. `bad-camera` itself asks about scenes in free text.
TASKS = {task.name: task for task in _TASKS} | {
    f"bad-camera-{name}": replace(task, name=f"bad-camera-{name}", camera=BAD_CAMERA)
    for task in _TASKS
    for name in [task.name]
    if name in ("count", "existence", "reasoning", "cifar10")
}


def open_usable(
    source: str,
    task: TaskDefinition,
    split: str,
    n: int,
    seed: int,
    skip_bad: bool = False,
    download: bool = False,
    allow_outside: bool = False,
) -> Data:
    """Open data as `open_data` does. Rows without labels get those that their few answers are; a warning says so.

    Args:
        skip_bad: leave bad rows out, and list them in a warning. Default False: a bad row is a DataError.
    """
    bad: list[str] = []
    data = open_data(
        source,
        task,
        split,
        n,
        seed,
        skip_bad=bad if skip_bad else None,
        download=download,
        allow_outside=allow_outside,
    )
    if bad:
        log.warning("left %d bad rows of %s out:\n  %s", len(bad), source, "\n  ".join(bad))
    return data if task.free or task.published else with_inferred(data)


def get(name: str) -> TaskDefinition:
    """Look a task up by its name, or read a task file, whose name ends with .toml.

    Raises:
        RequestError: there is none; the message has near matches.
        DataError: the file is no task file.
    """
    if is_task_file(name):
        return read_task(Path(name))
    if name not in TASKS and (Path(name) / "task.toml").is_file():
        raise RequestError(f"{name} is a folder. Its task file is {Path(name) / 'task.toml'}; name that.")
    if name not in TASKS:
        raise RequestError(
            f"There is no task {name!r}. There are {', '.join(TASKS)}; or name a task file (.toml), which `tvp init` "
            f"writes.{near(name, TASKS)}"
        )
    return TASKS[name]


def through(task: TaskDefinition, camera: str) -> TaskDefinition:
    """Return a task whose pictures are seen through another camera.

    Args:
        task: the task.
        camera: as `cameras.parse` reads it: `none` for clean pictures, '' for the task's own camera.

    Raises:
        RequestError: the text is no camera.
    """
    if not camera:
        return task
    seen = cameras.parse(camera)
    return replace(task, camera=seen if seen.parts else None)
