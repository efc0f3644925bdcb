"""A step's loss and gradient are the same however they are computed: in parts, in processes, in half precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import random_frame, save_tiny
from tvp.sdk.errors import RequestError
from tvp.trainer import families, tasks
from tvp.trainer.batches import Batch, load_batch
from tvp.trainer.frame import Frame
from tvp.trainer.learned import Learned
from tvp.trainer.losses import Guide
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.step import Objective
from tvp.trainer.team import Team
from tvp.trainer.train import TrainConfig, train
from tvp.trainer.update import Update

GEOMETRY = Geometry(64, 48)


@pytest.fixture
def config(zoo):
    return TrainConfig(
        (str(zoo[0]),),
        guide=str(zoo[1]),
        canvas=64,
        inner=48,
        batch=5,
        questions=2,
        fca=0.3,
        tse=0.02,
        n_validation=4,
        keep="last",
    )


@pytest.fixture(scope="module")
def data():
    return tasks.open_data("scenes", tasks.get("bad-camera"), "train", 8, 0)


def gradient(config, data, zoo, frame=None, dtype=torch.float32, **more):
    source = families.load(zoo[0], dtype=dtype)
    objective = Objective(config, data, [source], Guide(zoo[1]), GEOMETRY, **more)
    batch = load_batch(data, [0, 1, 2, 3, 4], GEOMETRY, config.questions)
    # Pictures with different numbers of questions, and so parts with different numbers of answer tokens.
    batch = replace(batch, questions=[q[: 1 + i % 2] for i, q in enumerate(batch.questions)])
    return objective, *objective(batch, frame or random_frame(), Team())


@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_batch_add_up_to_the_whole(config, data, zoo, parts, contrast):
    config = replace(config, contrast=contrast)
    _, facts, (whole,) = gradient(config, data, zoo)
    _, same, (cut,) = gradient(replace(config, accumulate=parts), data, zoo)
    assert facts == pytest.approx(same, rel=1e-4)
    assert (cut - whole).norm() <= 2e-5 * whole.norm()


def test_a_source_that_is_offloaded_gives_the_same(config, data, zoo):
    _, _, (here,) = gradient(config, data, zoo)
    _, _, (there,) = gradient(config, data, zoo, offload=True)
    assert torch.equal(here, there)


def test_sources_are_averaged(config, data, zoo, tmp_path):
    sources = [families.load(zoo[0]), families.load(save_tiny("blip2", tmp_path / "blip2"))]
    config = replace(config, tse=0.0)
    batch = load_batch(data, [0, 1, 2, 3, 4], GEOMETRY, config.questions)

    def told(*chosen):
        facts, (found,) = Objective(config, data, chosen, None, GEOMETRY)(batch, random_frame(), Team())
        return facts, found

    (facts, both), (first, one), (second, other) = told(*sources), told(sources[0]), told(sources[1])
    assert facts == pytest.approx({name: (first[name] + second[name]) / 2 for name in facts}, rel=1e-4)
    torch.testing.assert_close(both, (one + other) / 2, rtol=1e-4, atol=1e-7)


def test_bfloat16_points_the_same_way(config, data, zoo):
    _, _, (fine,) = gradient(config, data, zoo)
    _, _, (coarse,) = gradient(config, data, zoo, dtype=torch.bfloat16)
    assert coarse.dtype == torch.float32
    assert torch.cosine_similarity(fine.flatten(), coarse.flatten(), dim=0) > 0.97


@pytest.mark.parametrize("kind", ["llava", "blip2", "blip2-t5", "instructblip", "bliva"])
def test_float16_is_scaled_and_scales_down_when_it_overflows(config, data, zoo, tmp_path, kind):
    zoo = (zoo[0] if kind == "llava" else save_tiny(kind, tmp_path / kind), zoo[1])
    _, _, (fine,) = gradient(config, data, zoo)
    source = families.load(zoo[0], dtype=torch.float16)
    assert source.dtype == torch.float16
    objective = Objective(config, data, [source], Guide(zoo[1]), GEOMETRY)
    batch = load_batch(data, [0, 1, 2, 3, 4], GEOMETRY, config.questions)
    batch = replace(batch, questions=[q[: 1 + i % 2] for i, q in enumerate(batch.questions)])
    objective.scale = 2.0**24
    _, (coarse,) = objective(batch, random_frame(), Team())
    assert objective.scale < 2.0**24
    assert torch.cosine_similarity(fine.flatten(), coarse.flatten(), dim=0) > 0.99
    assert 0.9 < coarse.norm() / fine.norm() < 1.1


def test_a_gradient_that_is_not_finite_is_told(config, data, zoo):
    frame = random_frame()
    frame.values = [v * float("nan") for v in frame.values]
    with pytest.raises(RequestError, match="not finite"):
        gradient(config, data, zoo, frame)


def test_contrast_pushes_towards_the_right_caption_and_from_the_others(zoo):
    guide = Guide(zoo[1])
    canvas = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    captions, others = ["a cat", "a dog", "a cat"], ["a bird", "a cat", "a dog"]
    logits = guide.scale * guide.image_features(canvas) @ guide.text_features(others).T
    expected = torch.stack([logits.log_softmax(-1)[i, j] for i, j in enumerate([1, 2, 1])]).mean()
    torch.testing.assert_close(guide.task_semantics(canvas, captions, others), expected)


def test_a_low_rank_frame_starts_black_and_stays_of_its_rank(config, data, zoo):
    frame = Frame(GEOMETRY, "free", 2, 0)
    assert frame.pixels().abs().max() == 0
    assert sum(v.numel() for v in frame.values) == 2 * 3 * 2 * 64
    _, _, gradients = gradient(config, data, zoo, random_frame(rank=2))
    assert [g.shape for g in gradients] == [v.shape for v in frame.values]
    values = Update("adam", 0.1, 10).apply(random_frame(rank=2).values, gradients, 0)
    frame.values = values
    ranks = torch.linalg.matrix_rank(values[0] @ values[1])
    assert ranks.tolist() == [2, 2, 2]
    assert torch.equal(frame.pixels() * (1 - frame.mask), torch.zeros(3, 64, 64))
    bounded = Frame(GEOMETRY, "image", 2, 0)
    bounded.values = [10 * v for v in values]
    assert bounded.pixels().min() >= 0
    assert bounded.pixels().max() <= 1


def test_the_low_rank_gradient_is_the_chain_rule_of_the_pixels(config, data, zoo):
    low = random_frame(rank=3)
    pixels = Learned(GEOMETRY, Frame(GEOMETRY, "free", 0, 0))
    pixels.values = [low.frame.pixels()]
    _, _, (by_pixel,) = gradient(config, data, zoo, pixels)
    _, _, (first, second) = gradient(config, data, zoo, low)
    torch.testing.assert_close(first, by_pixel @ low.values[1].mT, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(second, low.values[0].mT @ by_pixel, rtol=1e-3, atol=1e-5)


def test_augmented_pictures_depend_on_seed_and_index_alone(data):
    same = [load_batch(data, order, GEOMETRY, 2, ["flip", "colour"], [3, 0]) for order in ([0, 1, 2], [2, 0, 1])]
    assert np.array_equal(same[0].pictures[[2, 0, 1]], same[1].pictures)
    other = load_batch(data, [0, 1, 2], GEOMETRY, 2, ["flip", "colour"], [3, 1])
    assert not np.array_equal(same[0].pictures, other.pictures)
    assert same[0].varied
    assert not load_batch(data, [0], GEOMETRY, 2).varied


def test_clean_features_of_augmented_pictures_are_those_of_what_is_shown(config, data, zoo):
    """At a black frame L_FCA is zero only if the clean picture is augmented alike."""
    source = families.load(zoo[0])
    objective = Objective(config, data, [source], None, GEOMETRY)
    frame = Learned(GEOMETRY, Frame(GEOMETRY, "free", 0, 0))
    objective(load_batch(data, [0, 1], GEOMETRY, 2), frame, Team())  # fills what is remembered
    facts, _ = objective(load_batch(data, [0, 1], GEOMETRY, 2, ["colour"], [1]), frame, Team())
    assert facts["fca"] == pytest.approx(0, abs=1e-5)


def test_batches_cut_into_neighbours():
    batch = Batch([5, 6, 7], np.zeros((3, 2, 2, 3), np.uint8), [(), (), ()], ["a", "b", "c"])
    assert [part.indices for part in batch.parts(2)] == [[5, 6], [7]]
    assert [part.captions for part in batch.parts(9)] == [["a"], ["b"], ["c"]]


def test_a_frame_over_the_picture_is_trained_and_shown(config, tmp_path):
    config = replace(config, placement="over", method="vp", fca=0.0, tse=0.0, steps=3, n_train=16, batch=4)
    prompt = train(config, tmp_path, quiet=True).prompt
    again = Prompt.load(tmp_path / "prompt.safetensors")
    assert again.geometry == Geometry(64, 48, placement="over")
    assert prompt.frame.abs().max() > 0
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    canvas = again.geometry.show([picture])
    assert torch.equal(canvas[0], torch.from_numpy(picture).permute(2, 0, 1) / 255)
    torch.testing.assert_close(again.on(canvas), canvas + again.frame)


WORKER = """
import sys
from tvp.trainer.config import make_config
from tvp.trainer.train import train
from pathlib import Path
train(make_config({}, Path(sys.argv[1])), sys.argv[2], quiet=True)
"""


def test_two_processes_train_the_prompt_that_one_does(config, tmp_path):
    """`accelerate launch` on two CPU processes (gloo), against one process."""
    config = replace(
        config, steps=4, n_train=16, batch=4, update="adam", lr=0.05, contrast=True, validate_every=2, augment=("flip",)
    )
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
    torch.testing.assert_close(together.frame, alone.prompt.frame, rtol=1e-3, atol=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "together" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "accuracy" not in line] == [1, 2, 3, 4]
    assert lines[-1]["accuracy"] == pytest.approx(alone.validations[-1]["accuracy"])
    for mine, theirs in zip(alone.steps, [line for line in lines if "accuracy" not in line], strict=True):
        assert theirs["answer"] == pytest.approx(mine["answer"], rel=1e-4)


def test_a_model_that_is_spread_by_a_device_map_sees_the_same(zoo):
    """Here the map holds one device; what is tested is that a family works with what transformers makes of it."""
    canvas = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole, spread = families.load(zoo[0]), families.load(zoo[0], "auto")
    assert spread.model.hf_device_map
    question, answer = ["How many?"] * 2, ["2", "3"]
    losses = [m.answer_loss(m.see(m.to_pixels(canvas)), question, answer) for m in (whole, spread)]
    assert torch.equal(*losses)
