"""How often a model answers right: without a prompt, with a black frame, and with a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from .data import Data, Question
from .families import Family
from .prompt import Geometry, Prompt
from .tasks import Task

MAX_NEW_TOKENS = 16  # of a free answer; bundles answer as long by default


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy (exact match) over `n` questions, with a 95 % bootstrap interval.

    right: one bool a question, in the data's order, so that two evaluations can be paired.
    """

    accuracy: float
    low: float
    high: float
    n: int
    right: NDArray[np.bool_]

    def __str__(self) -> str:
        return f"{self.accuracy:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.n}"


@torch.no_grad()
def accuracy(
    family: Family,
    data: Data,
    geometry: Geometry,
    prompt: Prompt | None = None,
    task: Task | None = None,
    batch: int = 256,
    quiet: bool = True,
) -> Accuracy:
    """Ask everything in `data` and compare with the answers.

    batch: how many rows (questions, each with its labels) the language model reads at once; lower it where
        memory is short.
    geometry: `inner == canvas` shows the full picture; a smaller inner size without a prompt shows it
        in a black frame.
    A question with labels is answered by the one that scores best, unless the task is `free` and the model
    can answer in free text; others by greedy generation, which must match the answer's text exactly.
    """
    right: list[bool] = []
    free = task is None or task.free
    n_pictures = max(1, batch // 4)  # most have a few questions
    for start in tqdm(range(0, len(data), n_pictures), disable=quiet, desc="evaluating"):
        samples = [data[i] for i in range(start, min(start + n_pictures, len(data)))]
        shrunk = np.stack([geometry.shrink(sample.picture) for sample in samples])
        canvas = geometry.place(torch.from_numpy(shrunk).to(family.device))
        if prompt is not None:
            canvas = prompt.on(canvas)
        rows = torch.tensor([i for i, sample in enumerate(samples) for _ in sample.questions], device=canvas.device)
        asked = [question for sample in samples for question in sample.questions]
        features = family.encode(family.to_pixels(canvas))
        embeddings = family.connect_rows(features, rows, [question.text for question in asked])
        answers = _answers(family, embeddings, asked, free and family.generates, batch)
        right += [answer == question.answer for answer, question in zip(answers, asked, strict=True)]
    return summarise(np.array(right, bool))


def summarise(right: NDArray[np.bool_], n_resamples: int = 2000) -> Accuracy:
    """Accuracy of a list of right and wrong, with a bootstrap interval (seeded)."""
    mean = float(right.mean()) if len(right) else float("nan")
    # The mean of n resampled bits is binomial(n, mean) / n: the same bootstrap without the resampling.
    draws = np.random.default_rng(0).binomial(len(right), mean, n_resamples) / max(1, len(right)) if len(right) else [0]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Accuracy(mean, float(low), float(high), len(right), right)


def _answers(family: Family, embeddings: Any, asked: Sequence[Question], free: bool, batch: int) -> list[str]:
    answers = [""] * len(asked)
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, question in enumerate(asked):
        groups.setdefault(() if free else question.labels, []).append(i)
    runs = [
        (labels, rows[start : start + size])
        for labels, rows in groups.items()
        for size in [max(1, batch // max(1, len(labels)))]
        for start in range(0, len(rows), size)
    ]
    for labels, rows in runs:
        texts = [asked[i].text for i in rows]
        if labels:
            best = family.answer_scores(embeddings[rows], texts, labels).argmax(-1).tolist()
            given = [labels[i] for i in best]
        else:
            given = family.generate(embeddings[rows], texts, MAX_NEW_TOKENS)
        for i, answer in zip(rows, given, strict=True):
            answers[i] = answer
    return answers
