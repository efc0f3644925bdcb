"""The transfer study of benchmarks/study.py: its gains, roles and bars, and one prompt from end to end."""

from __future__ import annotations

import json

import pytest

from benchmarks import study
from tvp.trainer import tasks

COUNT, EXISTENCE = "bad-camera-count", "bad-camera-existence"


def line(task, method, sources, scores, seed=1):
    cell = {"task": task, "method": method, "sources": sources, "seed": seed}
    return {"cell": cell, "accuracy": dict(zip(study.ENCODER_OF, scores, strict=True))}


def baseline(task, level):
    lost = {"none": 0.0, "black frame": 0.1, "black frame, tvp's place": 0.02}
    shown = {name: dict.fromkeys(study.ENCODER_OF, level - less) for name, less in lost.items()}
    return {"cell": {"task": task, "method": "none"}, **shown}


@pytest.fixture
def lines():
    """Lines by hand: two tasks, and a source with two seeds on one of them; blip2 shares its encoder with two more."""
    return [
        baseline(COUNT, 0.5),
        baseline(EXISTENCE, 0.6),
        line(COUNT, "tvp", ["blip2"], (0.8, 0.6, 0.6, 0.5, 0.5, 0.5)),
        line(COUNT, "tvp", ["blip2"], (0.8, 0.6, 0.6, 0.5, 0.5, 0.44), seed=2),
        line(EXISTENCE, "tvp", ["blip2"], (0.7, 0.6, 0.6, 0.6, 0.6, 0.6)),
        line(COUNT, "tvp, image range", ["blip2"], (0.7, 0.6, 0.6, 0.5, 0.5, 0.5)),
        line(COUNT, "tvp", ["smolvlm", "qwen2vl"], (0.53, 0.5, 0.5, 0.9, 0.6, 0.9)),
    ]


def test_gains_are_points_over_no_prompt_and_a_models_role_depends_on_the_sources(lines):
    table = {(found["sources"], found["method"]): found for found in study.summarise(study.gains(lines))}
    black = table["", "black frame"]
    assert black["blip2"] == pytest.approx(-10)
    assert table["", "black frame, tvp's place"]["llava"] == pytest.approx(-2)
    one = table["blip2", "tvp"]
    assert one["blip2"] == pytest.approx((30 + 10) / 2)  # each task counts alike, whatever its seeds
    assert one["same encoder"] == pytest.approx((10 + 0) / 2)
    assert one["other encoder"] == pytest.approx((-1 + 0) / 2)
    assert one["worst"] == (pytest.approx(-3), COUNT, "qwen2vl")
    assert one["seeds"] == 2
    two = table["smolvlm+qwen2vl", "tvp"]
    assert (two["same encoder"], two["other encoder"]) == (pytest.approx(10), pytest.approx(1))


def test_the_bars_are_judged_by_the_figures(lines):
    bars = {(b["trained on"], b["bar"].split(",")[0]): b for b in study.judge(study.summarise(study.gains(lines)))}
    assert bars["blip2", "same encoder"] == {
        "trained on": "blip2", "bar": "same encoder, at least", "asked": 4.0, "reached": 5.0, "met": True
    }  # fmt: skip
    assert not bars["blip2", "other encoder"]["met"]
    assert not bars["blip2", "worst (task"]["met"]
    kept = bars["blip2", "image range"]
    assert kept["reached"] == pytest.approx((40 / 6) / ((20 + 5 + 5 + 0 + 0 - 1.5) / 6), abs=0.01)
    assert bars["smolvlm+qwen2vl", "other encoder"]["met"]
    assert ("smolvlm+qwen2vl", "same encoder") not in bars


def test_the_report_is_a_table_a_json_file_and_a_picture(lines, tmp_path, monkeypatch, capsys):
    output = tmp_path / "study.jsonl"
    output.write_text("".join(json.dumps(row) + "\n" for row in lines))
    monkeypatch.setattr("sys.argv", ["study.py", "report", "-o", str(output)])
    study.main()
    printed = capsys.readouterr().out
    assert "| blip2 | tvp | *+20.0* |" in printed
    assert "MISSED blip2: other encoder, at least 0.0: -0.5" in printed
    written = json.loads((tmp_path / "study.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert len(written["table"]) == 5
    assert (tmp_path / "study.png").stat().st_size > 1000


def test_no_picture_is_in_two_splits():
    splits = [study.open_split(tasks.get(COUNT), split, seed) for split, seed in
              (("train", 1), ("train", 2), ("validation", 0), ("test", 0))]  # fmt: skip
    seen = [{data[i].picture.tobytes() for i in range(100)} for data in splits]
    assert all(not a & b for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.skipif(not study.PHOTOS.is_dir(), reason="the CIFAR-10 photos (shared/data/cifar10) are not here")
def test_no_photo_is_in_two_splits(monkeypatch):
    task = tasks.get("bad-camera-cifar10")
    monkeypatch.setattr(study, "ThroughCamera", lambda data, *_: data)  # the photos before the camera's noise
    train, validation = (study.open_split(task, split, 1) for split in ("train", "validation"))
    names = [{data[i].picture.tobytes() for i in range(len(data))} for data in (train, validation)]
    assert not names[0] & names[1]


def test_one_prompt_from_end_to_end_is_kept_and_not_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "N_TRAIN", 16)
    monkeypatch.setattr(study, "N_VALIDATION", 4)
    monkeypatch.setattr(study, "N_TEST", 4)
    output = tmp_path / "lines.jsonl"
    wanted = [
        "--only",
        COUNT,
        "--only",
        '"evp"',
        "--only",
        '"seed": 3',
        "--only",
        '["blip2"]',
        "--settings",
        '{"steps": 1}',
    ]
    monkeypatch.setattr("sys.argv", ["study.py", "run", "-o", str(output), *wanted])
    study.main()
    rows = [json.loads(text) for text in output.read_text().splitlines()]
    assert [row["cell"]["method"] for row in rows] == ["none", "evp"]
    assert rows[1]["settings"]["steps"] == 1
    assert set(rows[1]["accuracy"]) == set(study.ENCODER_OF)
    before = output.read_text()
    study.main()
    assert output.read_text() == before
