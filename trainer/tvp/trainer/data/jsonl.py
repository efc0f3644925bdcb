"""JSONL files with pictures, questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvp.sdk.errors import DataError

from .rows import Rows
from .sample import CAPTION, Question, is_readable

KEYS = ("image", "question", "answer", "label", "labels", "caption")


class Jsonl(Rows):
    """A file with one JSON object a line.

    A row has image (a path, from the file's folder and inside it), question, and answer (or label, which means the
    same). It may have labels (a list) and caption. Every line is checked when the file is opened.

    Args:
        file: the file.
        skip_bad: a list, to which messages about bad lines that are left out are appended. Default: a bad line is an
            error.
        labels: of rows without labels. Default: none.
        caption: of rows without a caption, with {label} for the answer.
        allow_outside: rows may name pictures outside of the file's folder. Default False.

    Raises:
        DataError: the file or a line is bad.
    """

    needs = "image, question, answer"

    def __init__(
        self,
        file: Path,
        skip_bad: list[str] | None = None,
        labels: Sequence[str] = (),
        caption: str = CAPTION,
        *,
        allow_outside: bool = False,
    ) -> None:
        self._labels, self._caption = list(labels), caption
        super().__init__(file, skip_bad, allow_outside=allow_outside)

    def _parse(self, where: str, row: dict[str, Any]) -> tuple[Path, Question, str]:
        if "answer" in row and "label" in row:
            raise DataError(f"{where} has both 'answer' and 'label'. They mean the same; give one of them.")
        image = self._text(where, row, "image")
        question = self._text(where, row, "question")
        answer = self._text(where, row, "label" if "label" in row else "answer")
        unknown = sorted(set(row) - set(KEYS))
        if unknown:
            raise DataError(
                f"{where} has the unknown key {unknown[0]!r}. Besides image, question and answer it may have "
                "label (instead of answer), labels and caption."
            )
        labels = row.get("labels", self._labels)
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise DataError(f"{where}: labels must be a list of texts.")
        labels = [label.strip() for label in labels]
        if not all(map(is_readable, labels)):
            raise DataError(f"{where} has half a character (a lone surrogate) in its labels {labels}.")
        if len(set(labels)) < len(labels):
            raise DataError(f"{where} has a label twice in {labels}. Each may be there once.")
        if labels and answer not in labels:
            raise DataError(f"{where}: the answer {answer!r} is none of its labels {labels}.")
        caption = self._text(where, row, "caption") if row.get("caption") else self._caption.replace("{label}", answer)
        return self._picture(where, image), Question(question, answer, tuple(labels)), caption
