"""Calibration: planted leanings are taken back, without an answer read and without a picture scored twice.

Over 400 lines because learning, the file, the command and the evaluation ask the same planted models, made here.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.tiny import save_tiny
from tvp.sdk.cli import cli
from tvp.sdk.errors import DataError, ModelError, RequestError
from tvp.sdk.formats.calibration import LabelOffsets
from tvp.trainer import families, tasks
from tvp.trainer.calibration import Calibration, applied, compare, digest, learn, offsets_of
from tvp.trainer.cameras import KINDS
from tvp.trainer.data import Question, Row, Sample
from tvp.trainer.evaluate import Asked, accuracy, ask
from tvp.trainer.lens import Lens, LensDesign
from tvp.trainer.matrix import FULL, columns, evaluate_matrix
from tvp.trainer.metrics import Gain
from tvp.trainer.prompt import Geometry, Prompt

CUSTOM = tasks.get("custom")
WHOLE = Geometry(8, 8)
LABELS = ("dark", "bright")
TEXT = "How is it?"


class Pictures:
    """Dark and bright pictures in turn; the mean of what is seen is 0.2 or 0.8."""

    def __init__(self, n, make=lambda right: Question(TEXT, right, LABELS)):
        self.n, self.make, self.reads = n, make, 0

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.reads += 1
        picture = np.full((8, 8, 3), (51, 204)[index % 2], np.uint8)
        return Sample(picture, (self.make(LABELS[index % 2]),), "")


class Leaning(families.Family):
    """Knows dark from bright, and leans by 9 to dark: without calibration that is its only answer."""

    generates, exports, device = False, True, torch.device("cpu")
    lean = 9.0

    def __init__(self):
        self.n_scored = 0

    def to_pixels(self, canvas):
        return canvas

    def encode(self, pixels):
        return pixels.mean((1, 2, 3))[:, None, None]

    def connect(self, features, questions=None):
        return features

    def answer_scores(self, embeddings, questions, candidates, at_once=256):
        self.n_scored += len(questions)
        mean = embeddings[:, 0, 0]
        by_label = {"dark": self.lean - mean, "bright": mean}
        return torch.stack([by_label[label] for label in candidates], 1)


class Secret(Question):
    """A question whose answer fails whoever reads it."""

    @property
    def answer(self):
        raise AssertionError("the answer was read")

    @answer.setter
    def answer(self, value):
        raise AssertionError("nobody sets it")

    def __init__(self, right):
        object.__setattr__(self, "text", TEXT)
        object.__setattr__(self, "labels", LABELS)


def usual(by):
    """What is usual of dark and bright, worked out by hand: a share is exp(score) / sum of exp(scores)."""
    if by == "score":
        return (9 - 0.5, 0.5)
    bright = [1 / (1 + math.exp(9 - 2 * mean)) for mean in (0.2, 0.8)]
    return (math.log(1 - sum(bright) / 2), math.log(sum(bright) / 2))


@pytest.mark.parametrize("by", ["share", "score"])
def test_a_planted_leaning_is_learned_without_answers_and_taken_back(by):
    calibration = learn(Leaning(), Pictures(64, Secret), WHOLE, None, CUSTOM, by=by)
    (known,) = calibration.offsets
    assert (known.question, known.labels, known.n_pictures, calibration.by) == (TEXT, LABELS, 64, by)
    assert known.offsets == pytest.approx(usual(by), abs=2e-6)
    before = ask(Leaning(), Pictures(40), WHOLE, None, CUSTOM)
    after = applied(calibration.offsets, before)
    assert set(before.answers) == {"dark"}
    assert after.answers == [*LABELS] * 20
    raw = np.array([[8.8, 0.2], [8.2, 0.8]] * 20)
    assert np.stack(after.scores) == pytest.approx(raw - usual(by), abs=1e-5)
    assert before.answers == ["dark"] * 40  # what was given is left as it was


def test_where_most_pictures_are_dark_calibration_costs():
    """The mean of what is seen is then no measure of a leaning: that is why it is measured."""

    class MostlyDark(Pictures):
        def __getitem__(self, index):
            grey = (0, 13, 26)[index % 3]  # all dark, some less so
            return Sample(np.full((8, 8, 3), grey, np.uint8), (Question(TEXT, "dark", LABELS),), "")

    before = ask(Leaning(), MostlyDark(60), WHOLE, None, CUSTOM)
    offsets = offsets_of(before)
    gain, lines = compare(before, applied(offsets, before))
    assert gain.verdict == "hurts"
    assert lines[0].startswith("accuracy 100.0% before, ")
    assert lines[1].startswith("calibration does not help, it costs: -")


def test_a_model_that_is_sure_and_right_keeps_its_answers_by_share():
    """It counts from 1 to 5, and what is far from the truth does not fit at all. By score that decides what is usual:
    1 and 5 are far from more pictures than 3 is."""
    labels, truth = tuple("12345"), np.arange(300) % 5
    scores = -3.1 * (np.arange(5) - truth[:, None]) ** 2 + np.random.default_rng(0).normal(0, 0.5, (300, 5))
    questions = [Question(TEXT, labels[i], labels) for i in truth]
    rows = list(scores.astype(np.float32))
    before = Asked(questions, [labels[i] for i in scores.argmax(1)], rows, [*map(str, range(300))])
    by_share, by_score = (compare(before, applied(offsets_of(before, by), before))[0] for by in ("share", "score"))
    assert abs(by_share.value) < 0.01
    assert by_score.value < -0.1


def test_labels_in_another_order_are_the_same_set_and_other_labels_are_another():
    orders = [LABELS, LABELS[::-1], (*LABELS, "dim")]

    def make(right, count=[0]):  # noqa: B006 (it counts)
        count[0] += 1
        return Question(TEXT, right, orders[count[0] % 2])

    (known,) = offsets_of(ask(Leaning(), Pictures(64, make), WHOLE, None, CUSTOM), "score")
    assert [*zip(known.labels, known.offsets, strict=True)] == [("bright", 0.5), ("dark", 8.5)]
    row = np.array([9.0, 0.0, 1.0], np.float32)
    other = Asked([Question(TEXT, "dark", orders[2])], ["dark"], [row], ["a"])
    assert applied((known,), other).scores[0].tolist() == row.tolist()


def test_a_mean_over_few_pictures_is_not_taken(caplog):
    def asked(text, n, n_pictures):
        rows = [np.array([1.0, 2.0], np.float32)] * n
        return [Question(text, "", LABELS)] * n, ["dark"] * n, rows, [f"{i % n_pictures}.png" for i in range(n)]

    parts = [asked("often?", 16, 8), asked("rarely?", 16, 7)]
    both = Asked(*(a + b for a, b in zip(*parts, strict=True)))
    (known,) = offsets_of(both, "score")
    assert (known.question, known.n_pictures, known.offsets) == ("often?", 8, (1.0, 2.0))
    assert "1 of 2 questions are about fewer than 8 pictures" in caplog.text
    with pytest.raises(DataError, match="fewer than 8 pictures"):
        offsets_of(Asked(*parts[1]))
    with pytest.raises(RequestError, match="No question is answered with labels"):
        offsets_of(Asked([Question("free?", "")], ["text"], [None], ["a"]))
    broken = Asked(parts[0][0], parts[0][1], [np.array([1.0, -math.inf], np.float32)] * 16, parts[0][3])
    with pytest.raises(ModelError, match="A score of 'bright' is not finite"):
        offsets_of(broken)


# What is said.


def told(right_before, right_after, answers=True):
    def said(right):
        questions = [Question(TEXT, "dark" if answers else "", LABELS)] * len(right)
        return Asked(questions, [LABELS[not r] for r in right], [None] * len(right), [*map(str, range(len(right)))])

    return compare(said(right_before), said(right_after))


def test_what_is_said_is_what_was_measured():
    gain, lines = told([0] * 60 + [1] * 40, [1] * 80 + [0] * 20)
    assert gain.value == pytest.approx(0.4)
    assert lines[0] == "accuracy 40.0% before, 80.0% after"
    assert lines[1] == f"calibration helped by {gain} on 100 questions about 100 held-out pictures"
    assert lines[2:] == [
        "80 of 100 answers changed about 100 held-out pictures:",
        "  dark    40.0% before  80.0% after",
        "  bright  60.0% before  20.0% after",
    ]
    _, lines = told([0, 1] * 50, [1, 0] * 50)
    assert lines[1].startswith("calibration does not help as far as this shows: +0.0 points (-")
    gain, lines = told([0] * 10, [1] * 10, answers=False)
    assert gain is None
    assert lines[0] == "whether calibration helps cannot be known: these pictures have no answers"
    assert lines[3:] == ["  bright 100.0% before   0.0% after", "  dark     0.0% before 100.0% after"]
    assert not any("accuracy" in line for line in lines)


# The file.

FILE = Calibration(
    (LabelOffsets("ä?", ("b", "a"), (-1 / 3, 0.0), 64),), "m", "w", "p", Geometry(64, 48), Gain(0.1, 0.05, 0.2), 512
)


@pytest.mark.parametrize("calibration", [FILE, replace(FILE, gain=None, n_questions=0, by="score")])
def test_a_file_is_read_back_as_it_was_written(calibration, tmp_path):
    calibration.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == calibration


def edits():
    good = {
        "format": 1, "by": "share", "model": "m", "weights": "w", "prompt": "p",
        "geometry": asdict(FILE.geometry), "gain": None, "n_questions": 0, "calibration": [asdict(FILE.offsets[0])],
    }  # fmt: skip
    for key in good:
        yield f"lacks {key!r}", {k: v for k, v in good.items() if k != key}
        yield "not an intact calibration", {**good, key: 1.5}
        yield "not an intact calibration", {**good, key: [None]}
    yield "has the unknown key 'camera'", {**good, "camera": "x"}
    yield "is of format 2; this TVP reads up to 1. Update TVP", {**good, "format": 2}
    yield "an even number", {**good, "geometry": {"canvas": 64, "inner": 47, "fit": "crop", "placement": "around"}}
    yield "not an intact calibration", {**good, "geometry": {**good["geometry"], "more": 1}}
    yield "shares from -1 to 1", {**good, "gain": {"value": 10, "low": 0, "high": 1}}
    yield "not an intact calibration", {**good, "gain": {"value": math.nan, "low": 0, "high": 1}}
    yield "it is by 'luck', and may be by share or score", {**good, "by": "luck"}
    yield "it has no offsets", {**good, "calibration": []}
    yield "not a JSON object", [good]


@pytest.mark.parametrize(("message", "content"), list(edits()))
def test_a_file_is_read_strictly(message, content, tmp_path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        Calibration.load(file)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b" " * (2**21 + 1)])
def test_what_is_no_file_of_a_calibration_is_a_data_error(data, tmp_path):
    (tmp_path / "c.json").write_bytes(data)
    for file in (tmp_path / "c.json", tmp_path, tmp_path / "missing.json"):
        with pytest.raises(DataError, match="calibration"):
            Calibration.load(file)


def test_prompts_differ_in_their_digest():
    black, grey = (Prompt(torch.full((3, 8, 8), value), Geometry(8, 4)) for value in (0.0, 0.5))
    found = [digest(None), digest(black), digest(grey), digest(replace(grey, pixel_range="image"))]
    lenses = [LensDesign("colour"), LensDesign("colour", normalise=True), LensDesign("kernel")]
    found += [digest(Prompt(None, Geometry(8, 8), lens=Lens(design, design.start()))) for design in lenses]
    other = LensDesign("colour").start() | {"bias": torch.full((3,), 0.1)}
    found += [digest(Prompt(None, Geometry(8, 8), lens=Lens(lenses[0], other)))]
    assert len(set(found)) == 8
    assert found[0] == ""
    assert digest(replace(grey, facts={"a": 1})) == found[2]


# Beside each column of the matrix.


def test_every_column_has_a_calibrated_one_and_no_picture_is_scored_twice():
    test, train, model = Pictures(40), Pictures(16, Secret), Leaning()
    prompt = Prompt(torch.full((3, 8, 8), 0.5) * Geometry(8, 4).mask(), Geometry(8, 4))
    rows = evaluate_matrix(
        ["m"], lambda name: model, columns({"grey": prompt}, WHOLE), test, CUSTOM, calibrate_on=train
    )
    assert {row.shown: (row.accuracy, row.gain) for row in rows} == {
        "full picture, 8 px": (0.5, 0.0),
        "calibrated: full picture, 8 px": (1.0, 0.5),
        "black frame, 4 in 8 px": (0.5, 0.0),
        "calibrated: black frame, 4 in 8 px": (1.0, 0.5),
        "grey": (0.5, 0.0),
        "calibrated: grey": (1.0, 0.5),
    }
    assert model.n_scored == 3 * (40 + 16)
    assert not rows[1].shown.startswith(FULL)  # or else its gain would not be shown


def test_corrupted_columns_are_calibrated_on_pictures_that_are_corrupted_alike(monkeypatch):
    dark = replace(KINDS["contrast"], effect=lambda values, share, rng: values * 0.1)
    monkeypatch.setitem(KINDS, "contrast", dark)
    rows = evaluate_matrix(
        ["m"], lambda name: Leaning(), columns({}, WHOLE), Pictures(40), CUSTOM,
        corruptions=[("contrast", 1)], calibrate_on=Pictures(16, Secret),
    )  # fmt: skip
    found = {(row.shown[:4], row.severity): row.accuracy for row in rows if "black" not in row.shown}
    # With the offsets of pictures as they are, a tenth of their light is always dark.
    assert found == {("full", 0): 0.5, ("full", 1): 0.5, ("cali", 0): 1.0, ("cali", 1): 1.0}


def test_a_column_that_cannot_be_calibrated_has_a_note():
    rows = evaluate_matrix(
        ["m"], lambda name: Leaning(), columns({}, WHOLE), Pictures(4), CUSTOM, calibrate_on=Pictures(7)
    )
    assert [row.note[:70] for row in rows if row.note] == [
        "not calibrated: Each of the 1 questions is about fewer than 8 pictures"
    ]


# The commands, with a model of random weights.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 pictures of noise; of every second one JSONL has a question with its answer."""
    place = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    (place / "below").mkdir()
    for i in range(40):
        name = f"{'below/' * (i % 2)}{i}.png"
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(place / name)
        rows.append({"image": name, "question": TEXT, "answer": LABELS[i % 2], "labels": LABELS})
    for name, chosen in (("all", rows), ("first", rows[:20]), ("second", rows[20:])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return place


def invoke(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_learns_says_and_writes(zoo, folder, tmp_path):
    file = tmp_path / "c.json"
    result = invoke("calibrate", "-m", zoo[0], "-t", "custom", "--data", folder / "all.jsonl", "--n", 16, "-o", file)
    assert result.exit_code == 0, result.output
    calibration = Calibration.load(file)
    assert calibration.offsets[0].n_pictures == 16
    assert calibration.n_questions == 20  # half of the data is held out at most
    assert "learned from 16 pictures: 1 question with labels\naccuracy " in result.output
    assert f"{calibration.gain} on 20 questions about 20 held-out pictures" in result.output
    assert calibration.weights == families.digest(zoo[0])


def test_pictures_without_answers_are_enough(zoo, folder, tmp_path):
    files = [tmp_path / "alone.json", tmp_path / "rows.json"]
    options = ["-m", zoo[0], "-t", "custom", "--n", 20, "--held-out", 20]
    asked = ["--question", TEXT, "--label", LABELS[0], "--label", LABELS[1]]
    result = invoke("calibrate", *options, "--pictures", folder, *asked, "--by", "score", "-o", files[0])
    assert result.exit_code == 0, result.output
    assert "whether calibration helps cannot be known" in result.output
    assert "accuracy" not in result.output
    alone = Calibration.load(files[0])
    assert (alone.gain, alone.by) == (None, "score")
    result = invoke("calibrate", *options, "--pictures", folder, *asked, "--camera", "bad", "-o", files[1])
    assert result.exit_code == 0, result.output
    assert Calibration.load(files[1]).offsets[0].offsets != alone.offsets[0].offsets
    # Whether there are answers changes nothing that is learned from the same pictures.
    invoke("calibrate", *options, "--data", folder / "all.jsonl", "-o", files[1])
    rows = Calibration.load(files[1])
    assert (alone.offsets[0].labels, alone.offsets[0].n_pictures) == (rows.offsets[0].labels, 20)


def test_a_model_that_only_chooses_is_calibrated_too(folder, tmp_path):
    model = save_tiny("clip", tmp_path / "model")
    asked = ["--question", TEXT, "--label", LABELS[0], "--label", LABELS[1]]
    result = invoke("calibrate", "-m", model, "-t", "bad-camera", "--pictures", folder, *asked, "-o", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert Calibration.load(tmp_path / "c").offsets[0].n_pictures == 20


def test_a_bad_picture_is_told_or_left_out(zoo, folder, tmp_path, caplog):
    place = tmp_path / "pictures"
    shutil.copytree(folder, place)
    (place / "9.jpg").write_bytes(b"no picture")
    command = ["calibrate", "-m", zoo[0], "-t", "count", "--pictures", place, "-o", tmp_path / "c.json"]
    with pytest.raises(DataError, match=r"9\.jpg"):
        invoke(*command)
    assert not (tmp_path / "c.json").exists()
    assert invoke(*command, "--skip-bad").exit_code == 0
    assert "left 1 bad pictures" in caplog.text


def test_wrong_usage_is_told_before_a_model_is_loaded(folder, tmp_path):
    command = ["calibrate", "-m", "nowhere", "-o", tmp_path / "c.json"]
    for more, message in (
        (["-t", "custom", "--pictures", folder, "--data", "x"], "--pictures takes the place of --data"),
        (["-t", "custom", "--data", "x", "--label", "a"], "--question and --label are for --pictures"),
        (["-t", "count", "-o", tmp_path / "none" / "c.json"], "cannot be written"),
        (["-t", "count", "-o", tmp_path], "cannot be written"),
    ):
        result = invoke(*command, *more)
        assert result.exit_code == 2
        assert message in result.output
    command[2] = "zoo:blip2"
    result = invoke(*command, "-t", "custom", "--pictures", folder)
    assert (result.exit_code, "has no question of its own, or no labels" in result.output) == (2, True)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        invoke(*command, "-t", "count", "--pictures", empty)


def test_evaluating_never_calibrates_on_test_pictures(zoo, folder, tmp_path):
    command = ["eval", "-m", zoo[0], "--task", "custom", "--data", folder / "second.jsonl", "--calibrate", 20]
    with pytest.raises(DataError, match="20 of the 20 pictures to calibrate on are test pictures"):
        invoke(*command)
    result = invoke(*command, "--calibrate-on", folder / "first.jsonl", "-o", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    rows = {row["shown"]: row for row in json.loads((tmp_path / "m.json").read_text())}
    assert len(rows) == 4
    assert {row["n"] for row in rows.values()} == {20}
    result = invoke("eval", "-m", zoo[0], "--calibrate-on", folder / "first.jsonl")
    assert (result.exit_code, "Give both" in result.output) == (2, True)


def test_answers_name_the_picture_that_they_are_about():
    class TwoRows(Pictures):
        def row(self, index):
            return Row("", f"{index // 2}.png", self[index].questions)

    assert ask(Leaning(), TwoRows(4), WHOLE, None, CUSTOM).pictures == ["0.png", "0.png", "1.png", "1.png"]
    assert ask(Leaning(), Pictures(3), WHOLE, None, CUSTOM).pictures == ["0", "1", "2"]
    assert accuracy(Leaning(), Pictures(4), WHOLE, None, CUSTOM).accuracy == 0.5
