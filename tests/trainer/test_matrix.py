"""The matrix: planted models whose right answers are known, what is written, and the command.

Over 400 lines because all of it asks the same few planted models, which are made here.
"""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.bundles import random_prompt
from tests.tiny import save_tiny
from tvp.export.evaluate import accuracy as accuracy_of_bundle
from tvp.sdk import load
from tvp.sdk.cli import cli
from tvp.sdk.errors import CheckError, ModelError
from tvp.trainer import families, matrix, tasks
from tvp.trainer.cameras import KINDS, parse
from tvp.trainer.data import Question, Sample, ThroughCamera
from tvp.trainer.evaluate import Asked, accuracy, ask, judge
from tvp.trainer.families.paligemma import PaliGemma
from tvp.trainer.matrix import Row, columns, evaluate_matrix
from tvp.trainer.metrics import gain
from tvp.trainer.prompt import Geometry, Prompt

pytestmark = pytest.mark.usefixtures("painted")  # a matrix is looked at as a picture
CUSTOM = tasks.get("custom")
SMALL = Geometry(8, 4)  # three quarters of the canvas are frame
LABELS = ("no", "yes")


class Pictures:
    """Seven white pictures and three black ones; is it bright?"""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        picture = np.full((8, 8, 3), 255 * (index < 7), np.uint8)
        return Sample(picture, (Question("Is it bright?", LABELS[index < 7], LABELS),), "")


class Bright(families.Family):
    """Answers yes where the mean of what it sees is over a half."""

    generates, exports, device = False, True, torch.device("cpu")

    def __init__(self):
        pass

    def to_pixels(self, canvas):
        return canvas

    def encode(self, pixels):
        return pixels.mean((1, 2, 3))[:, None, None]

    def connect(self, features, questions=None):
        return features

    def answer_scores(self, embeddings, questions, candidates, at_once=256):
        mean = embeddings[:, 0, 0]
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def framed(value, share=1.0):
    """A prompt with a value in a share of its frame's pixels, and nothing in the rest."""
    frame = torch.zeros(3, 64)
    frame[:, SMALL.mask().flatten().nonzero()[: int(48 * share), 0]] = value
    return Prompt(frame.view(3, 8, 8), SMALL)


def run(prompts, load=lambda name: Bright(), models=("bright",), **more):
    shown = columns(prompts, SMALL)
    return evaluate_matrix(models, load, shown, Pictures(), CUSTOM, **more)


def test_each_way_to_show_a_picture_gives_what_was_planted():
    rows = run({"grey": framed(0.5), "white": framed(1.0)})
    assert {row.shown: (row.accuracy, row.gain) for row in rows} == {
        "full picture, 8 px": (1.0, 0.0),
        "black frame, 4 in 8 px": (0.3, pytest.approx(-0.7)),  # a white picture is a quarter of what is seen
        "grey": (1.0, 0.0),
        "white": (0.7, pytest.approx(-0.3)),  # everything looks bright
    }
    black = rows[1]
    assert black.low < 0.3 < black.high
    paired = gain([True] * 10, [True] * 3 + [False] * 7)  # ten pictures with a question each, of which it loses seven
    assert (black.gain_low, black.gain_high) == (paired.low, paired.high)
    assert str(black).endswith(f"of 10; {paired}")
    assert str(rows[0]).endswith("of 10")
    assert black.metrics == {"accuracy": 0.3}
    assert {row.n for row in rows} == {10}


def test_every_model_has_every_row_and_one_is_in_memory_at_a_time():
    alive = []

    def load(name):
        alive.append(name)
        return Bright()

    seen = []
    rows = run({"grey": framed(0.5)}, load, ("a", "b"), report=lambda row: seen.append((row.model, tuple(alive))))
    assert [row.model for row in rows] == ["a"] * 3 + ["b"] * 3
    assert seen == [("a", ("a",))] * 3 + [("b", ("a", "b"))] * 3


def test_gains_are_over_the_full_picture_under_the_same_corruption(monkeypatch):
    """A corruption that makes everything black: of the full picture three tenths are left."""
    monkeypatch.setitem(KINDS, "contrast", replace(KINDS["contrast"], effect=lambda values, share, rng: values * 0))
    rows = run({"grey": framed(0.5), "white": framed(1.0)}, corruptions=[("contrast", 1), ("contrast", 4)])
    found = {(row.shown, row.severity): (row.accuracy, row.gain) for row in rows if row.corruption}
    assert found["full picture, 8 px", 1] == (0.3, 0.0)
    assert found["white", 4] == (0.7, pytest.approx(0.4))
    assert [row.severity for row in rows] == [0, 1, 4] * 4


def test_two_geometries_have_a_full_picture_each():
    other = Prompt.start(Geometry(8, 6, "pad"), "free")
    names = [column.name for column in columns({"a": framed(0.5), "b": other}, SMALL)]
    assert names == [
        "full picture, 8 px, crop",
        "black frame, 4 in 8 px, crop",
        "full picture, 8 px, pad",
        "black frame, 6 in 8 px, pad",
        "a",
        "b",
    ]


@contextmanager
def fake_exporter(model, family, prompt, task, data, *, quiet):
    yield lambda asked: ask(family, asked, prompt.geometry, prompt, task)


def test_the_png_is_measured_as_it_is_saved(tmp_path):
    """A quarter of the frame at 2 is half grey on the mean; in 8 bits it is cut off at 1, and too dark."""
    prompt = framed(2.0, share=0.25)
    rows = run({"p": prompt}, exporter=fake_exporter)
    assert {row.shown: row.accuracy for row in rows[2:]} == {"p": 1.0, "p (8-bit PNG)": 0.3, "p (ONNX)": 1.0}
    prompt.frame *= 0.2137  # between the levels
    prompt.save(tmp_path / "p.safetensors")
    saved = np.asarray(Image.open(tmp_path / "p.png")).transpose(2, 0, 1) / np.float32(255)
    assert torch.equal(matrix.eight_bit(prompt).frame, torch.from_numpy(saved))
    assert 0 < (matrix.eight_bit(prompt).frame - prompt.frame).abs().max() <= 0.5 / 255 + 1e-6


def test_a_free_frame_over_the_picture_is_added_as_its_png_has_it():
    """A frame of zeros adds nothing, and neither does its PNG."""
    geometry = Geometry(16, 12, placement="over")
    prompt = Prompt(torch.zeros(3, 16, 16), geometry)
    canvas = torch.rand(1, 3, 16, 16)
    assert torch.equal(matrix.eight_bit(prompt).on(canvas), canvas)


def test_what_cannot_be_exported_has_a_note_and_no_crash():
    class Fixed(Bright):
        exports = False

    rows = run({"p": framed(0.5)}, lambda name: Fixed(), exporter=fake_exporter, corruptions=[("fog", 1)])
    assert rows[-1] == Row("bright", "p (ONNX)", note="not exported")
    assert str(rows[-1]).endswith("not exported")
    assert [row.note for row in rows[:-1]] == [""] * 8


@pytest.mark.parametrize("error", [CheckError("It is not equal.", ["case 1: tokens"]), ModelError("It is not equal.")])
def test_a_bundle_that_fails_the_gate_costs_none_of_the_other_rows(error):
    @contextmanager
    def broken(*arguments, quiet):
        raise error
        yield

    rows = run({"p": framed(0.5), "q": framed(1.0)}, exporter=broken)
    assert [row.note for row in rows if row.note] == ["not exported: It is not equal."] * 2
    assert [row.accuracy for row in rows if row.shown in "pq"] == [1.0, 0.7]


# Answers and scores.


def test_answers_and_scores_are_kept():
    result = accuracy(Bright(), Pictures(), SMALL, framed(0.5), CUSTOM, batch=8)  # in several groups
    assert result.answers == ["yes"] * 7 + ["no"] * 3
    assert result.scores.shape == (10, 2)
    assert result.scores[:, 1] == pytest.approx([0.125] * 7 + [-0.125] * 3)
    assert [LABELS[i] for i in result.scores.argmax(1)] == result.answers


def test_scores_are_none_where_labels_differ_or_an_answer_is_free():
    yes_no, colours = Question("?", "yes", LABELS), Question("?", "red", ("red", "blue"))
    row = np.zeros(2, np.float32)
    assert judge(Asked([yes_no, yes_no], ["yes", "no"], [row, row])).scores.shape == (2, 2)
    assert judge(Asked([yes_no, colours], ["yes", "red"], [row, row])).scores is None
    assert judge(Asked([yes_no, yes_no], ["yes", "yes"], [row, None])).scores is None
    assert judge(Asked([], [], [])).scores is None
    assert judge(Asked([yes_no, colours], ["yes", "blue"], [row, None])).answers == ["yes", "blue"]


# Writing it down.

ROWS = [
    Row("m|1", "full picture, 8 px", "", 0, 0.5, 0.4, 0.6, 20, {"accuracy": 0.5, "auc": 0.75}, 0.0),
    Row("m|1", "$up$", "", 0, 0.75, 0.7, 0.8, 20, {"accuracy": 0.75}, 0.25),
    Row("m|1", "$down$", "", 0, 0.25, 0.2, 0.3, 20, {"accuracy": 0.25}, -0.25),
    Row("m|1", "full picture, 8 px", "fog", 1, 0.4, 0.3, 0.5, 20, {"accuracy": 0.4}, 0.0),
    Row("m|1", "full picture, 8 px", "fog", 5, 0.2, 0.1, 0.3, 20, {"accuracy": 0.2}, 0.0),
    Row("m|1", "$up$", "fog", 1, 0.5, 0.4, 0.6, 20, {"accuracy": 0.5}, 0.1),
    Row("m|1", "$up$", "fog", 5, 0.5, 0.4, 0.6, 20, {"accuracy": 0.5}, 0.3),
    Row("m|1", "x (ONNX)", note="not exported"),
]


def test_the_json_has_every_field_of_every_row():
    read = json.loads(matrix.to_json(ROWS))
    assert [Row(**row) for row in read] == ROWS


def test_the_markdown_has_models_in_rows_and_severities_in_columns():
    lines = matrix.to_markdown(ROWS, "task").splitlines()
    assert lines[0] == "# task"
    assert "20 questions" in lines[2]
    assert lines[4] == "| model | full picture, 8 px | $up$ | $down$ | x (ONNX) |"
    assert lines[6] == (
        "| m\\|1 | 50.0% [40.0%, 60.0%] | 75.0% [70.0%, 80.0%] +25.0 | 25.0% [20.0%, 30.0%] -25.0 | not exported |"
    )
    fog = lines[lines.index("## Under fog") :]
    assert fog[2] == "| model | shown | severity 1 | severity 5 |"
    assert fog[5] == "| m\\|1 | $up$ | 50.0% [40.0%, 60.0%] +10.0 | 50.0% [40.0%, 60.0%] +30.0 |"
    assert "| m\\|1 | full picture, 8 px | as they are | 0.75 |" in lines


def test_the_heat_map_is_blue_for_a_gain_and_red_for_a_loss():
    """In columns, from the left: no gain, gain, loss, nothing measured; the panel below is of fog."""
    pixels = np.asarray(Image.open(io.BytesIO(matrix.heat_map(ROWS))).convert("RGB")).astype(int)
    red, _, blue = np.moveaxis(pixels, 2, 0)
    is_blue, is_red = blue - red > 60, red - blue > 60
    third = pixels.shape[0] // 3
    left_of_the_bar = slice(0, int(pixels.shape[1] * 0.8))
    for place, n_blue, n_red in ((slice(0, third), True, True), (slice(-third, None), True, False)):
        assert (is_blue[place, left_of_the_bar].sum() > 1000) == n_blue
        assert (is_red[place, left_of_the_bar].sum() > 1000) == n_red
    columns_of = [mask[:third, left_of_the_bar].any(0).nonzero()[0].mean() for mask in (is_blue, is_red)]
    assert columns_of[0] < columns_of[1]


def test_files_are_written_whole_and_the_picture_last(tmp_path, monkeypatch):
    written = matrix.write(tmp_path / "new" / "folder", ROWS, "task")
    assert [path.name for path in written] == ["matrix.json", "matrix.md", "matrix.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [path.name for path in written]
    before = written[2].read_bytes()

    def fails(rows):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(matrix, "heat_map", fails)
    with pytest.raises(RuntimeError):
        matrix.write(tmp_path / "new" / "folder", ROWS[:1], "task")
    assert len(json.loads(written[0].read_text())) == 1
    assert written[2].read_bytes() == before


# The command, and bundles.


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompt") / "prompt.safetensors"
    random_prompt().save(file)
    return file


def tvp(*arguments):
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


def test_a_bundle_answers_as_the_model_it_was_made_of(one_bundle):
    """Free answers and labels alike, over pictures that are corrupted."""
    family, prompt = families.load(one_bundle.parent / "model"), random_prompt()
    with load(one_bundle, providers="cpu") as loaded:
        for name in ("count", "scenes"):
            task = tasks.get(name)
            data = ThroughCamera(tasks.open_data("", task, "test", 4, 0), parse("blur:3"))
            expected = accuracy(family, data, prompt.geometry, prompt, task)
            given = accuracy_of_bundle(loaded, data, task)
            assert given.answers == expected.answers
            assert (given.right == expected.right).all()
            assert (given.scores is None) == (expected.scores is None) == task.free
            if given.scores is not None:
                assert given.scores == pytest.approx(expected.scores, abs=1e-3)


def test_the_command_measures_exports_and_writes_the_matrix(prompt, tmp_path, monkeypatch):
    monkeypatch.setattr(PaliGemma, "exports", False)
    exports, fixed = save_tiny("llava", tmp_path / "llava"), save_tiny("paligemma", tmp_path / "paligemma")
    asked = ["--task", "count", "--n", "3", "--exported", "--corrupt", "noise:5", "-o", tmp_path / "out"]
    done = tvp("-m", exports, "-m", fixed, "-p", prompt, *asked)
    assert done.exit_code == 0, done.output
    rows = {
        (r["model"], r["shown"], r["corruption"]): r for r in json.loads((tmp_path / "out/matrix.json").read_text())
    }
    assert len(rows) == 2 * 5 * 2 - 1
    assert rows[str(fixed), f"{prompt} (ONNX)", ""]["note"] == "not exported"
    assert {row["n"] for row in rows.values()} == {3, 0}
    task, loaded = tasks.get("count"), random_prompt()
    data = tasks.open_data("", task, "test", 3, 0)
    family = families.load(exports)
    for corruption, seen in (("", data), ("noise", ThroughCamera(data, parse("noise:5")))):
        expected = accuracy(family, seen, loaded.geometry, loaded, task).accuracy
        assert rows[str(exports), str(prompt), corruption]["accuracy"] == expected
        assert rows[str(exports), f"{prompt} (ONNX)", corruption]["accuracy"] == expected
    assert (tmp_path / "out/matrix.png").read_bytes().startswith(b"\x89PNG")
    assert "## Under noise" in (tmp_path / "out/matrix.md").read_text()


def test_a_name_that_ends_with_json_is_the_json_alone(tmp_path):
    model = save_tiny("clip", tmp_path / "clip")
    table = tmp_path / "table.json"
    done = tvp("-m", model, "--task", "count", "--n", 2, "-o", table)
    assert done.exit_code == 0, done.output
    assert "64 px" in done.output  # the canvas of the task's file
    assert len(done.output.splitlines()) == len(json.loads(table.read_text())) == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["table.json"]


def test_a_task_through_another_camera(tmp_path):
    model = save_tiny("clip", tmp_path / "clip")

    def rows(*arguments):
        done = tvp("-m", model, "--n", 8, "--inner", 48, "-o", tmp_path / "out", *arguments)
        assert done.exit_code == 0, done.output
        title = (tmp_path / "out" / "matrix.md").read_text().splitlines()[0]
        return json.loads((tmp_path / "out" / "matrix.json").read_text()), title

    own, _ = rows("--task", "bad-camera-count")
    named, title = rows("--task", "count", "--camera", "bad")
    assert named == own
    assert title == "# count, through bad"
    assert rows("--task", "bad-camera-count", "--camera", "none")[0] == rows("--task", "count")[0]


def test_wrong_usage_exits_2_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    for arguments, says in (
        (("--corrupt", "nose"), "Did you mean noise"),
        (("--corrupt", "fog:9"), "from 1 to 5"),
        (("--camera", "bda"), "Did you mean bad"),
        (("--exported",), "--prompt"),
        (("-o", tmp_path / "file"), "is a file"),
        (("-o", tmp_path / "folder.json"), "is a folder"),
        (("-o", tmp_path / "gone" / "table.json"), "no folder"),
    ):
        done = tvp("-m", tmp_path / "no-model", *arguments)
        assert done.exit_code == 2, done.output
        assert says in " ".join(done.output.split())


def test_without_the_exporter_the_line_that_installs_it_is_said(prompt, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr("tvp.trainer.eval_cli.importlib.import_module", absent)
    # The group's own import is by the same function: the command is asked directly.
    from tvp.trainer.eval_cli import evaluate

    done = CliRunner().invoke(evaluate, ["-m", "zoo:llava", "-p", str(prompt), "--exported"])
    assert done.exit_code == 1
    assert "a package that is not installed: onnx." in done.output
    assert "pip install '.[export,cpu]'" in done.output


def test_a_bundle_that_fails_the_gate_fails_the_command_after_all_is_written(prompt, tmp_path, monkeypatch):
    @contextmanager
    def broken(*arguments, quiet):
        raise CheckError("It is not equal.", [])
        yield

    monkeypatch.setattr("tvp.trainer.eval_cli._exporter", lambda: broken)
    model = save_tiny("llava", tmp_path / "llava")
    table = tmp_path / "t.json"
    done = tvp("-m", model, "-p", prompt, "--task", "count", "--n", 1, "--exported", "-o", table)
    assert done.exit_code == 1
    assert "1 of the bundles could not be made" in done.output
    assert len(json.loads(table.read_text())) == 5


def test_prompts_over_and_around_the_picture_are_measured_from_the_same_full_picture():
    around, over = Geometry(16, 12), Geometry(16, 12, placement="over")
    prompts = {"a": Prompt.start(around, "free"), "b": Prompt.start(over, "free")}
    shown = columns(prompts, around)
    assert [s.name for s in shown] == ["full picture, 16 px", "black frame, 12 in 16 px", "a", "b"]
    assert {s.geometry.placement for s in shown[:2]} == {"around"}
    rows = evaluate_matrix(["bright"], lambda name: Bright(), shown, Pictures(), CUSTOM)
    assert [row.shown for row in rows] == [s.name for s in shown]
    assert all(row.gain is not None for row in rows)


def test_pictures_are_drawn_from_a_set_that_is_sorted_by_class(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "data" / "test" / name / f"{i}.png")
    seen = []

    def note(models, load, shown, data, task, **options):
        seen.append([data[i].questions[0].answer for i in range(len(data))])
        return []

    model = save_tiny("llava", tmp_path / "model")
    asked = ("-m", model, "--task", "custom", "--data", tmp_path / "data", "--n", "12")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(matrix, "evaluate_matrix", note)
        for seed in ("0", "0", "1"):
            assert tvp(*asked, "--seed", seed).exit_code == 0
    assert len(seen[0]) == 12
    assert len(set(seen[0])) == 4
    assert seen[0] == seen[1]


def test_a_second_model_that_is_none_is_told_before_the_first_is_asked(prompt, tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    done = tvp("-m", model, "-m", tmp_path / "moddel", "-p", prompt, "--task", "count", "--n", "2")
    assert done.exit_code == 1
    assert "moddel" in str(done.exception or done.output)
    assert "full picture" not in done.output


def test_a_figure_that_is_not_defined_is_null_in_json():
    row = matrix.Row("m", "p", metrics={"accuracy": 0.5, "recall": float("nan")})
    assert json.loads(matrix.to_json([row]), parse_constant=pytest.fail)[0]["metrics"] == {
        "accuracy": 0.5,
        "recall": None,
    }
