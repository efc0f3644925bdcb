"""Folders of parquet files, as hub data sets have them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tvp.sdk import errors, read_image

from .pages import unpacked_sizes
from .places import resolved_file
from .sample import CAPTION, SPLITS, Question, Row, Sample, check_names, report

# What a file may hold, by its size on disk: pictures are compressed already, so an honest file hardly shrinks them.
MOST_UNPACKED = 4, 256 * 2**20  # times its size, plus these bytes
MOST_ROWS = 1_000_000  # of a file with less than 64 bytes a row
AT_ONCE = (
    256 * 2**20
)  # bytes that are unpacked at once; each value of a batch may be as large as a column of its row group
NEEDS = "columns image {bytes, path} and label (int), and class names in its huggingface metadata"


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Return the files of a split, in the folder or in its folder `data`, such as train*.parquet or test*.parquet."""
    for name in SPLITS.get(split, (split,)):
        for place in (folder, folder / "data"):
            if files := sorted(place.glob(f"{name}*.parquet")):
                return files
    return []


class Parquet:
    """A split of a folder of parquet files.

    The files have a column `image` (or `img`) {bytes, path} and a column `label` (int). Class names come from the
    `huggingface` metadata of the schema.

    Args:
        folder: the folder.
        split: `train` or `test`.
        question: asked about every picture.
        caption: what the guide reads, with {label} for the class.
        labels: the task's. If there are some, every class must be one of them.
        skip_bad: a list, to which messages are appended about rows that are left out because of a wrong label.
            Default: such a row is an error.
        allow_outside: the files may be links out of the folder. Default False.

    Raises:
        DataError: a file or a row cannot be read, or a file unpacks to far more than its size. Rows are counted from
            0 in each file.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        question: str,
        caption: str = CAPTION,
        labels: Sequence[str] = (),
        skip_bad: list[str] | None = None,
        *,
        allow_outside: bool = False,
    ) -> None:
        import pyarrow as pa

        root = folder.resolve()
        found = {
            resolved_file(f"{folder} has the file {file.name}", file, root, allow_outside): file
            for file in parquet_files(folder, split)
        }
        self._files = list(found.values())  # each once, whichever names it has
        if not self._files:
            raise errors.DataError(f"There is no {split}*.parquet in {folder}; it needs one for each split.")
        opened = [_read(file) for file in self._files]
        self.names: tuple[str, ...] = opened[0][2]
        for file, (_, _, names) in zip(self._files, opened, strict=True):
            check_names(str(file), names, labels)
            if names != self.names:
                raise errors.DataError(f"{file} has the classes {names}, and {self._files[0]} has {self.names}.")
        self._images = pa.chunked_array([chunk for images, _, _ in opened for chunk in images])
        labelled = [label for _, file_labels, _ in opened for label in file_labels]
        self._ends = list(accumulate(len(file_labels) for _, file_labels, _ in opened))
        self._rows: list[tuple[int, str]] = []
        for row, label in enumerate(labelled):
            if label is not None and 0 <= label < len(self.names):
                self._rows.append((row, self.names[label]))
            else:
                message = f"{self._where(row)}: the label {label} is none of the {len(self.names)} classes."
                report(errors.DataError(message), skip_bad)
        if not self._rows:
            raise errors.DataError(f"{folder} has no good row in {', '.join(file.name for file in self._files)}.")
        self._question, self._caption = question, caption

    def _where(self, row: int) -> str:
        file = bisect_right(self._ends, row)
        return f"{self._files[file]}, row {row - (self._ends[file - 1] if file else 0)}"

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        row, name = self._rows[index]
        return Row(self._where(row), self._where(row), (Question(self._question, name, self.names),))

    def __getitem__(self, index: int) -> Sample:
        row, name = self._rows[index]
        image = self._images[row].as_py()
        if image is None or image["bytes"] is None:
            raise errors.DataError(f"{self._where(row)} holds no bytes of a picture. A path alone is not followed.")
        try:
            picture = read_image(image["bytes"])
        except errors.ImageError as error:
            raise errors.DataError(f"{self._where(row)}: {error}") from error
        return Sample(picture, (Question(self._question, name, self.names),), self._caption.format(label=name))


def _read(file: Path) -> tuple[list[Any], list[int | None], tuple[str, ...]]:
    """Return a file's images (arrays of structs), labels and class names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            column = "img" if "image" not in schema.names and "img" in schema.names else "image"
            struct, kind = schema.field(column).type, schema.field("label").type
            about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            names = tuple(about["info"]["features"]["label"]["names"])
            n_rows = opened.metadata.num_rows
            if n_rows < 1 or not pa.types.is_struct(struct) or struct.get_field_index("bytes") < 0:
                raise errors.DataError(
                    f"{file} has {n_rows} rows, with images of type {struct}. It needs at least one row, and images "
                    "as {bytes, path}."
                )
            bytes_type = struct.field("bytes").type
            if not pa.types.is_binary(bytes_type) and not pa.types.is_large_binary(bytes_type):
                raise errors.DataError(f"{file} has pictures of type {bytes_type}. It needs {NEEDS}.")
            if not pa.types.is_integer(kind):
                raise errors.DataError(f"{file} has labels of type {kind}. It needs {NEEDS}.")
            images, labels = _unpack(file, opened, [f"{column}.bytes", "label"])
    except (OSError, KeyError, ValueError, TypeError, RecursionError, pa.ArrowException) as error:
        raise errors.DataError(f"{file} is not a parquet file with {NEEDS}: {error}") from error
    return images, labels, names


def _unpack(file: Path, opened: Any, columns: list[str]) -> tuple[list[Any], list[int | None]]:
    """Return the images and the labels of a file, unless they take far more memory than the file does.

    A stranger's file of some KB may declare gigabytes, or repeat one value a million times.
    """
    n_rows, n_bytes = opened.metadata.num_rows, file.stat().st_size
    factor, more = MOST_UNPACKED
    allowed = factor * n_bytes + more
    if n_rows > max(MOST_ROWS, n_bytes // 64):
        raise errors.DataError(
            f"{file} declares {n_rows:,} rows in {n_bytes:,} bytes. So many pictures do not fit. Do not use it."
        )
    with open(file, "rb") as stream:
        sizes = unpacked_sizes(stream, columns)
    images, labels, unpacked = [], [], sum(sizes)
    if unpacked <= allowed:
        unpacked = 0
        for batch in opened.iter_batches(max(1, min(64, AT_ONCE // max(1, *sizes))), columns=columns):
            unpacked += batch.nbytes
            if unpacked > allowed:
                break
            images.append(batch.column(0))
            labels += batch.column(1).to_pylist()
    if unpacked > allowed:
        raise errors.DataError(
            f"{file} of {n_bytes:,} bytes unpacks to more than {allowed:,}. Pictures are compressed already, so this "
            "file repeats them, or is made to fill the memory. Do not use it, or write each picture to a file."
        )
    if len(labels) != n_rows:
        raise ValueError(f"it declares {n_rows:,} rows and has {len(labels):,}")
    return images, labels
