"""What a task is: a question, its labels, the data that it is about, and how its answers are measured."""

from __future__ import annotations

from dataclasses import dataclass

from tvp.sdk.errors import RequestError

from . import scenes
from .augment import AUGMENTATIONS
from .prompt import Fit

METRICS = ("accuracy", "auc", "pope")


@dataclass(frozen=True)
class TaskDefinition:
    """A task.

    question: the question to ask where the data brings none, and what the sdk asks by default.
    labels: the answers to choose from; none for a task whose questions differ.
    source: the data that the task is about where none is named; '' for a task that needs --data.
    free: answer in free text, which must match exactly, even where a question has labels.
    fit: `crop` or `pad`, for pictures that are not square.
    camera: the camera that pictures are seen through. topics: what is asked about scenes.
    published: the data set that the task is about, which is published in a layout of its own (a name of
        data.sources.PUBLISHED_SETS); '' for none.
    caption: what the guide reads after "this is a photo of", for data with class names ({label}).
    metric: what is reported besides accuracy, one of METRICS.
    augment: the augmentations, of AUGMENTATIONS, that leave every answer as it is.
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
