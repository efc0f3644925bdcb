"""Accuracy: how often a model answers right, with a prompt or without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .batches import load_batch
from .data import Data, Question, picture_of
from .families import Family
from .metrics import matches
from .progress import bar
from .prompt import Geometry, Prompt
from .task_definition import TaskDefinition

N_COMMON = 5  # answers that are told
MAX_NEW_TOKENS = 16  # of a free answer; bundles have the same default


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy over all questions, with a 95 % bootstrap interval.

    Attributes:
        accuracy: share of questions answered right, in [0, 1].
        low, high: ends of the interval.
        n: number of questions.
        right: for each question whether its answer was right, in the data's order, so that evaluations can be paired.
        answers: the answer to each question.
        scores: (n, n_labels), the score of each label, in the order of the question's labels. None where labels
            differ between questions, or where an answer was free.
    """

    accuracy: float
    low: float
    high: float
    n: int
    right: NDArray[np.bool_]
    answers: list[str] = field(default_factory=list)
    scores: NDArray[np.float32] | None = None

    def __str__(self) -> str:
        return f"{self.accuracy:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.n}"


@dataclass(frozen=True)
class Asked:
    """Questions, and what a model said.

    Attributes:
        questions: in the data's order.
        answers: one for each question.
        scores: for each question one score for each of its labels, in their order; None for a free answer.
        pictures: for each question a name that only questions about the same picture have.
    """

    questions: list[Question] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    scores: list[NDArray[np.float32] | None] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


def accuracy(
    family: Family,
    data: Data,
    geometry: Geometry,
    prompt: Prompt | None = None,
    task: TaskDefinition | None = None,
    batch: int = 256,
    quiet: bool = True,
) -> Accuracy:
    """Ask every question of the data, and compare the answers with the right ones; the arguments are those of `ask`."""
    return judge(ask(family, data, geometry, prompt, task, batch, quiet), task.match if task else "exact")


@torch.no_grad()
def ask(
    family: Family,
    data: Data,
    geometry: Geometry,
    prompt: Prompt | None = None,
    task: TaskDefinition | None = None,
    batch: int = 256,
    quiet: bool = True,
) -> Asked:
    """Ask every question of the data.

    A question with labels is answered with the label that scores best, unless the task is `free` and the model can
    write text. Other questions are answered with greedy generation.

    Args:
        family: the model.
        data: pictures and questions. Right answers are not read.
        geometry: how pictures lie on the canvas. `inner == canvas` shows the full picture; a smaller inner size
            without a prompt shows it in a black frame.
        prompt: the prompt on every picture. Default: none.
        task: the task that the questions are of. Default: free answers.
        batch: rows (a question with one label) that the language model reads at once; lower it to save memory.
            Default 256.
        quiet: show no progress bar. Default True.
    """
    said = Asked()
    free = task is None or task.free
    n_pictures = max(1, batch // 4)  # most have a few questions
    for start in bar(range(0, len(data), n_pictures), "evaluating", quiet=quiet):
        read = load_batch(data, range(start, min(start + n_pictures, len(data))), geometry, None)
        canvas = geometry.place(torch.from_numpy(read.pictures).to(family.device))
        if prompt is not None:
            canvas = prompt.on(canvas)
        rows = torch.tensor([i for i, about in enumerate(read.questions) for _ in about], device=canvas.device)
        asked = [question for about in read.questions for question in about]
        features = family.encode(family.to_pixels(canvas))
        embeddings = family.connect_rows(features, rows, [question.text for question in asked])
        given, scored = _answers(family, embeddings, asked, free and family.generates, batch)
        names = [picture_of(data, i) for i in read.indices]
        said.questions.extend(asked)
        said.answers.extend(given)
        said.scores.extend(scored)
        said.pictures.extend(names[row] for row in rows.tolist())
    return said


def judge(asked: Asked, match: str = "exact") -> Accuracy:
    """Compare answers with the right ones, as `metrics.matches` does."""
    pairs = zip(asked.answers, asked.questions, strict=True)
    right = np.array([matches(answer, question.answer, match) for answer, question in pairs], bool)
    closed = [row for row in asked.scores if row is not None]
    comparable = len(closed) == len(right) and len({question.labels for question in asked.questions}) == 1
    return replace(summarise(right), answers=list(asked.answers), scores=np.stack(closed) if comparable else None)


def common_answers(answers: Sequence[str]) -> dict[str, float]:
    """Return the commonest answers with their shares, the most common one first."""
    return {answer: count / len(answers) for answer, count in Counter(answers).most_common(N_COMMON)}


def told(answers: Mapping[str, float]) -> str:
    """Return answers with their shares in words."""
    return ", ".join(f"{answer!r} {share:.0%}" for answer, share in answers.items())


def summarise(right: NDArray[np.bool_], n_resamples: int = 2000) -> Accuracy:
    """Return the accuracy of right and wrong answers, with a bootstrap interval from a fixed seed."""
    mean = float(right.mean()) if len(right) else float("nan")
    # The mean of n resampled bits is binomial(n, mean) / n: the same bootstrap without the resampling.
    draws = np.random.default_rng(0).binomial(len(right), mean, n_resamples) / max(1, len(right)) if len(right) else [0]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Accuracy(mean, float(low), float(high), len(right), right)


def _answers(
    family: Family, embeddings: Any, asked: Sequence[Question], free: bool, batch: int
) -> tuple[list[str], list[NDArray[np.float32] | None]]:
    """Return the answers, and the scores of the labels of those that were chosen among labels."""
    answers = [""] * len(asked)
    scores: list[NDArray[np.float32] | None] = [None] * len(asked)
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
            table = family.answer_scores(embeddings[rows], texts, labels, batch)
            given = [labels[i] for i in table.argmax(-1).tolist()]
            for i, row in zip(rows, table.float().cpu().numpy(), strict=True):
                scores[i] = row
        else:
            given = family.generate(embeddings[rows], texts, MAX_NEW_TOKENS)
        for i, answer in zip(rows, given, strict=True):
            answers[i] = answer
    return answers, scores
