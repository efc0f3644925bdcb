"""Runs that learn a lens: it finds what a planted camera did, resumes with the same bits, and says what it took."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import CANVAS, save_tiny
from tvp.sdk.errors import RequestError
from tvp.trainer import families, starts, tasks, validation
from tvp.trainer import train as train_module
from tvp.trainer.config import TrainConfig, make_config
from tvp.trainer.data import Sample
from tvp.trainer.families import Family, PixelFormat
from tvp.trainer.lens import Lens, LensDesign
from tvp.trainer.preparation import prepare
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.run import load_checkpoint
from tvp.trainer.step import Objective
from tvp.trainer.team import Team
from tvp.trainer.train import train

MATRIX = np.array([[0.45, 0.05, 0.0], [0.0, 0.4, 0.1], [0.05, 0.0, 0.35]])
OFFSET = np.array([0.1, 0.05, 0.2])


class Planted:
    """Scenes, seen through a colour matrix and an offset; no clean picture where they are only like them."""

    def __init__(self, n, seed, matrix=MATRIX, offset=OFFSET, paired=True):
        self.scenes = tasks.open_data("scenes", tasks.get("scenes"), "train", n, seed)
        self.matrix, self.offset, self.paired = matrix, offset, paired

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        clean = self.scenes[index].picture
        spoilt = np.clip(clean / 255 @ self.matrix.T + self.offset, 0, 1)
        return Sample(np.round(255 * spoilt).astype(np.uint8), (), "", clean if self.paired else None)


class Clean(Planted):
    def __getitem__(self, index):
        return Sample(self.scenes[index].picture, (), "")


class Patches(Family):
    """A smooth vision encoder: a frozen random projection of patches. A random transformer's features are chaotic."""

    name, kind = "patches", "contrastive"

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(torch.nn.Conv2d(3, 32, 8, 8), PixelFormat(CANVAS, (0.5,) * 3, (0.25,) * 3))

    def encode(self, pixels):
        return self.model(pixels).flatten(2).transpose(1, 2).tanh()

    def connect(self, features, questions=None):
        return features


@pytest.fixture
def config(zoo):
    return TrainConfig(
        (str(zoo[0]),),
        method="lens",
        lens="colour",
        frame=False,
        learn_from="auto",
        canvas=CANVAS,
        batch=8,
        steps=6,
        tse=0.0,
        fca=1.0,
        reference="clean",
        relative=True,
        balance=True,
        n_train=16,
        n_validation=4,
        checkpoint_every=2,
        guard_model="none",
        keep="last",
    )


def values_of(prompt):
    return [*prompt.lens.values.values(), *([] if prompt.frame is None else [prompt.frame])]


def test_a_planted_camera_is_undone_from_pairs(config, tmp_path):
    config = replace(config, steps=400, lens_lr=0.1, models=("patches",), lens_start="statistics")
    result = train(config, tmp_path, [Patches()], Planted(32, 0), quiet=True)
    assert result.learned_from == "pairs"
    assert result.without["distance"] > 0.3
    assert result.chosen["distance"] < 0.05
    sample = Planted(40, 7)[39]
    canvas, clean = (Geometry(CANVAS, CANVAS).show([p]) for p in (sample.picture, sample.clean))
    assert (result.prompt.on(canvas) - clean).abs().mean() < 0.02 < (canvas - clean).abs().mean()


def test_a_planted_camera_is_undone_from_other_good_pictures(config, tmp_path):
    config = replace(config, steps=300, lens_lr=0.03, batch=32, learn_from="unpaired", like="scenes", n_validation=12)
    config = replace(config, models=("patches",))
    data = Planted(96, 0, np.diag([0.5, 0.4, 0.3]), paired=False)
    result = train(config, tmp_path, [Patches()], data, like=Clean(96, 5), quiet=True)
    assert result.chosen["distance"] < 0.5 * result.without["distance"]
    sample = Planted(60, 7, np.diag([0.5, 0.4, 0.3]))[59]
    canvas, clean = (Geometry(CANVAS, CANVAS).show([p]) for p in (sample.picture, sample.clean))
    assert (result.prompt.on(canvas) - clean).abs().mean() < 0.5 * (canvas - clean).abs().mean()


CHANGES = {
    "lens": {},
    "conv from unpaired": {"lens": "conv", "like": "scenes", "lens_width": 4},
    "lens and frame": {"frame": True, "inner": 48, "placement": "over", "update": "adam", "lr": 0.01},
    "answers": {"learn_from": "answers"},
    "auto": {"lens": "auto", "lens_start": "auto", "lens_width": 4},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_resumed_run_ends_with_the_same_bits(config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(starts, "FEWEST_TRIED", 1)
    config = replace(config, **CHANGES[name])
    whole = train(config, tmp_path / "whole", quiet=True)
    real, n_calls = Objective.__call__, []
    n_tried = 5 if name == "auto" else 0  # three starts of the first kind, then two kinds, a step each
    kept = tmp_path / "cut" / "choice.json"

    def dies_in_step_four(*arguments):
        n_calls.append(1)
        if len(n_calls) == n_tried + 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Objective, "__call__", dies_in_step_four)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", quiet=True)
    assert kept.exists() == (name == "auto")
    before = kept.read_bytes() if kept.exists() else b""
    n_calls.clear()
    monkeypatch.setattr(Objective, "__call__", lambda *arguments: n_calls.append(1) or real(*arguments))
    resumed = train(config, tmp_path / "cut", quiet=True)
    assert len(n_calls) == 6 - 2  # from the checkpoint of step 2; no lens was tried again
    assert all(map(torch.equal, values_of(resumed.prompt), values_of(whole.prompt)))
    assert (kept.read_bytes() if kept.exists() else b"") == before
    assert resumed.choice == whole.choice


def test_early_stopping_keeps_the_lens_that_is_nearest(config, tmp_path, monkeypatch):
    distances, lenses = iter([0.5, 0.3, 0.4, 0.35, 0.2, 0.9]), []

    def measured(held_out, prompt):
        lenses.append(None if prompt is None else values_of(prompt))
        return next(distances)

    monkeypatch.setattr(validation.HeldOut, "distance", measured)
    result = train(replace(config, steps=20, validate_every=2, patience=2), tmp_path, quiet=True)
    assert [line["step"] for line in result.validations] == [2, 4, 6, 8]
    assert result.chosen == {"step": 4, "distance": 0.3}
    assert all(map(torch.equal, values_of(result.prompt), lenses[1]))
    assert lenses[4] is None
    assert result.without == {"distance": 0.2}


def test_several_sources_learn_a_lens_together(config, zoo, tmp_path):
    other = save_tiny("blip2", tmp_path / "blip2")
    config = replace(config, models=(str(zoo[0]), str(other)), steps=12, lens_lr=0.02)
    result = train(config, tmp_path / "run", data=Planted(24, 0), quiet=True)
    assert len(result.prompt.facts["sources"]) == 2
    assert result.chosen["distance"] < result.without["distance"]
    offloaded = train(config, tmp_path / "offload", data=Planted(24, 0), quiet=True, offload=True)
    assert all(map(torch.equal, values_of(offloaded.prompt), values_of(result.prompt)))


def test_a_frame_behind_a_lens_leaves_the_lens_as_it_is(config, tmp_path):
    lens = train(config, tmp_path / "lens", quiet=True).prompt
    frame = {"frame": True, "inner": 48, "update": "adam", "lr": 0.05, "lens": "none", "learn_from": "answers"}
    behind = replace(config, **frame, behind=str(tmp_path / "lens" / "prompt.safetensors"), method="evp")
    prompt = train(behind, tmp_path / "both", quiet=True).prompt
    assert all(torch.equal(value, prompt.lens.values[name]) for name, value in lens.lens.values.items())
    assert prompt.frame.abs().max() > 0
    again = Prompt.load(tmp_path / "both" / "prompt.safetensors")
    canvas = torch.rand(1, 3, CANVAS, CANVAS)
    assert torch.equal(again.on(canvas), prompt.on(canvas))
    train(replace(behind, behind=""), tmp_path / "frame", quiet=True)
    wrong = replace(behind, behind=str(tmp_path / "frame" / "prompt.safetensors"))
    with pytest.raises(RequestError, match="has no lens; it is a frame alone"):
        train(wrong, tmp_path / "wrong", quiet=True)


def test_features_need_no_language_model_and_answers_do(config, tmp_path, monkeypatch):
    asked = []
    real = families.load

    def load(name, device="cpu", dtype=None, canvas=None, fetch=True, alone=False):
        asked.append(alone)
        return real(name, device, dtype, canvas, fetch, alone)

    monkeypatch.setattr(families, "load", load)
    # After the last step, its language model is asked standard questions: see `agreement`.
    monkeypatch.setattr(train_module, "measure_agreement", lambda *arguments: None)
    train(replace(config, steps=1), tmp_path / "pairs", quiet=True)
    train(replace(config, steps=1, learn_from="pixels"), tmp_path / "pixels", quiet=True)
    train(replace(config, steps=1, learn_from="answers"), tmp_path / "answers", quiet=True)
    assert asked == [True, True, False]


def test_answers_without_clean_pictures_are_learned_from_alone(config, tmp_path, caplog):
    caplog.set_level("INFO", "tvp.trainer")
    result = train(replace(config, task="scenes"), tmp_path, quiet=True)
    assert result.learned_from == "answers"
    assert set(result.steps[0]) == {"step", "seconds", "rate", "answer"}
    assert "learns from the answers alone" in caplog.text
    assert make_config({}, tmp_path / "config.toml").fca == 0
    assert train(replace(config, task="scenes"), tmp_path, quiet=True).steps == result.steps  # it is the same run


def test_answers_and_clean_pictures_are_learned_from_together(config, tmp_path):
    result = train(replace(config, learn_from="answers"), tmp_path, quiet=True)
    assert set(result.steps[0]) == {"step", "seconds", "rate", "answer", "fca"}
    assert result.without == {}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_too(config, tmp_path, precision):
    config = replace(config, precision=precision, steps=12, lens_lr=0.02)
    result = train(config, tmp_path, data=Planted(24, 0), quiet=True)
    assert result.chosen["distance"] < result.without["distance"]


def test_parts_of_a_batch_learn_the_same_lens(config, tmp_path):
    for change in ({}, {"like": "scenes"}):
        one = train(replace(config, **change), tmp_path / f"a{len(change)}", quiet=True)
        parts = train(replace(config, accumulate=3, **change), tmp_path / f"b{len(change)}", quiet=True)
        for mine, theirs in zip(values_of(one.prompt), values_of(parts.prompt), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


def test_a_checkpoint_of_another_lens_does_not_continue(config, tmp_path):
    train(config, tmp_path, quiet=True)
    with pytest.raises(RequestError, match="lens: 'colour' there, 'kernel' now"):
        train(replace(config, lens="kernel"), tmp_path, quiet=True)
    assert load_checkpoint(tmp_path / "nowhere", {}, None) is None


def test_curves_and_log_hold_distances(config, tmp_path, painted):
    result = train(replace(config, validate_every=3), tmp_path, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line for line in lines if "distance" in line] == result.validations
    assert set(lines[0]) == {"step", "seconds", "rate", "fca"}
    for name in ("curves.png", "lens.png", "pictures.png"):
        Image.open(tmp_path / name).verify()
    assert not (tmp_path / "frames").exists()
    facts = Prompt.load(tmp_path / "prompt.safetensors").facts
    assert (facts["learned_from"], facts["without"]) == ("pairs", result.without)
    assert facts["choice"] == {"kind": "colour", "start": "identity", "tried": []}


WORKER = """
import sys
from pathlib import Path
from tvp.trainer.config import make_config
from tvp.trainer.train import train
train(make_config({}, Path(sys.argv[1])), sys.argv[2], quiet=True)
"""


def test_two_processes_learn_the_lens_that_one_does(config, tmp_path):
    """`accelerate launch` on two CPU processes: moments of the whole batch, a choice of starts, and a guard."""
    other = shutil.copytree(config.models[0], tmp_path / "guard")  # the same design, which the lens helps too
    config = replace(config, like="scenes", lens_start="auto", steps=4, validate_every=2, guard_model=str(other))
    alone = train(config, tmp_path / "alone", quiet=True)
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    paths = [str(p) for p in (tmp_path / "worker.py", tmp_path / "alone" / "config.toml", tmp_path / "together")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [*launch, "--rdzv-endpoint", "127.0.0.1:0", *paths],
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    together = Prompt.load(tmp_path / "together" / "prompt.safetensors")
    for name, value in alone.prompt.lens.values.items():
        torch.testing.assert_close(together.lens.values[name], value, rtol=1e-3, atol=1e-4)
    assert together.facts["choice"]["start"] == alone.choice.start
    assert together.facts["validation"][0]["distance"] == pytest.approx(alone.chosen["distance"], rel=1e-3)
    assert together.facts["guard"]["behind"] == pytest.approx(alone.verdict.behind, rel=1e-3)


class Counting(Patches):
    """Counts how often it is shown each picture."""

    def __init__(self):
        super().__init__()
        self.times = Counter()

    def encode(self, pixels):
        self.times.update(picture.numpy().tobytes() for picture in pixels)
        return super().encode(pixels)


@pytest.mark.parametrize(("paired", "budget", "n_times"), [(True, 2**29, 1), (True, 0, 3), (False, 0, 1)])
def test_what_validation_compares_with_is_encoded_once(config, monkeypatch, paired, budget, n_times):
    """By a source model, and by a guard. Beyond its budget it is encoded each time, and the figures are the same."""
    monkeypatch.setattr(validation, "BUDGET", budget)
    config = replace(config, models=("counting",), n_validation=6, batch=4, like="" if paired else "scenes")
    source = Counting()
    prepared = prepare(config, Team(), [source], Planted(30, 0, paired=paired), None if paired else Clean(30, 5))
    good = prepared.validation if paired else prepared.like[1]
    canvas = prepared.geometry.show(good[i].clean if paired else good[i].picture for i in range(6))
    design = LensDesign("colour")
    lens = Prompt(None, prepared.geometry, lens=Lens(design, design.start(0) | {"bias": torch.full((3,), -0.1)}))
    validate, guard = validation.Validation(prepared, Team()), validation.HeldOut(source, prepared, budget)
    for measure in (lambda prompt: validate(prompt)["distance"], guard.distance):
        source.times.clear()
        figures = [measure(prompt) for prompt in (None, lens, None)]
        assert {source.times[one.numpy().tobytes()] for one in source.to_pixels(canvas)} == {n_times}
        assert figures == [validation.HeldOut(Patches(), prepared, 0).distance(one) for one in (None, lens, None)]
        assert figures[0] == figures[2] != figures[1]
