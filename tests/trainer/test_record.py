"""What a prompt remembers of its task, and what is made of a record that a stranger wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tvp.sdk.errors import DataError
from tvp.trainer import record, tasks
from tvp.trainer.config import make_config
from tvp.trainer.data import Jsonl
from tvp.trainer.record import FACT, TaskRecord, fingerprint, name_of, shared
from tvp.trainer.signals import open_data
from tvp.trainer.team import Team

QUESTION = "What color is it?"


@pytest.fixture
def folder(tmp_path):
    """Class folders, and rows about the same pictures."""
    rng = np.random.default_rng(0)
    rows = []
    for colour in ("red", "green"):
        (tmp_path / "doors" / colour).mkdir(parents=True)
        for i in range(10):
            file = tmp_path / "doors" / colour / f"{i}.png"
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(file)
            image = file.relative_to(tmp_path).as_posix()
            rows.append({"image": image, "question": QUESTION, "answer": colour, "labels": ["red", "green"]})
    write(tmp_path / "mine.jsonl", rows)
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def recorded(config):
    task = tasks.through(tasks.get(config.task), config.camera)
    return TaskRecord.of(config, task, open_data(config, task, Team()))


def made(**given):
    return recorded(make_config({"models": ("zoo:llava",), "task": "custom", **given}))


def test_a_record_comes_from_the_data(folder):
    """Its name is that of the data; its question and labels those that all rows have."""
    for data, question, labels in (
        ("mine.jsonl", QUESTION, ("red", "green")),
        ("doors", "What is in the photo?", ("green", "red")),  # of class folders, as ever
    ):
        found = made(data=str(folder / data))
        assert (found.name, found.question, found.labels) == (data.removesuffix(".jsonl"), question, labels)
        assert TaskRecord.read(json.loads(json.dumps({FACT: found.facts()}))) == found
    known = recorded(make_config({"models": ("zoo:llava",), "task": "count", "n_train": 10}))
    assert (known.name, known.data, known.fingerprint) == ("count", "", "")
    assert (known.question, known.labels) == (tasks.get("count").question, tasks.get("count").labels)


def test_rows_that_differ_share_nothing(folder):
    file = folder / "mine.jsonl"
    rows = rows_of(file)
    for key, value, expected in (
        ("question", "Another?", ("", ("red", "green"))),
        ("labels", ["green", "red"], (QUESTION, ("red", "green"))),  # another order is no other set
        ("labels", ["green", "red", "blue"], (QUESTION, ())),
    ):
        write(file, [*rows[:-1], {**rows[-1], key: value}])
        assert shared(tasks.get("custom"), Jsonl(file)) == expected
    assert shared(tasks.get("count"), Jsonl(file))[0] == tasks.get("count").question  # a task has its own


def test_labels_that_were_inferred_are_remembered(folder):
    file = folder / "mine.jsonl"
    write(file, [{key: value for key, value in row.items() if key != "labels"} for row in rows_of(file)])
    found = made(data=str(file))
    assert (found.labels, found.match) == (("green", "red"), "loose")
    assert found.open(found.definition())[0].questions[0].labels == ("green", "red")


def test_a_stranger_invents_no_match():
    assert TaskRecord("x", "custom", match="always").definition().match == "loose"
    assert TaskRecord("x", "custom", match="exact").definition().match == "exact"


def test_only_a_custom_task_is_named_after_its_data():
    custom, count = tasks.get("custom"), tasks.get("count")
    assert name_of(custom, "/photos/of doors/") == "of doors"
    assert name_of(custom, "photos.v2/mine.jsonl") == "mine"
    assert name_of(custom, "photos.v2") == "photos.v2"
    assert name_of(custom, "lamps/train.jsonl") == name_of(custom, "lamps/Test") == "lamps"
    assert name_of(custom, "scenes") == name_of(custom, "") == "custom"
    assert name_of(count, "photos") == "count"


@pytest.mark.parametrize("camera", ["", "blur:3,shot:2"])
def test_the_data_is_opened_again_and_must_be_the_same(folder, camera):
    """With a camera, whose noise is drawn anew, too: pictures before it are compared."""
    config = make_config(
        {"models": ("zoo:llava",), "task": "custom", "data": str(folder / "mine.jsonl"), "camera": camera}
    )
    found = recorded(config)
    task = found.definition()
    assert (task.name, task.question, task.labels) == ("mine", QUESTION, ("red", "green"))
    again = found.open(task)
    assert len(again) == 20
    assert (again[0].clean is None) == (not camera)
    picture = folder / "doors" / "red" / "0.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(picture)
    with pytest.raises(DataError, match="holds other pictures now"):
        found.open(task)
    (folder / "mine.jsonl").unlink()
    with pytest.raises(DataError, match="no data source"):
        found.open(task)


def test_a_folder_of_pictures_is_asked_the_usual_question(folder):
    config = make_config(
        {"models": ("zoo:llava",), "method": "lens", "pictures": str(folder / "doors"), "like": "scenes"}
    )
    found = recorded(config)
    assert (found.name, found.pictures, found.question) == ("doors", True, "")
    data = found.open(found.definition())
    assert len(data) == 20
    assert data[0].questions[0].text == "What is in the photo?"


def test_a_strangers_record_reads_no_folder_of_mine(folder):
    """It may name any folder; without the fingerprint of its pictures, nothing of it goes into a bundle."""
    planted = TaskRecord("x", "custom", data=str(folder / "doors"), pictures=True, fingerprint="0" * 64)
    with pytest.raises(DataError, match="other pictures"):
        planted.open(planted.definition())


def test_a_record_of_wrong_types_is_none_or_partly_read():
    for facts in ({}, {FACT: None}, {FACT: "x"}, {FACT: {"name": 3}}, {"frame": {}, FACT: {"name": "lens"}}):
        assert TaskRecord.read(facts) is None
    odd = {"name": "x", "labels": ["a", 1], "pictures": "yes", "question": None, "invented": 1, "task": "gone.toml"}
    found = TaskRecord.read({FACT: odd})
    assert found == TaskRecord("x", "gone.toml")
    assert found.definition().name == "x"
    assert TaskRecord.read({"lens": {FACT: {"name": "lens"}}, "frame": {FACT: {"name": "frame"}}}).name == "frame"


def test_large_data_is_not_read_whole(folder, monkeypatch):
    monkeypatch.setattr(record, "N_SAMPLES", 4)
    data, read = Jsonl(folder / "mine.jsonl"), []
    monkeypatch.setattr(Jsonl, "__getitem__", lambda self, i, get=Jsonl.__getitem__: read.append(i) or get(self, i))
    fingerprint(data)
    assert read == [0, 5, 10, 15]
