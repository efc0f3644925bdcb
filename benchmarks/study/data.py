"""The study's pictures: no picture is in two splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tvp.trainer import cameras, tasks
from tvp.trainer.data import Data, Parquet, Sample, Scenes, Subset, ThroughCamera
from tvp.trainer.task_definition import TaskDefinition

PHOTOS = Path(__file__).parents[3] / "shared/data/cifar10"
TASK = {"scenes": "bad-camera", "counting": "bad-camera-count", "photos": "bad-camera-cifar10"}
N_TRAIN, N_VALIDATION = 4800, 64  # pictures that a prompt is learned on, and that choose its start
N_MEASURED = {
    "test": {"scenes": 512, "counting": 2048, "photos": 2000},
    "validation": {"scenes": 256, "counting": 512, "photos": 500},
}
QUESTIONS = {"scenes": 4, "counting": 1, "photos": 1}  # about each picture
N_KEPT = 2000  # the last photos of train, for validation
CAMERA_SEED = {"train": 0, "validation": 1000, "test": 2000}


def task_of(content: str, camera: str) -> TaskDefinition:
    """The task about a content, through a camera."""
    return tasks.through(tasks.get(TASK[content]), camera)


def measured(content: str, split: str, camera: str) -> Data:
    """The pictures that prompts are measured on, with all their questions, through a camera; `none` for clean ones."""
    n = N_MEASURED[split][content]
    if content != "photos":
        return _through(_scenes(content, n, {"validation": 20_000, "test": 30_000}[split]), camera, CAMERA_SEED[split])
    photos = _photos("test" if split == "test" else "train")
    first = len(photos) - N_KEPT if split == "validation" else 0
    return _through(Subset(photos, range(first, first + n)), camera, CAMERA_SEED[split])


def trained_on(content: str, camera: str, seed: int, n: int = N_TRAIN, classes: tuple[str, ...] = ()) -> Data:
    """Pictures to learn on, spoilt by a camera; with a seed of 1,000 and more, other ones than with a lower seed.

    Args:
        content: a key of TASK.
        camera: `none` for clean ones.
        seed: of the choice.
        n: number of pictures.
        classes: of photos; none for all.
    """
    if content != "photos":
        return _through(_scenes(content, n, 10_000 + seed), camera, seed)
    photos = _photos("train")
    other, drawn = divmod(seed, 1000)
    # Halves of the photos, so that device's and good pictures are never the same.
    rows = np.random.default_rng(0).permutation(len(photos) - N_KEPT)[other % 2 :: 2]
    if classes:
        rows = np.array([i for i in rows if photos.row(int(i)).questions[0].answer in classes])
    order = np.random.default_rng(drawn).permutation(len(rows))[:n]
    return _through(Subset(photos, rows[order].tolist()), camera, seed)


def _scenes(content: str, n: int, seed: int) -> Scenes:
    return Scenes(n, seed, n_questions=QUESTIONS[content], topics=tasks.get(TASK[content]).topics)


def _photos(split: str) -> Parquet:
    task = tasks.get(TASK["photos"])
    return Parquet(PHOTOS, split, task.question, task.caption, task.labels)


def _through(data: Data, camera: str, seed: int) -> Data:
    seen = cameras.parse(camera)
    return ThroughCamera(data, seen, seed) if seen.parts else data


class Joined:
    """Several data sets as one, in a drawn order."""

    def __init__(self, parts: list[Data], seed: int) -> None:
        self._places = [(part, i) for part in parts for i in range(len(part))]
        self._order = np.random.default_rng(seed).permutation(len(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        part, i = self._places[self._order[index]]
        found: Sample = part[i]
        return found
