"""Labels that are taken from the answers of data without labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tvp.trainer import tasks
from tvp.trainer.data import Jsonl, Subset, questions_of
from tvp.trainer.data.labelled import inferred, with_inferred

YES_NO = ["yes", "no", "no"] * 3


def written(folder, answers, question=lambda i: "Is it red?", **more):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    rows = [{"image": "a.png", "question": question(i), "answer": answer, **more} for i, answer in enumerate(answers)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_few_answers_become_labels_and_a_warning_says_so(tmp_path, caplog):
    file = written(tmp_path, YES_NO)
    data = tasks.open_usable(str(file), tasks.get("custom"), "train", 0, 0)
    assert "only 2 answers: taken as labels, no, yes" in caplog.text
    assert data[0].questions == questions_of(data, 0)
    assert questions_of(Subset(data, [8]), 0)[0].labels == ("no", "yes")
    assert [question.answer for i in range(9) for question in questions_of(data, i)] == YES_NO


@pytest.mark.parametrize(
    ("answers", "question", "more"),
    [
        (["yes"] * 9, lambda i: "?", {}),  # one answer is no choice
        ([str(i // 3) for i in range(33)], lambda i: "?", {}),  # eleven are free texts
        (["yes"] * 7 + ["no"] * 2, lambda i: "?", {}),  # no is too rare to be sure
        (YES_NO, lambda i: f"Is {i % 2} there?", {}),  # other questions may have other answers
        (YES_NO, lambda i: "?", {"labels": ["yes", "no", "maybe"]}),  # the rows know better
    ],
)
def test_unclear_answers_stay_free(tmp_path, answers, question, more):
    data = Jsonl(written(tmp_path, answers, question, **more))
    assert inferred(data) == ()
    assert with_inferred(data) is data


def test_published_and_free_tasks_are_left_alone(tmp_path):
    file = written(tmp_path, YES_NO)
    free = tasks.TaskDefinition("mine", free=True)
    assert questions_of(tasks.open_usable(str(file), free, "train", 0, 0), 0)[0].labels == ()
