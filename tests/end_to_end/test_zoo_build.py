"""The script that trains the zoo: every stage runs, and continues from its checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from samples.zoo import build, models
from samples.zoo.lessons import LOOK_UPS
from tvp.trainer import families


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A few steps of small batches a stage, in a temporary folder; returns random photos and labels."""
    monkeypatch.setattr(build, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(build, "WORK", tmp_path / "work")
    monkeypatch.setattr(build, "ENCODER_STEPS", dict.fromkeys(models.ENCODERS, (2, 1, 1, 1)))
    monkeypatch.setattr(build, "STAGES", {stage: (3, 2 * bool(n)) for stage, (_, n) in build.STAGES.items()})
    course = (build.Stage("look-ups", 2, 1e-3, 3, 3, 2, LOOK_UPS), build.Stage("finish", 1, 1e-3, 3, 2, 2))
    monkeypatch.setattr(build, "COURSES", dict.fromkeys(models.MAKERS, course))
    (tmp_path / "work").mkdir()
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, 32, 32, 3), np.uint8), rng.integers(0, 10, 20)


@pytest.mark.parametrize("name", models.MAKERS)
def test_a_model_is_built_and_built_again_from_its_checkpoints(name, short, tmp_path):
    build.build(name, short, 1.0, None)
    file = tmp_path / "zoo" / name / "model.safetensors"
    first = load_file(file)
    family = families.load(file.parent)
    assert family.see(torch.rand(1, 3, 64, 64), ["What?"]).isfinite().all()
    file.unlink()
    build.build(name, short, 1.0, None)
    again = load_file(file)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_model_starts_from_an_earlier_one(short, tmp_path):
    build.build("blip2", short, 1.0, None)
    earlier = tmp_path / "earlier"
    (tmp_path / "zoo").rename(earlier)
    for stage in ("look-ups", "finish"):
        (tmp_path / "work" / f"blip2-{stage}.pt").unlink()
    build.build("blip2", short, 0.0, earlier)  # no step: the copied weights are saved
    old, new = (load_file(folder / "blip2" / "model.safetensors") for folder in (earlier, tmp_path / "zoo"))
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_without_photos_scenes_are_learnt_alone(short, tmp_path):
    build.build("blip2", None, 1.0, None)
    assert (tmp_path / "zoo" / "blip2" / "config.json").exists()
