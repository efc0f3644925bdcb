"""The rows of a batch: pictures of a folder, a JSONL file or a parquet file, with a question each or without."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..formats.picture_files import SUFFIXES, files_below, is_picture

TABLES = (".jsonl", ".parquet")
AT_ONCE = 64  # rows of a parquet file that are in memory


@dataclass(frozen=True)
class Row:
    """A picture to be asked about.

    Attributes:
        number: its place in the input, from 0.
        name: the picture as the input names it; '' where the input holds its bytes alone.
        picture: a path, or bytes.
        question: None for the one of all rows.
        wrong: why it cannot be asked; '' where it can.
    """

    number: int
    name: str
    picture: str | bytes = b""
    question: str | None = None
    wrong: str = ""


class Rows:
    """The rows of an input, in an order that does not change.

    Args:
        source: a folder, or a .jsonl or .parquet file.
        image: the field with the picture: a path from the file's folder on, or in parquet also bytes.
        question: the field with the question, which may be missing.
        allow_outside: whether paths may lead out of the file's folder.

    Raises:
        DataError: there is no such input, or it holds no picture.
    """

    def __init__(
        self, source: Path, image: str = "image", question: str = "question", allow_outside: bool = False
    ) -> None:
        self.source, self._image, self._question, self._outside = source, image, question, allow_outside
        self._folder = (source if source.is_dir() else source.parent).resolve()
        if source.is_dir():
            if not self._files:
                raise DataError(f"The folder {source} holds no picture: no file ends in {', '.join(SUFFIXES)}.")
        elif not source.is_file():
            raise DataError(f"There is no {source}. Name a folder of pictures, or a .jsonl or .parquet file.")
        elif source.suffix.lower() not in TABLES:
            raise DataError(f"{source} is neither a folder nor a .jsonl or .parquet file.")

    @cached_property
    def _files(self) -> list[str]:
        pictures = (file.relative_to(self.source) for file in files_below(self.source) if is_picture(file))
        return sorted(picture.as_posix() for picture in pictures)

    @cached_property
    def n(self) -> int:
        """Number of rows."""
        if self.source.is_dir():
            return len(self._files)
        if self.source.suffix.lower() == ".parquet":
            return int(self._parquet().metadata.num_rows)
        with open(self.source, "rb") as file:
            return sum(1 for line in file if line.strip())

    def digest(self) -> str:
        """Return what changes when the input does."""
        if not self.source.is_dir():
            with open(self.source, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256("\0".join(self._files).encode("utf-8", "surrogateescape")).hexdigest()

    def __iter__(self) -> Iterator[Row]:
        if self.source.is_dir():
            yield from (self._at(n, name, None) for n, name in enumerate(self._files))
        elif self.source.suffix.lower() == ".parquet":
            yield from (self._row(n, fields) for n, fields in enumerate(self._records()))
        else:
            with open(self.source, "rb") as file:
                lines = ((place, line) for place, line in enumerate(file, 1) if line.strip())
                for number, (place, line) in enumerate(lines):
                    yield self._of_line(number, place, line)

    def _of_line(self, number: int, place: int, line: bytes) -> Row:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            return Row(number, "", wrong=f"Line {place} of {self.source.name} is no JSON object.")
        return self._row(number, fields)

    def _row(self, number: int, fields: Mapping[str, Any]) -> Row:
        picture, question = fields.get(self._image), fields.get(self._question)
        name = ""
        if isinstance(picture, Mapping):  # as `datasets` writes pictures
            name, picture = str(picture.get("path") or ""), picture.get("bytes") or picture.get("path")
        if question is not None and not isinstance(question, str):
            return Row(number, name, wrong=f"The field {self._question!r} is no text.")
        if isinstance(picture, bytes):
            return Row(number, name, picture, question)
        if not isinstance(picture, str) or not picture:
            return Row(number, name, question=question, wrong=f"The field {self._image!r} has no picture.")
        return self._at(number, picture, question)

    def _at(self, number: int, name: str, question: str | None) -> Row:
        """Return the row of a path; links and paths that lead elsewhere are not followed unless that is allowed."""
        path = os.path.join(self._folder, name)
        try:
            if self._outside or Path(os.path.realpath(path)).is_relative_to(self._folder):
                return Row(number, name, path, question)
            wrong = f"The picture lies outside of {self._folder}. --allow-outside permits that."
        except ValueError as error:  # a zero byte, or half a character
            wrong = f"The picture's path cannot be used: {error}."
        return Row(number, name, question=question, wrong=wrong)

    def _parquet(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.source)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.source} cannot be read as parquet: {error}.") from error

    def _records(self) -> Iterator[Mapping[str, Any]]:
        import pyarrow

        file = self._parquet()
        names = file.schema_arrow.names
        if self._image not in names:
            raise DataError(
                f"{self.source} has no column {self._image!r}; it has {', '.join(names)}. Use --image-field."
            )
        columns = [name for name in (self._image, self._question) if name in names]
        try:
            for batch in file.iter_batches(AT_ONCE, columns=columns):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.source} cannot be read as parquet: {error}.") from error
