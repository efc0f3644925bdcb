"""Scenes, drawn on demand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import scenes
from ..cameras import Camera
from .sample import Question, Sample


class Scenes:
    """Scenes drawn on demand from a seed, and seen through a camera.

    Args:
        n: number of scenes.
        seed: of the scenes and of the camera's noise.
        size: side of a picture, px. Default 64.
        n_questions: questions about each picture. Default 4.
        camera: what the pictures are seen through. Default: none.
        topics: of the questions, in turn. Default: all.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        size: int = 64,
        n_questions: int = 4,
        camera: Camera | None = None,
        topics: Sequence[str] = scenes.TOPICS,
    ) -> None:
        self._n, self._seed, self._size = n, seed, size
        self._n_questions, self._camera, self._topics = n_questions, camera, tuple(topics)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._n:
            raise IndexError(index)
        rng = np.random.default_rng([self._seed, index])
        scene = scenes.make_scene(rng)
        picture, clean = scenes.draw(scene, self._size), None
        if self._camera:
            picture, clean = self._camera.shoot(picture, rng), picture
        asked = []
        for k in range(self._n_questions):
            question = scenes.ask(scene, rng, self._topics[(index * self._n_questions + k) % len(self._topics)])
            asked.append(Question(question.text, question.answer, question.labels))
        return Sample(picture, tuple(asked), scene.caption, clean)
