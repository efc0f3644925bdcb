"""What is answered of a batch: `Journal`. Each row is in it once, whatever ended the process before.

Beside OUTPUT is a folder OUTPUT.unfinished, with what is asked and a line for each answered row. A line counts when its
end is written, so one that a killed process left behind half is cut off, and its row is asked again. At the end the
lines become OUTPUT in the order of the input, whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, RequestError
from ..formats import strict_json
from ..formats.disk import room_for
from ..formats.temporary import temporary_file

try:
    import fcntl
except ImportError:  # Windows, where a second process is not noticed
    fcntl = None  # type: ignore[assignment]

ABOUT, LINES = "about.json", "rows.jsonl"
ESCAPED = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
AT_ONCE = 512  # rows of a parquet file that are written together


class Journal:
    """The answers of a batch, on a disk.

    Args:
        output: a .jsonl or .parquet file that is not there yet.
        about: what is asked, of what: a run goes on only where this is the same.

    Attributes:
        done: row -> where its line begins.

    Raises:
        RequestError: the output is there, another process writes it, or an unfinished one is of another batch.
    """

    def __init__(self, output: Path, about: Mapping[str, Any]) -> None:
        self.output, self.folder = output, output.with_name(f"{output.name}.unfinished")
        self.done: dict[int, int] = {}
        if output.suffix.lower() not in (".jsonl", ".parquet"):
            raise RequestError(f"The output is {output}; it must end in .jsonl or .parquet.")
        if not output.parent.is_dir():
            raise RequestError(f"There is no folder {output.parent} to write {output.name} to. Make it first.")
        if output.exists():
            if not self.folder.exists():
                raise RequestError(f"{output} is there already. Name another file, or remove it.")
            shutil.rmtree(self.folder)  # a process was ended between its last two steps
            raise RequestError(f"{output} is there already, and whole. Nothing was left to do.")
        self.folder.mkdir(exist_ok=True)
        with room_for(self.folder):
            self._file = open(self.folder / LINES, "a+b")  # noqa: SIM115 (open as long as this is)
        try:
            self._lock()
            self._compare(about)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RequestError(f"Another process writes {self.output}. Let it finish, or end it.") from error

    def _compare(self, about: Mapping[str, Any]) -> None:
        file = self.folder / ABOUT
        wanted = json.loads(strict_json.dumps(about))
        if file.exists():
            try:
                found = json.loads(file.read_bytes())
            except ValueError as error:
                raise DataError(f"{file} is damaged. Remove {self.folder}, and begin anew.") from error
            differs = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
            if differs:
                raise RequestError(
                    f"{self.folder} holds an unfinished batch of another kind: its {differs[0]} is "
                    f"{_short(found.get(differs[0]))}, and now it is {_short(wanted.get(differs[0]))}. Finish it with "
                    "the same options, or remove it."
                )
            return
        with temporary_file(file) as temporary:
            temporary.write_text(strict_json.dumps(wanted), encoding="utf-8")
            os.replace(temporary, file)

    def _read(self) -> None:
        """Find the rows that are answered, and cut off what a process that was killed left half."""
        end = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                number = json.loads(line)["row"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.folder / LINES} is damaged at byte {end}. Remove {self.folder}.") from error
            self.done.setdefault(number, end)
            end += len(line)
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def add(self, results: Sequence[Mapping[str, Any]]) -> int:
        """Write down answers; returns how many of them are new."""
        text, end = b"", self._file.seek(0, os.SEEK_END)
        before = len(self.done)
        for result in results:
            if result["row"] not in self.done:  # a row may come twice where a machine failed
                self.done[result["row"]] = end + len(text)
                text += strict_json.dumps({name: _whole(value) for name, value in result.items()}).encode() + b"\n"
        with room_for(self.output):
            self._file.write(text)
            self._file.flush()
            os.fsync(self._file.fileno())
        return len(self.done) - before

    def finish(self) -> int:
        """Write the output, and remove the journal; returns the number of rows with an error."""
        n_errors = 0

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal n_errors
            for number in sorted(self.done):
                self._file.seek(self.done[number])
                row = json.loads(self._file.readline())
                n_errors += row.get("error") is not None
                yield row

        with temporary_file(self.output) as temporary:
            (_write_parquet if self.output.suffix.lower() == ".parquet" else _write_lines)(temporary, counted())
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, self.output)
        self.close()
        shutil.rmtree(self.folder)
        return n_errors

    def close(self) -> None:
        """Let go of the file; another process may go on."""
        self._file.close()


def _write_lines(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            # Signs that some readers take for the end of a line.
            text = strict_json.dumps(row, ensure_ascii=False).translate(ESCAPED)
            out.write(text + "\n")


def _write_parquet(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "row": pa.int64(), "image": pa.string(), "question": pa.string(), "text": pa.string(), "score": pa.float64(),
        "finish": pa.string(), "tokens": pa.list_(pa.int64()), "log_probabilities": pa.list_(pa.float64()),
        "unlikeness": pa.float64(), "ranked": pa.list_(pa.struct({"label": pa.string(), "score": pa.float64()})),
        "error": pa.string(),
    }  # fmt: skip
    schema = pa.schema(kinds)
    with pq.ParquetWriter(file, schema) as writer:
        while chunk := [row for _, row in zip(range(AT_ONCE), rows, strict=False)]:
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))


def _whole(value: Any) -> Any:
    """Write half characters, which a file's name may hold, as an escape: no file of texts takes them."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
