"""A loaded task that answers rows of a batch: `Asker`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._load import load
from .._results import Answer
from ..errors import AnswerError, ImageError, RequestError, TvpError
from .rows import Row

Result = dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """What is asked of every row.

    Attributes:
        task: a bundle, as `sdk.load` takes it.
        question: for rows without one; None for the task's own.
        rank: whether labels are scored.
        labels: which; empty for the task's own.
        options: of `ask_many`.
        providers, lens: as of `sdk.load`.
        batch: rows that are answered together.
    """

    task: str
    question: str | None = None
    rank: bool = False
    labels: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    providers: str | Mapping[str, str] = "auto"
    lens: str | None = None
    batch: int = 8


class Asker:
    """Answers rows.

    Args:
        asking: what is asked.
        threads: of the task; None for as many as the process may use.
    """

    def __init__(self, asking: Asking, threads: int | None = None) -> None:
        self._asking = asking
        self._task = load(asking.task, providers=asking.providers, lens=asking.lens, threads=threads)
        # A wrong option is an error of all rows, and is told before the first.
        requests = self._task._open_requests()
        generation = requests.generation(asking.options)  # type: ignore[arg-type]
        if not asking.rank:
            requests.request(requests.question(asking.question or "What?"), generation)
        elif asking.labels or not self._task.labels:
            requests.rank(asking.question or "What?", asking.labels or None)

    def answer(self, rows: Sequence[Row]) -> list[Result]:
        """Answer rows; a row that cannot be answered has its error."""
        found = {row.number: _failed(row, row.wrong) for row in rows if row.wrong}
        good = [row for row in rows if not row.wrong]
        if self._asking.rank:
            found |= {row.number: self._ranked(row) for row in good}
        else:
            asking = self._asking
            pairs = [(row.picture, self._question(row)) for row in good]
            answers = self._task.ask_many(pairs, batch=asking.batch, errors="return", **asking.options)
            found |= {row.number: _answered(row, answer) for row, answer in zip(good, answers, strict=True)}
        return [found[row.number] for row in rows]

    def close(self) -> None:
        """Let go of the task."""
        self._task.close()

    def _question(self, row: Row) -> str | None:
        return self._asking.question if row.question is None else row.question

    def _ranked(self, row: Row) -> Result:
        try:
            ranked = self._task.rank(row.picture, self._question(row), labels=self._asking.labels or None)
        except (ImageError, RequestError) as error:
            return _failed(row, str(error))
        best = ranked[0]
        rest = {"score": best.score, "ranked": [{"label": r.label, "score": r.score} for r in ranked]}
        return {**_about(row), "text": best.label, **rest}


def _about(row: Row) -> Result:
    return {"row": row.number, "image": row.name, "question": row.question}


def _failed(row: Row, error: str) -> Result:
    return {**_about(row), "error": error}


def _answered(row: Row, answer: Answer | TvpError) -> Result:
    if not isinstance(answer, Answer):
        # Its place among those that were answered together says nothing here.
        cause = answer.__cause__
        return _failed(row, str(cause if isinstance(cause, ImageError | RequestError | AnswerError) else answer))
    scores = answer.log_probabilities
    return {
        **_about(row),
        "text": answer.text,
        "score": math.fsum(scores) / len(scores) if scores else None,
        "finish": answer.finish,
        "tokens": list(answer.tokens),
        "log_probabilities": list(scores),
        "unlikeness": answer.unlikeness,
    }
