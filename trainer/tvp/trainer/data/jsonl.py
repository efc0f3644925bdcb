"""JSONL files with pictures, questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvp.sdk.errors import DataError

from .rows import Entry, Rows
from .sample import CAPTION, Question, is_readable, report

KEYS = ("image", "clean", "question", "answer", "label", "labels", "caption")


class Jsonl(Rows):
    """A file with one JSON object a line.

    A row has image (a path, from the file's folder and inside it), question, and answer (or label, which means the
    same). It may have labels (a list) and caption. Every line is checked when the file is opened.

    A row may name a clean picture: what the camera should have seen, for a lens. Then every row does, and needs no
    question and no answer; some rows with them and some without are refused too.

    Args:
        file: the file.
        skip_bad: a list, to which messages about bad lines that are left out are appended. Default: a bad line is an
            error.
        labels: of rows without labels. Default: none.
        caption: of rows without a caption, with {label} for the answer.
        allow_outside: rows may name pictures outside of the file's folder. Default False.

    Attributes:
        has_clean: whether its rows name clean pictures.

    Raises:
        DataError: the file or a line is bad.
    """

    needs = "image, question, answer (or image and clean)"

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
        self._refuse_some("clean", [entry.clean is not None for _, entry in self._rows], skip_bad)
        self.has_clean = self._rows[0][1].clean is not None
        self._refuse_some("question", [entry.question is not None for _, entry in self._rows], skip_bad)

    def _refuse_some(self, key: str, has: Sequence[bool], skip_bad: list[str] | None) -> None:
        """Refuse rows without a key that others have: no loss could be taken over all of them."""
        if all(has) or not any(has):
            return
        first = self._rows[has.index(True)][0]
        for (number, _), its in zip(self._rows, has, strict=True):
            if not its:
                where = f"{self._file}, line {number}"
                report(DataError(f"{where} has no {key!r}, and line {first} has one. Every row or none has."), skip_bad)
        self._rows = [row for row, its in zip(self._rows, has, strict=True) if its]

    def _parse(self, where: str, row: dict[str, Any]) -> Entry:
        if "answer" in row and "label" in row:
            raise DataError(f"{where} has both 'answer' and 'label'. They mean the same; give one of them.")
        image = self._text(where, row, "image")
        clean = self._text(where, row, "clean") if "clean" in row else None
        asks = clean is None or any(key in row for key in ("question", "answer", "label"))
        question = self._text(where, row, "question") if asks else ""
        answer = self._text(where, row, "label" if "label" in row else "answer") if asks else ""
        unknown = sorted(set(row) - set(KEYS))
        if unknown:
            raise DataError(
                f"{where} has the unknown key {unknown[0]!r}. Besides image, question and answer it may have "
                "label (instead of answer), labels, caption and clean."
            )
        labels = row.get("labels", self._labels)
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise DataError(f"{where}: labels must be a list of texts.")
        labels = [label.strip() for label in labels]
        if not all(map(is_readable, labels)):
            raise DataError(f"{where} has half a character (a lone surrogate) in its labels {labels}.")
        if len(set(labels)) < len(labels):
            raise DataError(f"{where} has a label twice in {labels}. Each may be there once.")
        if asks and labels and answer not in labels:
            raise DataError(f"{where}: the answer {answer!r} is none of its labels {labels}.")
        named = self._caption.replace("{label}", answer) if asks else ""
        caption = self._text(where, row, "caption") if row.get("caption") else named
        return Entry(
            self._picture(where, image),
            Question(question, answer, tuple(labels)) if asks else None,
            caption,
            None if clean is None else self._picture(where, clean),
        )
