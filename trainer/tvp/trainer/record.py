"""What a prompt remembers of its task: name, question, labels, and the data that it was learned from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from tvp.sdk.errors import DataError, RequestError

from . import tasks
from .config import TrainConfig
from .data import Data, Pictures, Question, ThroughCamera, questions_of, row_of
from .data.sample import SPLITS, fifth
from .data.sources import QUESTION
from .task_definition import Match, TaskDefinition
from .typed import OWN

log = logging.getLogger("tvp.trainer")

FACT = "record"  # its key among a prompt's facts
N_SAMPLES = 16  # pictures that tell whether data is the same; large data is read only once


@dataclass(frozen=True)
class TaskRecord:
    """What a prompt was learned for.

    Attributes:
        name: of the task; of a custom one, the name of its data.
        task: what `--task` was given.
        question: asked of every picture; '' where questions differ, or none was asked.
        labels: the answers to choose from, in every question; empty where they differ, or answers are free.
        match: when an answer is right, see `TaskDefinition`.
        data: where the pictures are, as it was given; '' for drawn scenes.
        pictures: whether that is a folder of pictures without questions.
        parted: whether a fifth of the data was set aside for the test, see `fifth`.
        camera: what the pictures were seen through, as it was given; '' for the task's own camera.
        fingerprint: of some of the pictures, before any camera; '' for drawn scenes.
    """

    name: str
    task: str = ""
    question: str = ""
    labels: tuple[str, ...] = ()
    match: str = "exact"
    data: str = ""
    pictures: bool = False
    parted: bool = False
    camera: str = ""
    fingerprint: str = ""

    @staticmethod
    def of(config: TrainConfig, task: TaskDefinition, data: Data) -> TaskRecord:
        """Return the record of a run.

        Args:
            config: of the run.
            task: its task.
            data: its data.
        """
        bare = config.pictures or (config.pairs[0] if config.pairs else "")
        place = bare or config.data or task.source
        question, labels = shared(task, data)
        drawn = place == "scenes" or not place
        return TaskRecord(
            name_of(task, place),
            config.task,
            question,
            labels,
            task.match,
            "" if drawn else place,
            bool(bare),
            bool(not bare and not config.data and task.file and not task.test and Path(place).is_file()),
            config.camera,
            "" if drawn else fingerprint(data, task.camera is not None),
        )

    @staticmethod
    def read(facts: Mapping[str, Any]) -> TaskRecord | None:
        """Read the record among a prompt's facts; None where there is none, as in files of earlier versions.

        Of a lens and a frame that were put together, it is the frame's, which was learned for a task.
        """
        facts = facts["frame"] if isinstance(facts.get("frame"), dict) else facts
        found = facts.get(FACT)
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            return None
        values: dict[str, Any] = {}
        for item in fields(TaskRecord):
            value = found.get(item.name)
            if item.name == "labels" and isinstance(value, (list, tuple)):
                value = tuple(value) if all(isinstance(label, str) for label in value) else None
            if type(value) is {"labels": tuple, "pictures": bool, "parted": bool}.get(item.name, str):
                values[item.name] = value
        return TaskRecord(**values)

    @property
    def is_own(self) -> bool:
        """Whether the task is its user's, and none that TVP knows."""
        return self.task == OWN or tasks.is_task_file(self.task)

    def facts(self) -> dict[str, Any]:
        """Return the record as it is among a prompt's facts."""
        return asdict(self)

    def definition(self) -> TaskDefinition:
        """Return the task, with the name, question and labels that the prompt remembers."""
        try:
            task = tasks.through(tasks.get(self.task), self.camera)
        except (RequestError, DataError):  # a task file that is gone, or a task of another version
            task = tasks.get(OWN)
        match = self.match if self.match in get_args(Match) else task.match
        question, labels = self.question or task.question, self.labels or task.labels
        return replace(task, name=self.name, question=question, labels=labels, match=match)  # type: ignore[arg-type]

    def open(self, task: TaskDefinition, *, allow_outside: bool = False) -> Data:
        """Open the data that the prompt was learned from.

        Args:
            task: what is asked about its pictures.
            allow_outside: as of `open_data`.

        Raises:
            DataError: it is not there any more, or holds other pictures now. A stranger's prompt may name any folder,
                and what is read goes into a bundle: so it must be the very data.
        """
        # The task's own camera is of its own data; what a device took is spoilt already.
        camera = task.camera if self.camera or not self.pictures else None
        bare = replace(task, camera=None)
        data: Data
        if self.pictures:
            data = asked_about(self.data, task, allow_outside)
        else:
            data = tasks.open_data(self.data, bare, "train", 0, 0, allow_outside=allow_outside)
            data = fifth(data, "train") if self.parted else data
        if fingerprint(data) != self.fingerprint:
            raise DataError(f"{self.data} holds other pictures now than those that the prompt was learned from.")
        return data if camera is None else ThroughCamera(data, camera, 7)


def asked_about(folder: str, task: TaskDefinition, allow_outside: bool = False) -> Pictures:
    """Open a folder of pictures without questions; each is asked the task's, whose answer nobody knows."""
    question = Question(task.question or QUESTION, "", task.labels)
    return Pictures(Path(folder), allow_outside=allow_outside, questions=[question])


def shared(task: TaskDefinition, data: Data) -> tuple[str, tuple[str, ...]]:
    """Return the question and the labels that all rows of the data have; without rows, those of the task.

    Where rows have different ones, or none, it is '' or (). The order of labels is that of the first row.
    """
    if not len(data) or row_of(data, 0) is None:
        return task.question, task.labels
    texts, sets = set(), set()
    first: tuple[str, ...] = ()
    for i in range(len(data)):
        for question in questions_of(data, i):
            first = first or question.labels
            texts.add(question.text)
            sets.add(frozenset(question.labels))
    text = next(iter(texts)) if len(texts) == 1 else ""
    return task.question or text, task.labels or (first if len(sets) == 1 else ())


def name_of(task: TaskDefinition, place: str) -> str:
    """Return the name of a task; of a custom one, that of the file or the folder of its data, or of what it is in."""
    if task.name != OWN or not place or place == "scenes":
        return task.name
    path = Path(place).absolute()
    name = path.stem if path.suffix == ".jsonl" else path.name
    is_split = any(name.lower() in names for names in SPLITS.values())
    return (path.parent.name if is_split else name) or task.name


def fingerprint(data: Data, through_camera: bool = False) -> str:
    """Return a sha256 of some pictures of the data and of their number.

    Args:
        data: the data.
        through_camera: whether a camera of TVP spoils its pictures. Then those before it are taken. Default False.
    """
    total = hashlib.sha256(str(len(data)).encode())
    for i in range(0, len(data), max(1, len(data) // N_SAMPLES)):
        sample = data[i]
        picture = sample.clean if through_camera and sample.clean is not None else sample.picture
        total.update(repr(picture.shape).encode())
        total.update(picture.tobytes())
    return total.hexdigest()
