"""Task files: a task as data, and what its fields do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvp.sdk.errors import DataError
from tvp.trainer import tasks
from tvp.trainer.cameras import parse
from tvp.trainer.config import make_config
from tvp.trainer.data import picture_of, questions_of
from tvp.trainer.task_files import FIELDS, to_toml


def write_rows(folder, n=40, answers=("yes", "no"), name="rows.jsonl"):
    rows = []
    for i in range(n):
        picture = folder / "pictures" / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(picture)
        answer = answers[i % len(answers)]
        # Two rows about each picture, which stay together.
        rows += [{"image": f"pictures/{i}.png", "question": q, "answer": answer} for q in ("Is it?", "Is it so?")]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(folder, **fields):
    (folder / "task.toml").write_text(to_toml(fields))
    return str(folder / "task.toml")


def pictures(data):
    return {Path(picture_of(data, i)).name for i in range(len(data))}


def test_every_field_is_read(tmp_path):
    write_rows(tmp_path)
    file = write_task(
        tmp_path, name="doors", question="Is it?", labels=["yes", "no"], data="rows.jsonl", test="rows.jsonl",
        camera="fog:3", fit="pad", match="exact", free=True,
    )  # fmt: skip
    task = tasks.get(file)
    assert (task.name, task.question, task.labels, task.fit) == ("doors", "Is it?", ("yes", "no"), "pad")
    assert (task.source, task.test) == (str(tmp_path / "rows.jsonl"),) * 2
    assert (task.camera, task.match, task.free, task.file) == (parse("fog:3"), "exact", True, file)
    lens = tasks.get(write_task(tmp_path, pictures="pictures", like="scenes"))
    assert (lens.pictures, lens.like) == (str(tmp_path / "pictures"), "scenes")
    assert tasks.get(write_task(tmp_path, pairs=["a", "b"])).pairs == (str(tmp_path / "a"), str(tmp_path / "b"))
    said = {"name", "question", "labels", "data", "test", "camera", "fit", "match", "free", "pictures", "like", "pairs"}
    assert set(FIELDS) == said


def test_what_is_left_out_is_as_of_a_task_of_ones_own(tmp_path):
    task = tasks.get(write_task(tmp_path, data="rows.jsonl"))
    assert (task.name, task.question, task.labels, task.match) == ("task", "", (), "loose")
    assert tasks.get("custom").match == "loose"
    assert tasks.get("count").match == "exact"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data = 3", r"sets data to 3; it takes a text"),
        ("labels = ['a', 1]", r"sets labels to \['a', 1\]; it takes a list of texts"),
        ("data = 'x'\nfit = 'crob'", r"sets fit to 'crob'; it is one of crop, pad"),
        ("data = 'x'\nmatch = 'some'", r"it is one of exact, loose"),
        ("data = 'x'\ncamera = 'fogg'", r"sets camera to 'fogg'.*fog"),
        ("data = 'x'\npictures = 'y'\nlike = 'z'", r"sets data and pictures, which both say"),
        ("pictures = 'y'", r"sets one of pictures and like"),
        ("pairs = ['y']", r"They are two folders"),
        ("pairs = ['y', 'z']\ncamera = 'fog:3'", r"sets pairs and a camera"),
        ("test = 'y'\npairs = ['y', 'z']", r"sets test, and no data"),
        ("data = 'x'\nlabels = ['a', 'a ']", r"an empty label, or one twice"),
        ("data = ", r"is not a TOML file"),
        ("a = " + "[" * 5000, r"nested too deeply|not a TOML file"),
        ("", r"does not say where the pictures are"),
    ],
)
def test_a_wrong_field_is_named(text, said, tmp_path):
    (tmp_path / "task.toml").write_text(text)
    with pytest.raises(DataError, match=said):
        tasks.get(str(tmp_path / "task.toml"))


def test_a_fifth_of_its_rows_is_for_the_test_by_picture_and_answer(tmp_path):
    write_rows(tmp_path)
    task = tasks.get(write_task(tmp_path, data="rows.jsonl"))
    train, test = (tasks.open_data("", task, split, 0, seed) for split, seed in (("train", 1), ("test", 2)))
    assert (len(train), len(test)) == (64, 16)
    assert not pictures(train) & pictures(test)
    answers = [questions_of(test, i)[0].answer for i in range(len(test))]
    assert (answers.count("yes"), answers.count("no")) == (8, 8)
    again = tasks.open_data("", task, "test", 0, 9)
    assert pictures(again) == pictures(test)
    assert len(tasks.open_data(str(tmp_path / "rows.jsonl"), task, "test", 0, 0)) == 80  # what is typed is used whole


def test_a_test_file_of_its_own_is_the_test(tmp_path):
    write_rows(tmp_path)
    write_rows(tmp_path, 3, name="others.jsonl")
    task = tasks.get(write_task(tmp_path, data="rows.jsonl", test="others.jsonl"))
    assert len(tasks.open_data("", task, "train", 0, 0)) == 80
    assert len(tasks.open_data("", task, "test", 0, 0)) == 6


def test_answers_that_are_all_different_have_a_test_too(tmp_path):
    write_rows(tmp_path, 20, [f"name {i}" for i in range(20)])
    task = tasks.get(write_task(tmp_path, data="rows.jsonl"))
    assert [len(tasks.open_data("", task, split, 0, 0)) for split in ("train", "test")] == [32, 8]


def test_a_lens_task_says_what_it_is_learned_from(tmp_path):
    pairs = write_task(tmp_path, pairs=["bad", "good"])
    config = make_config({"models": ("m",), "task": pairs})
    assert (config.method, config.pairs) == ("lens", (str(tmp_path / "bad"), str(tmp_path / "good")))
    unpaired = write_task(tmp_path, pictures="bad", like="good")
    config = make_config({"models": ("m",), "task": unpaired})
    assert (config.method, config.pictures, config.like) == ("lens", str(tmp_path / "bad"), str(tmp_path / "good"))
    other = make_config({"models": ("m",), "task": unpaired, "data": "x.jsonl"})
    assert (other.method, other.pictures, other.like) == ("both", "", "")
