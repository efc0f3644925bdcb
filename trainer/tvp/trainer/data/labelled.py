"""Labels for questions whose rows have none: the answers that the data itself has, where they are few."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from .sample import Data, Question, Row, Sample, row_of

log = logging.getLogger("tvp.trainer")

MOST_LABELS = 10  # more answers are no choice among labels, but free texts
FEWEST_EACH = 3  # how often each must be the right answer


class Labelled:
    """Another data set, with these labels for its questions."""

    def __init__(self, data: Data, labels: tuple[str, ...]) -> None:
        self._data, self._labels = data, labels

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Row | None:
        row = row_of(self._data, index)
        return replace(row, questions=self._labelled(row.questions)) if row else None

    def __getitem__(self, index: int) -> Sample:
        sample = self._data[index]
        return replace(sample, questions=self._labelled(sample.questions))

    def _labelled(self, questions: tuple[Question, ...]) -> tuple[Question, ...]:
        return tuple(replace(question, labels=self._labels) for question in questions)


def few_answers(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the different answers to a question, sorted, where they can be chosen among; else none.

    They are 2 to MOST_LABELS, and each is the right one FEWEST_EACH times or more.

    Args:
        counts: how often each is the right one.
    """
    return tuple(sorted(counts)) if 1 < len(counts) <= MOST_LABELS and min(counts.values()) >= FEWEST_EACH else ()


def inferred(data: Data) -> tuple[str, ...]:
    """Return the labels of data whose rows have none, in the order of their texts; none where they are not clear.

    All rows ask the same question, no row has labels, and the right answers are few, see `few_answers`.
    """
    counts: Counter[str] = Counter()
    texts = set()
    for i in range(len(data)):
        row = row_of(data, i)
        if row is None:
            return ()
        for question in row.questions:
            if question.labels or not question.answer:
                return ()
            texts.add(question.text)
            counts[question.answer] += 1
            if len(texts) > 1 or len(counts) > MOST_LABELS:
                return ()
    return few_answers(counts)


def with_inferred(data: Data) -> Data:
    """Return data with the labels that its answers are, and say so; the same data where they are not clear."""
    labels = inferred(data)
    if not labels:
        return data
    log.warning(
        "the rows have no labels, and only %d answers: taken as labels, %s. Rows with labels of their own keep them.",
        len(labels),
        ", ".join(labels),
    )
    return Labelled(data, labels)
