"""What an export is about: what was typed, what the prompt remembers, what the data says; and what is said of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.tiny import save_tiny
from tvp import sdk
from tvp.export.cli import export
from tvp.export.task import MOST_SIDE, about
from tvp.sdk.errors import RequestError
from tvp.sdk.formats.golden import read_cases
from tvp.trainer.config import make_config
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.record import FACT, TaskRecord, fingerprint
from tvp.trainer.signals import open_data as opened_for
from tvp.trainer.tasks import get, open_data
from tvp.trainer.team import Team
from tvp.trainer.train import train

QUESTION, LABELS = "What color is it?", ("red", "green")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Rows about pictures, sorted by their answers; the current folder, so that names are short."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    rows = []
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
        answer = LABELS[i // 10]
        rows.append({"image": f"pictures/{i}.png", "question": QUESTION, "answer": answer, "labels": LABELS})
    (tmp_path / "doors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = [{**row, "question": "Which one?"} for row in rows]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def remembering(record):
    return Prompt(None, Geometry(64, 64), facts={"task": record.task, FACT: record.facts()})


@pytest.fixture
def prompt(folder):
    data = open_data("doors.jsonl", get("custom"), "train", 0, 0)
    return remembering(
        TaskRecord("doors", "custom", QUESTION, LABELS, data="doors.jsonl", fingerprint=fingerprint(data))
    )


def task_of(found):
    return found.task.name, found.task.question, found.task.labels


DOORS = ("doors", QUESTION, LABELS)


def test_typed_wins_then_the_prompt_then_the_data(prompt):
    """Each row: the arguments, the task, and whether its own pictures are compared."""
    count = ("count", get("count").question, get("count").labels)
    for arguments, expected, pictured in (
        ((None, prompt, None), DOORS, True),
        (("custom", prompt, None), DOORS, True),
        ((None, None, "doors.jsonl"), DOORS, True),
        (("custom", None, "doors.jsonl"), DOORS, True),
        ((None, prompt, "other.jsonl"), DOORS, True),
        ((None, prompt, None, "Open?", ("yes", "no")), ("doors", "Open?", ("yes", "no")), True),
        (("custom", None, "doors.jsonl", "Open?"), ("doors", "Open?", LABELS), True),
        (("count", prompt, None), count, True),  # of drawn scenes, which are its own
        (("custom", None, None), ("custom", "", ()), False),
        (("cifar10", None, None), ("cifar10", get("cifar10").question, get("cifar10").labels), False),
    ):
        found = about(*arguments)
        assert task_of(found) == expected, arguments
        assert found.has_pictures is (found.data is not None) is pictured, arguments
    with pytest.raises(RequestError, match="Nothing says what the task"):
        about(None, None, None)
    with pytest.raises(RequestError, match="no task 'conut'"):
        about("conut", prompt, None)


def test_a_task_file_has_its_own_pictures(folder):
    """Without a prompt those of its test; with one those that it was learned from, even where the file is gone."""
    text = 'name = "lamps"\nquestion = "What color is it?"\nlabels = ["red", "green"]\ndata = "doors.jsonl"\n'
    (folder / "task.toml").write_text(text)
    found = about("task.toml", None, None)
    assert task_of(found) == ("lamps", QUESTION, LABELS)
    assert (len(found.data), found.has_pictures, found.warnings, found.lines) == (4, True, (), ())
    config = make_config({"models": ("zoo:llava",), "task": "task.toml"})
    learned = opened_for(config, get("task.toml"), Team())
    prompt = remembering(TaskRecord.of(config, get("task.toml"), learned))
    for typed, n_lines in (("task.toml", 1), (None, 2)):
        found = about(typed, prompt, None)
        assert task_of(found) == ("lamps", QUESTION, LABELS)
        assert (len(found.data), len(found.lines), found.warnings) == (16, n_lines, ())
        assert not pictures(found.data) & pictures(about("task.toml", None, None).data)
    (folder / "task.toml").unlink()
    found = about(None, prompt, None)
    assert task_of(found) == ("lamps", QUESTION, LABELS)
    assert (len(found.data), found.task.match, found.warnings) == (16, "loose", ())


def test_a_lens_s_task_file_has_its_own_pictures(folder):
    (folder / "good").mkdir()
    for fields in ('pictures = "pictures"\nlike = "good"\n', 'pairs = ["pictures", "good"]\n'):
        (folder / "night.toml").write_text(f'name = "night"\n{fields}')
        found = about("night.toml", None, None)
        assert (found.task.name, len(found.data), found.has_pictures, found.warnings) == ("night", 20, True, ())


def test_rows_without_labels_get_those_that_their_answers_are(folder):
    rows = [json.loads(line) for line in (folder / "doors.jsonl").read_text().splitlines()]
    bare = [{key: value for key, value in row.items() if key != "labels"} for row in rows]
    (folder / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert set(about(None, None, "bare.jsonl").task.labels) == set(LABELS)


def pictures(data):
    return {data[i].picture.tobytes() for i in range(len(data))}


def test_what_may_not_be_wanted_is_said(prompt):
    """Each row: the arguments, and the whole of its warnings."""
    learned = f"The prompt was learned for the question {QUESTION!r}, and "
    other = "The prompt was learned for the labels 'red', 'green', and the bundle has "
    for arguments, said in (
        ((None, prompt, None), []),
        ((None, None, "doors.jsonl"), []),
        ((None, prompt, None, "Open?"), [f"{learned}the bundle asks 'Open?'."]),
        ((None, prompt, None, None, ("yes", "no")), [f"{other}'yes', 'no'."]),
        (
            (None, prompt, "other.jsonl"),
            [
                f"Rows of other.jsonl ask other questions than the task's {QUESTION!r}, such as 'Which one?'. The "
                "comparison asks the task's about their pictures."
            ],
        ),
        (
            ("existence", prompt, None),
            [f"{learned}the bundle has no question of its own.", f"{other}'yes', 'no'."],
        ),
        (
            ("custom", None, None),
            ["The comparison is on drawn scenes and their questions, not on the task's own. Name some with --data."],
        ),
        (
            ("cifar10", None, None),
            ["The comparison is on drawn scenes, not on the task's own. Name some with --data."],
        ),
    ):
        assert list(about(*arguments).warnings) == said, arguments


def test_data_that_is_gone_is_said_and_not_needed(prompt, folder):
    (folder / "doors.jsonl").unlink()
    found = about(None, prompt, None)
    assert task_of(found) == DOORS
    assert found.data is None
    said = " ".join(found.warnings)
    assert "no data source 'doors.jsonl'" in said
    assert "The comparison is on drawn scenes, not on the task's own." in said


def test_remembered_pictures_are_shrunk_and_come_from_all_classes(folder, prompt):
    Image.fromarray(np.zeros((600, 2000, 3), np.uint8)).save(folder / "pictures" / "3.png")
    data = open_data("doors.jsonl", get("custom"), "train", 0, 0)
    prompt = remembering(
        TaskRecord("doors", "custom", QUESTION, LABELS, data="doors.jsonl", fingerprint=fingerprint(data))
    )
    found = about(None, prompt, None)
    sides = {max(found.data[i].picture.shape) for i in range(20)}
    assert sides == {32, MOST_SIDE}
    assert {found.data[i].questions[0].answer for i in range(6)} == set(LABELS)
    assert max(found.usual[3].picture.shape) == 2000  # what is usual is of the pictures as they are


def test_a_prompt_of_before_says_the_name_of_its_task(folder):
    old = Prompt(None, Geometry(64, 64), facts={"task": "count"})
    assert about(None, old, None).task.name == "count"
    for facts in ({"task": "custom"}, {"task": "gone"}, {"task": 3}, {}):
        with pytest.raises(RequestError, match="Nothing says"):
            about(None, Prompt(None, Geometry(64, 64), facts=facts), None)


def test_from_training_to_a_bundle_without_naming_the_task_again(folder):
    """The bundle asks what the prompt was learned for, and its golden cases are of those pictures."""
    model = save_tiny("llava", folder / "model")
    config = make_config(
        {
            "models": (str(model),), "method": "evp", "task": "custom", "data": "doors.jsonl", "canvas": 64,
            "inner": 48, "batch": 4, "steps": 1, "n_validation": 2, "keep": "last",
        }
    )  # fmt: skip
    train(config, "run", quiet=True)
    file = folder / "run" / "prompt.safetensors"
    done = CliRunner().invoke(
        export, ["-m", str(model), "-p", str(file), "-o", "bundle", "--cases", "4", "--moments", "8"]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.output.splitlines()[:2] == [
        "the task 'doors' asks 'What color is it?', with the labels 'red', 'green'",
        "compared on pictures of doors.jsonl, from which the prompt was learned; some go into the bundle",
    ]
    with sdk.load("bundle") as loaded:
        assert (loaded.name, loaded.manifest.question, loaded.labels) == DOORS
        assert loaded.manifest.n_moment_pictures == 8
        assert {row.label for row in loaded.rank("pictures/0.png")} == set(LABELS)
    cases = read_cases(folder / "bundle")
    assert {case.question for case in cases} == {QUESTION}
    golden = {(folder / "bundle" / "golden" / case.picture).read_bytes() for case in cases}
    shown = {np.asarray(Image.open(folder / "bundle" / "golden" / case.picture)).tobytes() for case in cases}
    assert shown <= {np.asarray(Image.open(path)).tobytes() for path in (folder / "pictures").iterdir()}
    assert len(golden) == 4
