"""The shipped models truly see, and their bundles equal PyTorch on scenes and on real photos."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tvp import sdk
from tvp.export import parity
from tvp.export.bundle import export
from tvp.trainer import families, tasks
from tvp.trainer.data import Parquet, Scenes, Subset
from tvp.trainer.evaluate import accuracy
from tvp.trainer.losses import Guide
from tvp.trainer.prompt import Geometry
from tvp.trainer.train import TrainConfig, place, train

ZOO = families.ZOO
NAMES = ["llava", "blip2"]
FULL = Geometry(64, 64)


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return families.load(f"zoo:{request.param}")


@pytest.mark.parametrize("name", [*NAMES, "guide"])
def test_no_model_is_larger_than_4_mb(name):
    files = [p for p in (ZOO / name).iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files if p.suffix == ".safetensors") <= 4 * 2**20
    config = json.loads((ZOO / name / ("open_clip_config.json" if name == "guide" else "config.json")).read_text())
    assert name == "guide" or config["dtype"] == "float16"


def test_scenes_are_answered_at_least_85_percent_right(model):
    data = Scenes(256, seed=4242, n_questions=4)
    result = accuracy(model, data, FULL)
    # The bar is the card's figure (measured on 4,096 questions); a sample may fall short by its own noise.
    assert result.accuracy >= 0.85 - 2 * math.sqrt(0.85 * 0.15 / result.n)


def test_photos_are_told_apart_at_least_every_second_time(model, cifar10):
    data = Subset(Parquet(cifar10, "test", tasks.get("cifar10").question), range(1000))
    result = accuracy(model, data, FULL, task=tasks.get("cifar10"))
    assert result.accuracy >= 0.5 - 2 * math.sqrt(0.25 / result.n)


def test_the_guide_tells_a_scene_from_another():
    """Right captions score higher than those of other pictures."""
    guide = Guide("zoo:guide")
    samples = [Scenes(64, seed=5)[i] for i in range(64)]
    captions = [sample.caption for sample in samples]
    canvas = place([sample.picture for sample in samples], FULL, torch.device("cpu"))
    assert guide.task_semantics(canvas, captions) > guide.task_semantics(canvas, captions[1:] + captions[:1]) + 1


def test_the_guide_names_photos_far_over_chance(cifar10):
    """The card says 32 %; chance is 10 %. At 400 photos three standard errors are 7 points."""
    guide = Guide("zoo:guide")
    data = Parquet(cifar10, "test", "?")
    samples = [data[i] for i in range(400)]
    captions = [f"a {name}" for name in data.names]
    canvas = place([sample.picture for sample in samples], FULL, torch.device("cpu"))
    with torch.no_grad():
        best = (guide.image_features(canvas) @ guide.text_features(captions).T).argmax(-1).tolist()
    right = sum(captions[i] == sample.caption for i, sample in zip(best, samples, strict=True))
    assert right / 400 >= 0.25


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The zoo model with a prompt that was trained for a few steps, as a bundle."""
    folder = tmp_path_factory.mktemp("zoo")
    config = TrainConfig(
        models=("zoo:llava",),
        guide="zoo:guide",
        canvas=64,
        inner=48,
        batch=8,
        steps=8,
        n_train=64,
        n_validation=8,
        update="adam",
        lr=0.05,
    )
    prompt = train(config, folder / "run", quiet=True).prompt
    export(model.model.config._name_or_path, tasks.get("bad-camera"), folder / "task", prompt=prompt, family=model)
    return folder / "task", prompt


def test_parity_over_100_scenes(exported, model):
    folder, prompt = exported
    data = Scenes(100, seed=77, n_questions=1, camera=tasks.BAD_CAMERA)
    cases = [(sample.picture, sample.questions[0].text) for sample in (data[i] for i in range(100))]
    _assert_equal(folder, model, prompt, cases)


def test_parity_over_100_photos(exported, model, cifar10):
    folder, prompt = exported
    data = Parquet(cifar10, "test", "What is in the photo?")
    cases = [(sample.picture, sample.questions[0].text) for sample in (data[i] for i in range(100))]
    _assert_equal(folder, model, prompt, cases)


def _assert_equal(folder: Path, model, prompt, cases) -> None:
    with sdk.load(folder) as task:
        report = parity.measure(task, model, prompt.geometry, prompt, cases)
    assert not report.differences
    assert report.tokens_equal == report.n_cases == 100
    assert report.logits <= 1e-3
    assert report.pixels_within_a_level >= 0.999


def test_a_real_photo_set_goes_all_the_way(cifar10, tmp_path):
    """Train on train.parquet, evaluate on test.parquet, export, ask about ten test photos."""
    config = TrainConfig(
        models=("zoo:llava",),
        task="cifar10",
        data=str(cifar10),
        guide="zoo:guide",
        canvas=64,
        inner=48,
        batch=16,
        steps=6,
        n_validation=64,
        update="adam",
        lr=0.02,
    )
    task = tasks.get("cifar10")
    model = families.load("zoo:llava")
    photos = tasks.open_data(str(cifar10), task, "train", 0, 0)
    prompt = train(config, tmp_path / "run", [model], data=Subset(photos, range(400)), quiet=True).prompt
    test = Subset(tasks.open_data(str(cifar10), task, "test", 0, 0), range(100))
    trained = accuracy(model, test, prompt.geometry, prompt, task)
    assert trained.accuracy > 0.25  # far over the chance of 10 %
    export("zoo:llava", task, tmp_path / "task", prompt=prompt, family=model, data=test)
    with sdk.load(tmp_path / "task") as loaded:
        ranked = [loaded.rank(test[i].picture)[0].label for i in range(10)]
        assert all(str(loaded.ask(test[i].picture)) for i in range(10))
    expected = accuracy(model, Subset(test, range(10)), prompt.geometry, prompt, task).right
    assert [label == test[i].questions[0].answer for i, label in enumerate(ranked)] == expected.tolist()
