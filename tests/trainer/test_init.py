"""`tvp init`: what it makes of folders, what it says of their pictures, and that its commands can be typed."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tvp.sdk.cli import cli
from tvp.sdk.errors import RequestError
from tvp.trainer import tasks
from tvp.trainer.new_task import find_task

rng = np.random.default_rng(0)


def save(file, value=None):
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 255, (16, 16, 3), np.uint8) if value is None else np.full((16, 16, 3), value, np.uint8)
    Image.fromarray(pixels).save(file)


def classes(folder, n=12, names=("open", "closed")):
    for name in names:
        for i in range(n):
            save(folder / name / f"{i}.png")


def init(*arguments):
    done = CliRunner().invoke(cli, ["init", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def fails(*arguments):
    done = CliRunner().invoke(cli, ["init", *map(str, arguments)])
    assert done.exit_code
    return f"{done.output} {done.exception}"


def fields(file):
    return tomllib.loads(Path(file).read_text())


def commands(output):
    return [line.strip() for line in output.splitlines() if line.startswith("  tvp ")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_class_folders(tmp_path):
    classes(tmp_path / "my doors")
    said = init("my doors", "-q", "Is the door open?", "-m", "zoo:llava")
    file = tmp_path / "my doors" / "task.toml"
    assert fields(file) == {
        "name": "my doors", "question": "Is the door open?", "labels": ["closed", "open"], "data": "."
    }  # fmt: skip
    assert "24 pictures. Question: Is the door open?" in said
    assert "4 pictures are for the test, 20 to learn from." in said
    assert "note:" not in said
    assert commands(said) == [
        "tvp eval -m zoo:llava -t 'my doors/task.toml'",
        "tvp train -m zoo:llava -t 'my doors/task.toml' -o runs/my-doors",
        "tvp eval -m zoo:llava -t 'my doors/task.toml' -p runs/my-doors/prompt.safetensors",
        "tvp export -m zoo:llava -t 'my doors/task.toml' -p runs/my-doors/prompt.safetensors -o runs/my-doors-task",
        commands(said)[-1],
    ]
    ask = shlex.split(commands(said)[-1])
    assert [*ask[:3], *ask[4:]] == ["tvp", "ask", "runs/my-doors-task", "--rank"]
    task = tasks.get(str(file))
    assert len(tasks.open_data("", task, "test", 0, 0)) == 4
    assert Path(ask[3]).is_file()
    tested = {row.picture for row in map(tasks.open_data("", task, "test", 0, 0).row, range(4))}
    assert str(Path(ask[3]).resolve()) in tested  # a picture that training did not see


def test_a_csv_file_becomes_jsonl_beside_it(tmp_path):
    lines = ["Image;Answer"]
    for i in range(30):
        save(f"photos/{i}.png")
        lines.append(f"{i}.png;{('left', 'right')[i % 2]}")
    Path("photos/rows.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    said = init("photos", "--question", "Which way, left or right?")
    rows = [json.loads(line) for line in Path("photos/rows.jsonl").read_text().splitlines()]
    assert rows[1] == {"image": "1.png", "answer": "right", "question": "Which way, left or right?"}
    assert fields("photos/task.toml") == {
        "name": "photos", "data": "rows.jsonl", "question": "Which way, left or right?", "labels": ["left", "right"],
    }  # fmt: skip
    assert "Labels: left, right." in said
    assert sorted(file.suffix for file in Path("photos").iterdir() if not file.match("*.png")) == [
        ".csv", ".jsonl", ".toml",
    ]  # fmt: skip


def test_each_of_several_questions_has_the_labels_of_its_own_answers(tmp_path):
    lines = ["image,question,answer"]
    for i in range(12):
        save(f"{i}.png")
        lines.append(f'{i}.png,"Open, or not?",{("yes", "no")[i % 2]}')
        lines.append(f"{i}.png,What does the sign say?,word {i}")
    Path("rows.csv").write_text("\n".join(lines))
    said = init("rows.csv")
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert rows[0]["labels"] == ["no", "yes"]
    assert "labels" not in rows[1]
    assert fields("rows.toml") == {"name": "rows", "data": "rows.jsonl"}
    assert "12 pictures. Questions: 2 different ones" in said


def test_a_jsonl_file_is_used_as_it_is(tmp_path):
    for split, n in (("train", 30), ("test", 10)):
        text = ""
        for i in range(n):
            save(f"{split}/{i}.png")
            row = {"image": f"{split}/{i}.png", "question": "What?", "answer": "ab"[i % 2]}
            text += json.dumps(row) + "\n"
        Path(f"{split}.jsonl").write_text(text)
    before = Path("train.jsonl").read_bytes()
    said = init(tmp_path, "--label", "a", "--label", "b", "--name", "letters")
    assert fields("task.toml") == {
        "name": "letters", "data": "train.jsonl", "test": "test.jsonl", "question": "What?", "labels": ["a", "b"],
    }  # fmt: skip
    assert "10 pictures are for the test, 30 to learn from. The test is test.jsonl." in said
    assert Path("train.jsonl").read_bytes() == before


@pytest.mark.parametrize("option", ["--like", "--clean"])
def test_a_lens_from_two_folders(option, tmp_path):
    for i in range(9):
        save(f"device/{i}.png")
        save(f"good/{i}.png")
    said = init("device", option, "good", "-m", "zoo:blip2", "-o", "lens.toml")
    wanted = {"pairs": ["device", "good"]} if option == "--clean" else {"pictures": "device", "like": "good"}
    assert fields("lens.toml") == {"name": "device", **wanted}
    assert commands(said)[:2] == [
        "tvp train -m zoo:blip2 -t lens.toml -o runs/device",
        "tvp export -m zoo:blip2 --lens runs/device/prompt.safetensors --without-base --pictures device "
        "-o runs/device-lens",
    ]


def test_what_looks_wrong_is_said(tmp_path):
    classes(tmp_path / "data", 12, ("class_1", "dog", "Dog"))
    save("data/dog/same.png", 9)
    save("data/class_1/other.bmp", 9)  # the same pixels in another class
    save("data/dog/1a.png", 50)
    save("data/dog/1b.png", 50)
    save("data/cat/only.png")
    save("data/cat/two.png")
    said = init("data", "-q", "What is it?")
    assert "note: 1 picture with two answers to one question: " in said
    assert "is 'class 1'" in said
    assert "is 'dog'" in said
    assert "note: 1 picture under several names, such as" in said
    assert "note: few pictures: 'cat' 2." in said
    assert "note: names that say little: 'class 1'." in said
    assert "note: answers that differ in case, spaces or a point only: 'Dog', 'dog'" in said


def test_bad_pictures_are_listed_and_left_out_only_if_asked(tmp_path):
    classes(tmp_path / "data")
    (tmp_path / "data" / "open" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "data" / "open" / "notes.txt").write_text("x")
    said = fails("data", "-q", "What?")
    assert "2 row(s) or picture(s) cannot be used" in said
    assert "broken.png" in said
    assert "notes.txt" in said
    assert not (tmp_path / "data" / "task.toml").exists()
    said = init("data", "-q", "What?", "--skip-bad", "-m", "m")
    assert "24 pictures" in said
    assert commands(said)[0] == "tvp eval -m m -t data/task.toml --skip-bad"


def test_nothing_is_overwritten(tmp_path):
    classes(tmp_path / "data")
    init("data", "-q", "What?")
    before = Path("data/task.toml").read_text()
    assert "is there already, and is not overwritten" in fails("data", "-q", "Other?")
    assert Path("data/task.toml").read_text() == before


def test_a_label_that_is_no_answer_is_refused(tmp_path):
    classes(tmp_path / "data")
    said = fails("data", "-q", "What?", "--label", "open", "--label", "shut")
    assert "has the class 'closed', which is none of the task's labels: open, shut." in said
    lines = [
        "image,question,answer",
        *(f"data/open/{i}.png,What?,{a}" for i, a in enumerate(["open", "shut", "ajar", "shut"])),
    ]
    Path("rows.csv").write_text("\n".join(lines))
    said = fails("rows.csv", "--label", "shut", "--label", "ajar")
    assert "rows.csv, line 2: the answer 'open' is none of the labels ['shut', 'ajar']" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "rows.csv"]  # and no file is left


def test_the_question_is_asked_for(tmp_path):
    classes(tmp_path / "data")
    task = find_task(tmp_path / "data", "", lambda: "Is it open?")
    assert task.fields["question"] == "Is it open?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,answer,answer\na,b,c", "has a column twice"),
        ("image,question\na,b", "has no column 'answer'"),
        ("image,anser\na,b", "the column 'anser'.*Did you mean answer"),
        ("image,answer\na", "line 2 has 1 cells, and there are 2 columns"),
        ("image,question,answer\n../x.png,q,a", "outside of the data folder"),
        ("image,question,answer\n", "has no rows"),
        ("", "has no column 'image'"),
    ],
)
def test_a_bad_table_is_named_with_its_line(text, said, tmp_path):
    save("../x.png")
    Path("rows.csv").write_text(text)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(fails("rows.csv", "-q", "What?"))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


def test_pictures_that_are_left_out_are_listed_and_not_counted(tmp_path):
    classes(tmp_path / "doors")
    broken = sorted((tmp_path / "doors" / "open").iterdir())[0]
    broken.write_bytes(b"no picture")
    said = init("doors", "-q", "Open?", "--skip-bad")
    assert "left out: " in said
    assert str(broken.relative_to(tmp_path)) in said
    n_all = int(re.search(r"(\d+) pictures\.", said)[1])
    n_test, n_train = map(int, re.search(r"(\d+) pictures? (?:is|are) for the test, (\d+) to learn", said).groups())
    assert n_all == 23 == n_test + n_train


def test_a_folder_with_a_task_file_is_no_task(tmp_path):
    classes(tmp_path / "doors")
    init("doors", "-q", "Open?")
    with pytest.raises(RequestError, match=r"doors is a folder. Its task file is doors/task.toml"):
        tasks.get("doors")
