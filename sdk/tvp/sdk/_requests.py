"""Questions, labels and options of a caller, checked and parsed once: `Requests`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ._generation import Generation, Options
from ._models.model import Model, Request, check_text
from ._runtime.fork import refuse_fork
from .errors import RequestError
from .formats.manifest import TaskManifest


class Requests:
    """Checks and parses requests to a task. The task's own question, labels and limit stand in for missing ones.

    Every method raises RequestError for a question, a label or an option that cannot be used.
    """

    def __init__(self, model: Model, manifest: TaskManifest) -> None:
        self._model, self._manifest = model, manifest
        self._process = os.getpid()

    def refuse_fork(self) -> None:
        """Raise RequestError in a process that was forked since the task was loaded."""
        refuse_fork(self._process, self._manifest.name)

    def ask(self, question: str | None, options: Options) -> Request:
        """Return a question with its options."""
        generation = self.generation(options)
        return self.request(self.question(question), generation)

    def request(self, question: Any, generation: Generation) -> Request:
        """Return a parsed question with its options."""
        return self._model.request(question, generation, self._manifest.labels, self._manifest.calibration)

    def rank(self, question: str | None, labels: Sequence[str] | None) -> tuple[Any, Any]:
        """Return a question and the labels to score, both parsed."""
        texts = self._label_texts(labels)
        parsed = self.question(question)
        return parsed, self._model.parse_labels(parsed, texts, self._manifest.calibration)

    def generation(self, options: Options) -> Generation:
        """Return the checked options."""
        return Generation.of(options, self._manifest.max_new_tokens)

    def question(self, question: str | None) -> Any:
        """Return a parsed question."""
        self.refuse_fork()
        if question is None:
            question = self._manifest.question
            if not question:
                raise RequestError(f"The task {self._manifest.name!r} has no question of its own; give one.")
        if not isinstance(question, str):
            raise RequestError(f"The question is {question!r}; it must be a text.")
        if not question.strip():
            raise RequestError("The question is empty; give a text.")
        check_text("question", question)
        return self._model.parse(question)

    def _label_texts(self, labels: Sequence[str] | None) -> tuple[str, ...]:
        if isinstance(labels, str):
            raise RequestError(f"labels is the text {labels!r}; give a list of texts: labels=['…', …].")
        labels = self._manifest.labels if labels is None else tuple(labels)
        if not labels:
            raise RequestError(
                f"The task {self._manifest.name!r} has no labels to rank; give them as labels=['…', …], or to "
                "`tvp ask` as --label … --label …."
            )
        if not all(isinstance(label, str) and label for label in labels):
            raise RequestError("Every label must be a text that is not empty.")
        for label in labels:
            check_text("label", label)
        return labels
