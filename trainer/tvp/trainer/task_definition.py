"""What a task is: a question, its labels, the data that it is about, and how its answers are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tvp.sdk.errors import RequestError

from . import scenes
from .augment import AUGMENTATIONS
from .cameras import Camera
from .geometry import Fit

METRICS = ("accuracy", "auc", "pope")
Match = Literal["exact", "loose"]


@dataclass(frozen=True)
class TaskDefinition:
    """A task: what is asked about which pictures, and how answers are measured.

    Args:
        name: what `--task` calls it.
        question: what is asked about data that has no questions of its own, and what the sdk asks by default.
        labels: the answers to choose from; none for a task whose questions differ.
        source: the data to use where none is named; '' for a task that needs `--data`.
        free: answer in free text, even where a question has labels.
        fit: how a picture becomes a square, `crop` or `pad`.
        camera: the camera that pictures are seen through.
        topics: the topics of questions about scenes.
        published: the published data set that the task is about, a name of data.sources.PUBLISHED_SETS; '' for none.
        caption: for data with class names: what the guide reads after "this is a photo of", with {label} for the
            name.
        metric: what is reported besides accuracy, one of METRICS.
        match: when an answer is right: `exact`, the same text; `loose`, the same but for case, spaces and a final
            point.
        augment: the augmentations, of AUGMENTATIONS, that leave every answer as it is.
        test: the data to test on; '' where `source` has a test split of its own, or where a fifth of its pictures is
            set aside.
        pictures: folder of a device's pictures, for a lens without pairs; '' for none.
        like: the good pictures that these should be like.
        pairs: folders of spoilt and of clean pictures with the same names; none without pairs.
        file: the task file that it comes from; '' for a task that TVP knows.

    Raises:
        RequestError: the metric or an augmentation is unknown.
    """

    name: str
    question: str = ""
    labels: tuple[str, ...] = ()
    source: str = ""
    free: bool = False
    fit: Fit = "crop"
    camera: Camera | None = None
    topics: tuple[str, ...] = scenes.TOPICS
    published: str = ""
    caption: str = "a {label}"
    metric: str = "accuracy"
    match: Match = "exact"
    augment: tuple[str, ...] = ()
    test: str = ""
    pictures: str = ""
    like: str = ""
    pairs: tuple[str, ...] = ()
    file: str = ""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise RequestError(
                f"The task {self.name!r} has the unknown metric {self.metric!r}. There are {', '.join(METRICS)}."
            )
        if unknown := [name for name in self.augment if name not in AUGMENTATIONS]:
            raise RequestError(
                f"The task {self.name!r} has the unknown augmentation {unknown[0]!r}. "
                f"There are {', '.join(AUGMENTATIONS)}."
            )
