"""Where pictures and questions come from: scenes, CIFAR-10 parquet folders, JSONL files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tvp.sdk import errors, read_image

from . import scenes


@dataclass(frozen=True)
class Question:
    """What is asked about a picture: the text, its answer, and the labels it is chosen from."""

    text: str
    answer: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A picture, uint8 (height, width, 3), what is asked about it, and its caption for the guide."""

    picture: NDArray[np.uint8]
    questions: tuple[Question, ...]
    caption: str


class Data(Protocol):
    """A finite, indexable set of samples; the same index always gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Scenes:
    """Scenes drawn on demand from a seed, through a camera.

    n_questions: questions about each picture, of the topics in turn.
    """

    def __init__(
        self,
        n: int,
        seed: int,
        size: int = 64,
        n_questions: int = 4,
        camera: scenes.Camera | None = None,
        topics: Sequence[str] = scenes.TOPICS,
    ) -> None:
        self._n, self._seed, self._size = n, seed, size
        self._n_questions, self._camera, self._topics = n_questions, camera, tuple(topics)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._n:
            raise IndexError(index)
        rng = np.random.default_rng([self._seed, index])
        scene = scenes.make_scene(rng)
        picture = scenes.draw(scene, self._size)
        if self._camera:
            picture = self._camera.shoot(picture, rng)
        asked = []
        for k in range(self._n_questions):
            question = scenes.ask(scene, rng, self._topics[(index * self._n_questions + k) % len(self._topics)])
            asked.append(Question(question.text, question.answer, question.labels))
        return Sample(picture, tuple(asked), scene.caption)


class Parquet:
    """A split of a hub-style parquet folder: column `image` {bytes, path}, column `label` (int).

    Class names come from the schema's `huggingface` metadata.
    """

    def __init__(self, folder: Path, split: str, question: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = sorted(folder.glob(f"{split}*.parquet"))
        if not files:
            raise errors.DataError(f"There is no {split}*.parquet in {folder}; a parquet folder holds one a split.")
        self._file = files[0] if len(files) == 1 else folder / f"{split}*.parquet"
        try:
            table = pq.ParquetDataset([str(file) for file in files]).read(columns=["image", "label"])
            self._images = table["image"].combine_chunks()
            self._labels = [int(label) for label in table["label"].to_pylist()]
            about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            self.names = tuple(about["info"]["features"]["label"]["names"])
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise errors.DataError(
                f"{self._file} is not a parquet file with columns image {{bytes, path}} and label (int), "
                f"and class names in its huggingface metadata: {error}"
            ) from error
        if not self._labels or not pa.types.is_struct(self._images.type):
            raise errors.DataError(
                f"{self._file} has {len(self._labels)} rows, images of type {self._images.type}; it needs at least one "
                "row and images as {bytes, path}."
            )
        wrong = [i for i, label in enumerate(self._labels) if not 0 <= label < len(self.names)]
        if wrong:
            raise errors.DataError(
                f"{self._file}, row {wrong[0]}: the label {self._labels[wrong[0]]} is none of the "
                f"{len(self.names)} classes."
            )
        self._question = question

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        data = self._images[index]["bytes"].as_py()
        try:
            picture = read_image(data)
        except errors.ImageError as error:
            raise errors.DataError(f"{self._file}, row {index}: {error}") from error
        name = self.names[self._labels[index]]
        return Sample(picture, (Question(self._question, name, self.names),), f"a {name}")


class Jsonl:
    """A file with one JSON object a line: image (a path, from the file's folder), question, answer,
    and if wanted labels (list) and caption. Every line is checked when the file is opened."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: list[tuple[int, Path, Question, str]] = []
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")  # not at U+2028
        except (OSError, UnicodeDecodeError) as error:
            raise errors.DataError(f"{file} cannot be read as a JSONL file: {error}") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._rows.append((number, *self._parse(number, line)))
        if not self._rows:
            raise errors.DataError(f"{file} has no rows. Each line is a JSON object with image, question and answer.")

    def _parse(self, number: int, line: str) -> tuple[Path, Question, str]:
        where = f"{self._file}, line {number}"
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise errors.DataError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise errors.DataError(f"{where} is not a JSON object with image, question and answer.")
        for key in ("image", "question", "answer"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise errors.DataError(f"{where} has no text under {key!r}; every row needs image, question, answer.")
        unknown = sorted(set(row) - {"image", "question", "answer", "labels", "caption"})
        if unknown:
            raise errors.DataError(f"{where} has the unknown key {unknown[0]!r}; allowed besides: labels, caption.")
        labels = row.get("labels", [])
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise errors.DataError(f"{where}: labels must be a list of texts.")
        if labels and row["answer"].strip() not in [label.strip() for label in labels]:
            raise errors.DataError(f"{where}: the answer {row['answer']!r} is none of its labels {labels}.")
        image = self._file.parent / row["image"]
        if not image.is_file():
            raise errors.DataError(f"{where} names the picture {row['image']!r}, and there is no file {image}.")
        labels = [label.strip() for label in labels]
        caption = row.get("caption") or f"a {row['answer']}"
        return image, Question(row["question"].strip(), row["answer"].strip(), tuple(labels)), str(caption)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        number, image, question, caption = self._rows[index]
        try:
            picture = read_image(image)
        except errors.ImageError as error:
            raise errors.DataError(f"{self._file}, line {number}: {error}") from error
        return Sample(picture, (question,), caption)


class Subset:
    """Some samples of another data set, by index."""

    def __init__(self, data: Data, indices: Sequence[int]) -> None:
        self._data, self._indices = data, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._data[self._indices[index]]


def split(data: Data, n_validation: int, seed: int) -> tuple[Data, Data]:
    """Split training data into (train, validation) without overlap; at least one sample each."""
    if len(data) < 2:
        raise errors.DataError(f"A data set of {len(data)} sample(s) cannot be split into train and validation.")
    order = np.random.default_rng(seed).permutation(len(data))
    n = min(max(1, n_validation), len(data) - 1)
    return Subset(data, order[n:].tolist()), Subset(data, order[:n].tolist())
