"""Folders of parquet files, as hub data sets have them."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from tvp.sdk import errors, read_image

from .sample import CAPTION, SPLITS, Question, Sample, check_names, report

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

    Raises:
        DataError: a file or a row cannot be read. Rows are counted from 0 in each file.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        question: str,
        caption: str = CAPTION,
        labels: Sequence[str] = (),
        skip_bad: list[str] | None = None,
    ) -> None:
        import pyarrow as pa

        self._files = parquet_files(folder, split)
        if not self._files:
            raise errors.DataError(f"There is no {split}*.parquet in {folder}; it needs one for each split.")
        opened = [_read(file) for file in self._files]
        self.names: tuple[str, ...] = opened[0][2]
        for file, (_, _, names) in zip(self._files, opened, strict=True):
            check_names(str(file), names, labels)
            if names != self.names:
                raise errors.DataError(f"{file} has the classes {names}, and {self._files[0]} has {self.names}.")
        self._images = pa.chunked_array([chunk for images, _, _ in opened for chunk in images.chunks])
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


def _read(file: Path) -> tuple[Any, list[int | None], tuple[str, ...]]:
    """Return a file's images (a chunked array of structs), labels and class names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        column = "img" if "image" not in schema.names and "img" in schema.names else "image"
        # partitioning=None: a folder named `a=b` is no column
        table = pq.read_table(file, columns=[column, "label"], partitioning=None)
        images, labels = table[column], table["label"]
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = tuple(about["info"]["features"]["label"]["names"])
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        raise errors.DataError(f"{file} is not a parquet file with {NEEDS}: {error}") from error
    struct = images.type
    if not len(table) or not pa.types.is_struct(struct) or struct.get_field_index("bytes") < 0:
        raise errors.DataError(
            f"{file} has {len(table)} rows, with images of type {struct}. It needs at least one "
            "row, and images as {bytes, path}."
        )
    if not pa.types.is_integer(labels.type):
        raise errors.DataError(f"{file} has labels of type {labels.type}. It needs {NEEDS}.")
    return images, labels.to_pylist(), names
