"""CSV files with pictures, questions and answers, and how they become JSONL files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from tvp.sdk.errors import DataError, near

from .places import resolved_file
from .sample import is_readable, report

COLUMNS = ("image", "question", "answer", "labels", "caption")
SAME = {"label": "answer"}  # another name of a column
MOST_BYTES = 2**28
SEPARATORS = ",;\t"
LIST = "|"  # between labels in one cell


def read_csv(
    file: Path, question: str = "", labels: Sequence[str] = (), skip_bad: list[str] | None = None
) -> list[dict[str, object]]:
    """Read the rows of a CSV file, as `Jsonl` has them.

    The first line names the columns: image, answer (or label), and question where the questions differ; labels (with |
    between them) and caption are read too. Commas, semicolons or tabs separate the columns.

    Args:
        file: the file, in UTF-8. Pictures are seen from it, and are in its folder.
        question: of rows that have none.
        labels: what every answer is one of. Default: anything.
        skip_bad: a list, to which messages about bad rows that are left out are appended. Default: a bad row is an
            error.

    Raises:
        DataError: the file or a row is bad.
    """
    text = _text(file)
    first = text.partition("\n")[0]
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names = _names(file, next(reader, []), question)
        rows = []
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            if any(cell.strip() for cell in cells):
                try:
                    rows.append(_row(where, file.parent, names, cells, question, labels))
                except DataError as error:
                    report(error, skip_bad)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num} is not CSV: {error}.") from error
    if not rows:
        bad = f" {len(skip_bad)} are bad; the last: {skip_bad[-1]}" if skip_bad else ""
        raise DataError(f"{file} has no rows that can be used. A row is image, question, answer.{bad}")
    return rows


def to_jsonl(rows: Sequence[dict[str, object]]) -> str:
    """Write rows as a JSONL file has them."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _text(file: Path) -> str:
    if not file.is_file():  # a pipe may never end
        raise DataError(f"There is no file {file}.")
    if file.stat().st_size > MOST_BYTES:
        raise DataError(f"{file} has more than {MOST_BYTES:,} bytes. Give a JSONL file, which is not held in memory.")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}. Save it as 'CSV UTF-8'.") from error


def _names(file: Path, cells: Sequence[str], question: str) -> list[str]:
    names = [SAME.get(cell.strip().lower(), cell.strip().lower()) for cell in cells]
    for name in names:
        if name not in COLUMNS:
            raise DataError(
                f"{file} has the column {name!r}. Its first line names the columns: image, question, answer; it may "
                f"have labels and caption too.{near(name, COLUMNS)}"
            )
    if len(set(names)) < len(names):
        raise DataError(f"{file} has a column twice: {', '.join(names)}. Each may be there once; label means answer.")
    for name in ("image", "answer"):
        if name not in names:
            raise DataError(
                f"{file} has no column {name!r}. Its first line names the columns: image, question, answer."
            )
    if "question" not in names and not question:
        raise DataError(f"{file} has no column 'question'. Add it, or give one question for all rows with --question.")
    return names


def _row(
    where: str, folder: Path, names: Sequence[str], cells: Sequence[str], question: str, labels: Sequence[str]
) -> dict[str, object]:
    if len(cells) != len(names):
        raise DataError(f"{where} has {len(cells)} cells, and there are {len(names)} columns. Quote cells with commas.")
    found = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    found["question"] = found.get("question") or question
    for name in ("image", "question", "answer"):
        if not found[name]:
            raise DataError(f"{where} has no {name}. Fill it in, or delete the row.")
    if labels and found["answer"] not in labels:
        raise DataError(f"{where}: the answer {found['answer']!r} is none of the labels {list(labels)}.")
    if bad := [name for name, text in found.items() if not is_readable(text)]:
        raise DataError(f"{where} has half a character (a lone surrogate) under {bad[0]!r}.")
    resolved_file(
        f"{where} names the picture {found['image'][:300]!r}", folder / found["image"], folder.resolve(), False
    )
    row: dict[str, object] = {name: text for name, text in found.items() if text and name != "labels"}
    own = [label.strip() for label in found.get("labels", "").split(LIST) if label.strip()]
    return row | ({"labels": own} if own else {})
