"""The study of lenses: its cells, its pictures, its bars by hand, and one prompt from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.study import cells, data, measure, report
from benchmarks.study.__main__ import HERE, main
from samples.by_hand import BY_HAND, noise_of
from samples.zoo.models import ENCODER_OF
from tvp.trainer import cameras, families, tasks
from tvp.trainer.config import make_config
from tvp.trainer.data import Scenes
from tvp.trainer.prompt import Prompt

photos = pytest.mark.skipif(not data.PHOTOS.is_dir(), reason="the photos are not here")


N = 2048


def row(name, scores, **facts):
    """A row whose first questions are answered right."""
    found = {
        model: {"accuracy": value, "right": measure.pack(np.arange(N) < value * N), "drift": 0.1}
        for model, value in zip(ENCODER_OF, scores, strict=True)
    }
    change = {"change": ""} if "method" in facts else {}
    return {"name": name, "content": "scenes", "camera": cells.BAD, **change, **facts, "scores": found}


@pytest.fixture
def study():
    """A camera that takes half of every model's accuracy, but little of the last one's."""
    cell = {"method": "pairs", "sources": ["blip2"]}
    rows = [
        row("scenes.none", [0.9] * 6, camera="none"),
        row("scenes.bad", [0.5, 0.5, 0.5, 0.5, 0.5, 0.85]),
        row("a", [0.9, 0.7, 0.8, 0.6, 0.7, 0.1], **cell, seed=1),
        row("b", [0.7, 0.7, 0.8, 0.6, 0.7, 0.1], **cell, seed=2),
        row("c", [0.7, 0.6, 0.6, 0.6, 0.6, 0.8], **cell, seed=1, change="64 pictures"),
        row("d", [0.9, 0.7, 0.8, 0.6, 0.7, 0.11], **cell, seed=1, change="ONNX"),
        row("e", [0.7, 0.6, 0.7, 0.6, 0.6, 0.1], method="pixels", sources=["blip2"], seed=1),
        row("f", [0.9, 0.9, 0.89, 0.9, 0.9, 0.9], **cell, camera="none", seed=1, change="learned on the family"),
    ]
    return report.Study({one["name"]: one for one in rows})


def test_recovery_is_the_share_that_comes_back_over_all_seeds(study):
    mean = study.mean(content="scenes", camera=cells.BAD, method="pairs", sources=["blip2"])
    assert mean == pytest.approx({"blip2": 75, "blip2-t5": 50, "instructblip": 75, "smolvlm": 25, "llava": 50})
    bars = {bar.what: bar for bar in report.bars(study)}
    assert bars["scenes, bad, pairs, blip2: source"].reached == pytest.approx(75)
    assert bars["scenes, bad, pairs, blip2: worst other"].reached == pytest.approx(25)
    assert bars["scenes, bad, pairs, blip2: others"].reached == pytest.approx(50)
    assert not any(bar.met for name, bar in bars.items() if "pairs, blip2:" in name)
    share = bars["scenes, 64 pictures: share of the recovery with all pictures"]
    assert share.reached == pytest.approx(100 * 30 / 55, abs=0.1)
    assert bars["scenes, ONNX: largest difference of accuracy, points"].reached == pytest.approx(1)
    assert bars["scenes, points above the lens taught by pixels: least"].reached == pytest.approx(0, abs=0.1)
    assert bars["scenes, points above the lens taught by pixels: mean"].reached == pytest.approx(50 / 6, abs=0.1)
    assert bars["scenes, points above no prompt: least"].reached == pytest.approx(-75, abs=0.1)
    lost = bars["scenes, family, blip2: most points lost on clean pictures"]
    assert lost.reached == pytest.approx(1, abs=0.1)
    assert not lost.met
    unseen = report.unseen(mean, ("blip2",))
    assert report.average(mean, unseen) == pytest.approx((25 + 50) / 2)


def test_a_gain_is_the_mean_over_models_and_draws_whole_pictures(study):
    won = study.gain([study.rows["a"]], ["blip2", "blip2-t5"])
    assert won.value == pytest.approx((0.4 + 0.2) / 2, abs=0.001)
    assert won.low < won.value - 0.01 < won.value + 0.01 < won.high


def test_the_page_has_every_prompt(study):
    text = report.page(study)
    assert "| pairs, 2 seeds | blip2 | *75* | 50 | 75 | 25 | 50 |  |" in text
    assert "| pixels | no model | 50 | 25 | 50 | 25 | 25 |  |" in text
    assert "| scenes | bad | pairs | 64 pictures | blip2 | *50* | 25 |" in text
    assert "+0.0 p | +0.0 p | -1.0 p |" in text


def test_the_page_in_the_docs_is_that_of_the_results():
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.Study.read(HERE))


def test_no_cell_is_there_twice_and_every_one_can_be_named_by_a_file():
    names = [cell.name for cell in cells.cells()]
    assert len(names) == len(set(names))
    assert not [name for name in names if set(name) & set(":/ ,")]
    for camera in cells.CAMERAS:
        assert cameras.parse(camera).parts


def test_the_study_names_its_lens_whatever_the_shipped_method_does():
    for settings in [*cells.METHODS.values(), cells.LENS | cells.AUTO]:
        if settings["method"] == "lens":
            config = make_config({"models": ("m",), **settings})
            assert (config.lens, config.lens_start) == ("conv", settings["lens_start"])


def test_device_s_and_good_pictures_are_other_ones():
    device, good = (data.trained_on("scenes", "none", seed, 20) for seed in (1, 1001))
    assert not any(np.array_equal(device[i].picture, good[k].picture) for i in range(20) for k in range(20))


@photos
def test_photos_of_the_splits_are_other_ones():
    def digests(found):
        return {found[i].picture.tobytes() for i in range(len(found))}

    device, good = (digests(data.trained_on("photos", "none", seed, 300)) for seed in (1, 1001))
    assert not device & good
    assert not (device | good) & digests(data.measured("photos", "validation", "none"))
    only = data.trained_on("photos", "none", 1, 50, measure.VEHICLES)
    assert {only[i].questions[0].answer for i in range(50)} <= set(measure.VEHICLES)


def test_the_inverse_undoes_the_camera_without_its_noise():
    clean = Scenes(1, 5)[0].picture
    spoilt = cameras.parse("gain=0.32,cast=1/0.62/0.38").shoot(clean, 0)
    assert np.abs(measure.inverse(spoilt).astype(int) - clean).max() <= 5  # half a level, over 0.32 · 0.38


def test_by_hand_methods_do_what_they_say():
    noisy = np.clip(np.random.default_rng(0).normal(128, 12, (48, 48, 3)), 0, 255).round().astype(np.uint8)
    assert noise_of(noisy.astype(np.float32)) == pytest.approx(12, rel=0.1)
    quiet = BY_HAND["non-local means"](noisy)
    assert quiet.std() < noisy.std() / 2
    dark = tasks.BAD_CAMERA.shoot(Scenes(1, 5)[0].picture, 0)
    assert dark.max() < BY_HAND["autocontrast"](dark).max() == 255
    means = BY_HAND["grey world and median"](dark).mean((0, 1))
    assert means.max() - means.min() < 12


def test_a_bundle_is_measured_as_its_prompt_is(monkeypatch):
    monkeypatch.setattr(data, "N_MEASURED", {"validation": dict.fromkeys(data.TASK, 4)})
    models, prompt = {"smolvlm": families.load("zoo:smolvlm")}, measure.black("counting", "tvp")
    place = ("counting", "validation", cells.BAD, models)
    plain, bundle = measure.score(*place, prompt)["smolvlm"], measure.score_bundle(*place, prompt)["smolvlm"]
    assert plain["right"] == bundle["right"]
    assert plain["drift"] == 0 < plain["to clean"]  # a black frame moves nothing
    assert measure.score_calibrated(*place)["smolvlm"].keys() == {"accuracy", "right"}


def test_right_answers_are_packed_without_loss():
    right = np.random.default_rng(0).random(77) < 0.5
    assert np.array_equal(measure.unpack(measure.pack(right), 77), right)


def test_one_prompt_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "N_MEASURED", {"validation": dict.fromkeys(data.TASK, 4)})
    monkeypatch.setattr(measure, "N_TRAIN", 40)
    monkeypatch.setattr(measure, "N_VALIDATION", 8)
    asked = ["run", "-o", str(tmp_path), "--split", "validation", "--settings", '{"steps": 2, "batch": 8}']
    monkeypatch.setattr("sys.argv", ["study", *asked, "--only", "scenes.bad.pairs.smolvlm.1"])
    main()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines[-1]["name"] == "scenes.bad.pairs.smolvlm.1"
    assert {line.get("by_hand") for line in lines} == {None, *measure.WITHOUT_LEARNING, *measure.BLACK}
    assert all(len(measure.unpack(one["right"], 16)) == 16 for line in lines for one in line["scores"].values())
    assert Prompt.load(tmp_path / "prompts" / "scenes.bad.pairs.smolvlm.1.safetensors").lens is not None
    main()  # nothing is measured twice
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(lines)
    monkeypatch.setattr(report, "N_MEASURED", {"test": data.N_MEASURED["validation"]})
    report.report(tmp_path, tmp_path / "study.md")
    assert "| pairs | smolvlm |" in (tmp_path / "study.md").read_text()
    assert "scenes.bad.pairs.smolvlm.1" in (tmp_path / "report.json").read_text()
