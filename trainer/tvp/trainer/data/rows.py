"""Files with one JSON object a line, each about a picture: the common part of JSONL, Hateful Memes and POPE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tvp.sdk import errors, read_image

from .sample import Question, Sample, report


class Rows:
    """The rows of a file. Lines are checked when the file is opened, and pictures when they are read.

    A subclass defines `_parse`, and `needs`: what a row must hold, for messages.

    Args:
        file: the file.
        skip_bad: a list, to which messages about bad lines that are left out are appended. Default: a bad line is an
            error.

    Raises:
        DataError: the file or a line is bad.
    """

    needs = ""

    def __init__(self, file: Path, skip_bad: list[str] | None = None) -> None:
        self._file = file
        self._rows: list[tuple[int, Path, Question, str]] = []
        try:
            data = file.read_bytes()
        except OSError as error:
            raise errors.DataError(f"{file} cannot be read: {error.strerror}.") from error
        # Split at newlines only: U+2028 and the like are characters of a text.
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                self._rows.append((number, *self._parse(f"{file}, line {number}", self._object(number, line))))
            except errors.DataError as error:
                report(error, skip_bad)
        if not self._rows:
            bad = f" {len(skip_bad)} are bad; the last: {skip_bad[-1]}" if skip_bad else ""
            raise errors.DataError(f"{file} has no rows. Each line is a JSON object with {self.needs}.{bad}")

    def _object(self, number: int, line: bytes) -> dict[str, Any]:
        where = f"{self._file}, line {number}"
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise errors.DataError(f"{where} is not UTF-8 text: {error}") from error
        except (ValueError, RecursionError) as error:
            raise errors.DataError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise errors.DataError(f"{where} is not a JSON object with {self.needs}.")
        return row

    def _parse(self, where: str, row: dict[str, Any]) -> tuple[Path, Question, str]:
        """Return the path of a row's picture, its question and its caption.

        Raises:
            DataError: the row is bad; the message begins with `where`.
        """
        raise NotImplementedError

    def _text(self, where: str, row: dict[str, Any], key: str) -> str:
        """Return the text under a key, without spaces around it.

        Raises:
            DataError: there is none.
        """
        text = row.get(key)
        if not isinstance(text, str) or not text.strip():
            raise errors.DataError(f"{where} has no text under {key!r}; every row needs {self.needs}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell it, but no tokenizer can read it
            raise errors.DataError(f"{where} has half a character (a lone surrogate) under {key!r}.") from error
        return text.strip()

    def __len__(self) -> int:
        return len(self._rows)

    def picture_of(self, index: int) -> str:
        return str(self._rows[index][1])

    def __getitem__(self, index: int) -> Sample:
        number, image, question, caption = self._rows[index]
        try:
            picture = read_image(image)
        except errors.ImageError as error:
            raise errors.DataError(f"{self._file}, line {number}: {error}") from error
        return Sample(picture, (question,), caption)


def find_picture(where: str, name: str, *folders: Path) -> Path:
    """Return the picture of this name from the first folder that holds it.

    Raises:
        DataError: none does.
    """
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise errors.DataError(
        f"{where} names the picture {name!r}, but there is no file {' or '.join(str(f / name) for f in folders)}."
    )
