"""Files with one JSON object a line, each about a picture: the common part of JSONL, Hateful Memes and POPE."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tvp.sdk import errors, read_image

from .places import resolved_file
from .sample import Question, Row, Sample, is_readable, report


class Entry(NamedTuple):
    """What a line says: the path of its picture, a question about it or none, a caption, and its clean picture."""

    picture: Path
    question: Question | None
    caption: str
    clean: Path | None = None


class Rows:
    """The rows of a file. Lines are checked when the file is opened, and pictures when they are read.

    A subclass defines `_parse`, and `needs`: what a row must hold, for messages.

    Args:
        file: the file.
        skip_bad: a list, to which messages about bad lines that are left out are appended. Default: a bad line is an
            error.
        allow_outside: rows may name pictures outside of the file's folder. Default False.

    Raises:
        DataError: the file or a line is bad.
    """

    needs = ""

    def __init__(self, file: Path, skip_bad: list[str] | None = None, *, allow_outside: bool = False) -> None:
        self._file, self._root, self._allow_outside = file, file.parent.resolve(), allow_outside
        self._rows: list[tuple[int, Entry]] = []
        self._last: tuple[Entry, Sample] | None = None  # a run of rows may ask about one large photo
        if file.exists() and not file.is_file():
            raise errors.DataError(f"{file} is a folder, a pipe or a device. Data must be in a regular file.")
        try:
            data = file.read_bytes()
        except OSError as error:
            raise errors.DataError(f"{file} cannot be read: {error.strerror}.") from error
        # Split at newlines only: U+2028 and the like are characters of a text.
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                self._rows.append((number, self._parse(f"{file}, line {number}", self._object(number, line))))
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
        except RecursionError as error:
            raise errors.DataError(f"{where} is nested too deeply. A row is {self.needs}.") from error
        except ValueError as error:
            raise errors.DataError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise errors.DataError(f"{where} is not a JSON object with {self.needs}.")
        return row

    def _parse(self, where: str, row: dict[str, Any]) -> Entry:
        """Return what a row says.

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
        if not is_readable(text):
            raise errors.DataError(f"{where} has half a character (a lone surrogate) under {key!r}.")
        return text.strip()

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        number, entry = self._rows[index]
        return Row(f"{self._file}, line {number}", str(entry.picture), _asked(entry))

    def __getitem__(self, index: int) -> Sample:
        number, entry = self._rows[index]
        last = self._last
        if last is not None and (last[0].picture, last[0].clean) == (entry.picture, entry.clean):
            return replace(last[1], questions=_asked(entry), caption=entry.caption)
        try:
            clean = None if entry.clean is None else read_image(entry.clean)
            sample = Sample(read_image(entry.picture), _asked(entry), entry.caption, clean)
        except errors.ImageError as error:
            raise errors.DataError(f"{self._file}, line {number}: {error}") from error
        self._last = entry, sample
        return sample

    def _picture(self, where: str, name: str, *folders: str) -> Path:
        """Return the resolved path of the picture of this name, in the first of these folders that holds it.

        Args:
            where: the row, for messages.
            name: as the row has it.
            folders: seen from the file's folder. Default: this folder itself.

        Raises:
            DataError: there is none, it is outside of the file's folder, or it is no regular file.
        """
        places = [self._file.parent / folder / name for folder in folders or ("",)]
        where = f"{where} names the picture {name[:300]!r}"
        for place in places:
            if _exists(place):
                return resolved_file(where, place, self._root, self._allow_outside)
        looked = " or ".join(str(place)[:300] for place in places)
        raise errors.DataError(f"{where}, but there is no file {looked}.")


def _asked(entry: Entry) -> tuple[Question, ...]:
    return () if entry.question is None else (entry.question,)


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
