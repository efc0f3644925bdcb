"""What an export is about: the task of the bundle, and the pictures on which it is compared with PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from tvp.sdk.errors import RequestError, TvpError
from tvp.trainer import tasks
from tvp.trainer.data import Data, Row, Sample, Subset, questions_of, row_of
from tvp.trainer.prompt import Prompt
from tvp.trainer.record import TaskRecord, asked_about, name_of, shared
from tvp.trainer.task_definition import TaskDefinition
from tvp.trainer.typed import OWN

MOST_SIDE = 512  # px, of a golden picture that a prompt remembers: some of them go into the bundle
SHOWN = 6  # labels in a line


class NoTaskError(RequestError):
    """Nothing says what the task of the bundle is."""


@dataclass(frozen=True)
class About:
    """What an export is about.

    Attributes:
        task: of the bundle.
        data: pictures and questions for the comparison and the golden cases; None for drawn scenes.
        usual: pictures that say what is usual, where they are others than those of `data`; None for the same.
        has_pictures: whether the pictures are the task's own, and not drawn scenes.
        lines: what is told before the export.
        warnings: the same, of what its user may not want.
    """

    task: TaskDefinition
    data: Data | None
    usual: Data | None
    has_pictures: bool
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def about(
    typed: str | None,
    prompt: Prompt | None,
    data: str | None,
    question: str | None = None,
    labels: Sequence[str] = (),
    *,
    n_scenes: int = 16,
    allow_outside: bool = False,
    read: bool = True,
) -> About:
    """Find out what an export is about. What was typed wins, then what the prompt remembers, then what the data says.

    Args:
        typed: name of the task; None for the prompt's own, or that of the data.
        prompt: the prompt; None for none.
        data: as of `open_data`; None for the data that the prompt was learned from, where it is still there.
        question, labels: of the bundle. Default: the task's.
        n_scenes: number of scenes to draw for a task about them. Default 16.
        allow_outside: as of `open_data`.
        read: whether to read data. Default True.

    Raises:
        NoTaskError: nothing says what the task is.
        RequestError: there is no such task.
        DataError: the data that was named cannot be read.
    """
    record = None if prompt is None else TaskRecord.read(prompt.facts) or _of_before(prompt.facts)
    if typed is None and record is None and not data:
        raise NoTaskError(
            "Nothing says what the task of the bundle is. Name it (--task), or its pictures (--data), or a prompt that "
            "`tvp train` wrote (--prompt)."
        )
    own = record if record and (typed is None or tasks.get(typed).name in (record.task, record.name)) else None
    task = _task(typed, own)
    task = replace(task, question=question or task.question, labels=tuple(labels) or task.labels)
    warnings = _other_than_learned(record, task) if record else []
    lines: list[str] = []
    source: Data | None = None
    usual: Data | None = None
    # What learned from pictures alone, as a lens does, is for any task about such pictures.
    learned = own or (record if record and record.pictures else None)
    if learned and learned.data and read and not data:
        try:
            usual = learned.open(task, allow_outside=allow_outside)
        except TvpError as error:
            warnings.append(f"{error} Name the task's pictures with --data.")
        else:
            order = np.random.default_rng(7).permutation(len(usual)).tolist()  # many sets are sorted by class
            source = Shrunk(Subset(usual, order))
            lines.append(
                f"compared on pictures of {learned.data}, from which the prompt was learned; some go into the bundle"
            )
    bare = task.pictures or (task.pairs[0] if task.pairs else "")  # of a lens's task file: pictures without questions
    if read and source is None and bare and not data:
        source = asked_about(bare, task, allow_outside)
    if read and source is None and (data or task.source):
        source = tasks.open_usable(data or "", task, "test", n_scenes, seed=7, allow_outside=allow_outside)
        warnings += _other_rows(data or task.source, task, source)
        question, options = shared(task, source)
        task = replace(task, name=name_of(task, data or ""), question=question, labels=options)
    if read and source is None:
        asks = "" if task.question else " and their questions"
        warnings.append(f"The comparison is on drawn scenes{asks}, not on the task's own. Name some with --data.")
    if typed is None or task != tasks.get(typed):  # it is not what its user has typed
        lines.insert(0, _said(task))
    has_pictures = source is not None if read else bool(data or (learned and learned.data) or bare or task.source)
    return About(task, source, usual, has_pictures, tuple(lines), tuple(warnings))


class Shrunk:
    """Another source's samples, with pictures of at most MOST_SIDE px: a phone's photos would be most of a bundle."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Row | None:
        return row_of(self._data, index)

    def __getitem__(self, index: int) -> Sample:
        sample = self._data[index]
        if max(sample.picture.shape) <= MOST_SIDE:
            return sample
        picture = Image.fromarray(sample.picture)
        picture.thumbnail((MOST_SIDE, MOST_SIDE))
        return replace(sample, picture=np.asarray(picture), clean=None)


def _of_before(facts: dict[str, Any]) -> TaskRecord | None:
    """Return what a prompt file of an earlier version says of its task: its name, if it is no custom one."""
    facts = facts["frame"] if isinstance(facts.get("frame"), dict) else facts
    name = facts.get("task")
    if not isinstance(name, str) or name == OWN or name not in tasks.TASKS:
        return None
    task = tasks.get(name)
    return TaskRecord(name, name, task.question, task.labels)


def _task(typed: str | None, own: TaskRecord | None) -> TaskDefinition:
    if typed is None:
        return own.definition() if own else tasks.get(OWN)
    task = tasks.get(typed)
    if own is None:
        return task
    name = own.name if task.name == OWN else task.name
    known = replace(task, name=name, question=task.question or own.question, labels=task.labels or own.labels)
    return tasks.through(known, own.camera)


def _other_than_learned(record: TaskRecord, task: TaskDefinition) -> list[str]:
    """Say where the bundle asks something else than the prompt was learned for."""
    said = []
    if record.question and record.question != task.question:
        asks = f"the bundle asks {task.question!r}" if task.question else "the bundle has no question of its own"
        said.append(f"The prompt was learned for the question {record.question!r}, and {asks}.")
    if record.labels and set(record.labels) != set(task.labels):
        has = f"the bundle has {_some(task.labels)}" if task.labels else "the bundle has none"
        said.append(f"The prompt was learned for the labels {_some(record.labels)}, and {has}.")
    return said


def _other_rows(place: str, task: TaskDefinition, data: Data) -> list[str]:
    """Say where rows of data that was named ask something else than the bundle does."""
    if not task.question or row_of(data, 0) is None:
        return []
    for i in range(len(data)):
        for asked in questions_of(data, i):
            if asked.text != task.question:
                return [
                    f"Rows of {place} ask other questions than the task's {task.question!r}, such as {asked.text!r}. "
                    "The comparison asks the task's about their pictures."
                ]
    return []


def _said(task: TaskDefinition) -> str:
    asks = f"asks {task.question!r}" if task.question else "has no question of its own"
    return f"the task {task.name!r} {asks}, {f'with the labels {_some(task.labels)}' if task.labels else 'no labels'}"


def _some(labels: Sequence[str]) -> str:
    return ", ".join(map(repr, labels[:SHOWN])) + (" …" if len(labels) > SHOWN else "")
