"""Large photos take the memory of one, however many rows ask about them."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from tvp.trainer.batches import load_batch
from tvp.trainer.data import Jsonl, rows
from tvp.trainer.prompt import Geometry

GEOMETRY = Geometry(224, 164)
SIDES = 1000, 1500


@pytest.fixture
def read():
    return []


@pytest.fixture
def data(tmp_path, monkeypatch, read):
    """Sixteen rows about one photo, then one about each of eight."""

    def read_photo(file):
        read.append(file.name)
        return np.full((*SIDES, 3), int(file.stem), np.uint8)

    lines = []
    for i in range(9):
        (tmp_path / f"{i}.jpg").touch()
        lines += [json.dumps({"image": f"{i}.jpg", "question": "?", "answer": "x"})] * (16 if i == 0 else 1)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(rows, "read_image", read_photo)
    return Jsonl(tmp_path / "a.jsonl")


def test_a_run_of_rows_reads_and_shrinks_its_picture_once_and_holds_one(data, read, monkeypatch):
    shrunk, shrink = [], Geometry.shrink
    monkeypatch.setattr(Geometry, "shrink", lambda self, picture: shrunk.append(1) or shrink(self, picture))
    tracemalloc.start()
    batch = load_batch(data, range(len(data)), GEOMETRY, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == [f"{i}.jpg" for i in range(9)]
    assert len(shrunk) == 9
    assert batch.pictures[:, 0, 0, 0].tolist() == [0] * 16 + list(range(1, 9))
    assert peak < 6 * 3 * SIDES[0] * SIDES[1] + 3 * batch.pictures.nbytes  # 24 photos took 24 times this size


def test_rows_of_other_pictures_between_them_are_not_taken_for_the_same(data):
    batch = load_batch(data, [0, 17, 1, 17, 18, 0], GEOMETRY, 1)
    assert batch.pictures[:, 9, 9, 0].tolist() == [0, 2, 0, 2, 3, 0]
