"""The newcomer's tasks: what they are made of, and the page of their results."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks import newcomer
from tvp.trainer import cameras

DRAWN = ("colours", "signs", "red", "count", "limits")  # which need no photos
TASKS = {task.name: task for task in (*newcomer.TUNING, *newcomer.SHOWN)}


def test_the_tasks_are_as_many_and_as_different_as_was_asked():
    assert len(newcomer.TUNING) == len(newcomer.SHOWN) == 8
    assert len(TASKS) == 16
    assert {task.hopeless for task in newcomer.SHOWN} == {True, False}
    assert (min(task.n for task in TASKS.values()), max(task.n for task in TASKS.values())) == (40, 1000)
    for task in TASKS.values():
        for camera in filter(None, (task.spoilt, task.camera)):
            assert cameras.parse(camera).parts


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_pictures_have_every_answer(name):
    found = list(islice(TASKS[name].pictures(""), 60))
    answers = {answer for _, answer in found}
    assert 2 <= len(answers) <= 10
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture, _ in found)


def test_a_folder_for_each_answer_is_written(tmp_path):
    newcomer.write(TASKS["signs"], tmp_path, "")
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["EXIT", "GO", "SLOW", "STOP"]
    assert len(list(tmp_path.rglob("*.png"))) == 120


def test_figures_are_taken_from_what_the_commands_print():
    row = {}
    newcomer._read(
        row, "tvp eval -t x", "zoo:blip2  full picture, 64 px   17.0% [12.0%, 22.5%] of 200\n"
        "zoo:blip2  runs/x/prompt.safetensors 43.0% [36.0%, 50.0%] of 200; +26.0 points (+17.5 to +34.0)\n",
    )  # fmt: skip
    assert row == {"before": 17.0, "n": 200, "after": 43.0, "gain": [26.0, 17.5, 34.0]}
    assert newcomer.verdict(row) == "helps"
    assert newcomer.verdict({"gain": [1.0, -3.0, 4.0]}) == "unclear"
    assert newcomer.verdict({}) == "not shown to help"


def test_the_page_in_the_docs_is_that_of_the_results():
    rows = json.loads(Path(newcomer.__file__).with_suffix(".json").read_text())
    assert newcomer.PAGE.read_text(encoding="utf-8") == newcomer.page(rows)
    assert [row["task"] for row in rows] == [task.name for task in newcomer.SHOWN]
    for row in rows:
        assert row.get("gain", [0, 0, 0])[2] >= 0  # none is below no prompt by more than its interval
        assert not (row["hopeless"] and "gain" in row)
