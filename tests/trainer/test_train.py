"""The training loop: it learns, it wastes nothing, and it survives being killed.

Over 400 lines because one run of one tiny model is followed from its start to how it is taken up again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import random_frame, save_tiny, save_tiny_guide
from tvp.sdk.errors import DataError, ModelError, RequestError
from tvp.trainer import families, preparation, signals, tasks, validation
from tvp.trainer.batches import load_batch
from tvp.trainer.config import make_config
from tvp.trainer.evaluate import accuracy, summarise
from tvp.trainer.losses import Guide
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.references import References
from tvp.trainer.run import claimed
from tvp.trainer.step import Objective
from tvp.trainer.team import Team
from tvp.trainer.train import TrainConfig, train


@pytest.fixture
def config(zoo):
    model, guide = zoo
    return TrainConfig(
        models=(str(model),),
        guide=str(guide),
        canvas=64,
        inner=48,
        batch=4,
        steps=6,
        questions=2,
        n_train=8,
        n_validation=4,
        checkpoint_every=2,
        update="adam",
        lr=0.05,
        keep="last",
    )


def test_the_loss_falls_and_only_the_frame_changes(config, zoo, tmp_path):
    source = families.load(zoo[0])
    before = {name: value.clone() for name, value in source.model.state_dict().items()}
    result = train(replace(config, steps=20, fca=0.0, tse=0.0, lr=0.1), tmp_path, [source], quiet=True)
    losses = [step["answer"] for step in result.steps]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    mask = Geometry(64, 48).mask()
    assert (result.prompt.frame * (1 - mask)).abs().max() == 0
    assert (result.prompt.frame * mask).abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in source.model.state_dict().items())


@pytest.mark.parametrize("name", ["llava", "blip2-t5", "instructblip"])
def test_the_gradient_is_that_of_the_formula(config, zoo, name, tmp_path):
    """L = L_LM + fca · L_FCA - tse · S_TSE, taken here the long way, on one batch.

    Where the vision encoder reads the question, as InstructBLIP's does, L_FCA is over pictures with their questions.
    """
    config = replace(config, fca=0.3, tse=0.02)
    source = families.load(zoo[0] if name == "llava" else save_tiny(name, tmp_path / name))
    guide = Guide(zoo[1])
    data = tasks.open_data("scenes", tasks.get("bad-camera"), "train", 4, 0)
    learned = random_frame()
    prompt = Prompt(learned.values[0], learned.geometry)
    objective = Objective(config, data, [source], guide, prompt.geometry)
    _, (gradient,) = objective(load_batch(data, [0, 1, 2, 3], prompt.geometry, 2), learned, Team())

    frame = prompt.frame.clone().requires_grad_(True)
    total = torch.zeros(())
    distances, logits = [], []
    losses, n_tokens = [], []
    for i in range(4):
        sample = data[i]
        canvas = prompt.geometry.show([sample.picture])
        shown = canvas + frame * prompt.geometry.mask()
        logits.append(guide.task_semantics(shown, [sample.caption]))
        for question in sample.questions[:2]:
            seen, unseen = (source.see(source.to_pixels(c), [question.text]) for c in (shown, canvas))
            distances.append((seen - unseen).norm(dim=-1).mean())
            losses.append(source.answer_loss(seen, [question.text], [question.answer]))
            n_tokens.append(len(source.answer_ids(question.answer)))
    answer = sum(a * n for a, n in zip(losses, n_tokens, strict=True)) / sum(n_tokens)
    total = answer + 0.3 * torch.stack(distances).mean() - 0.02 * torch.stack(logits).mean()
    (expected,) = torch.autograd.grad(total, frame)
    assert (gradient - expected).norm() <= 2e-5 * expected.norm()


def test_the_prompted_picture_is_encoded_once_a_step_and_the_clean_one_once_ever(config, zoo, tmp_path, monkeypatch):
    source = families.load(zoo[0])
    seen = []
    encode = source.encode
    monkeypatch.setattr(source, "encode", lambda pixels: seen.append(pixels.requires_grad) or encode(pixels))
    monkeypatch.setattr(validation, "accuracy", lambda *a, **k: summarise(np.array([True])))
    train(replace(config, n_train=10), tmp_path, [source], quiet=True)  # 6 steps of 4 on 10 pictures
    assert seen.count(True) == 6
    # Ten pictures in groups of 4, although 24 are shown; and held-out ones without a prompt, in black, and with it.
    assert seen.count(False) == 3 + 3


def test_what_only_chooses_among_answers_learns_too(config, tmp_path):
    guide = save_tiny_guide(tmp_path / "guide")
    config = replace(config, models=(str(guide),), task="count", steps=12, fca=0.0, tse=0.0)
    losses = [step["answer"] for step in train(config, tmp_path / "run", quiet=True).steps]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert losses[0] == pytest.approx(np.log(4), abs=1.0)  # of four counts


def test_beyond_its_budget_clean_features_are_computed_by_batch(zoo):
    source = families.load(zoo[0])
    data = tasks.open_data("scenes", tasks.get("scenes"), "train", 8, 0)
    geometry = Geometry(64, 48)
    kept = References(source, data, geometry, "unprompted", 1, 4, 2**30)
    forgetful = References(source, data, geometry, "unprompted", 1, 4, 10)
    batch = load_batch(data, [1, 6], geometry, 0)
    assert torch.allclose(kept(batch)[0], forgetful(batch)[0], atol=1e-5)
    assert all(group is None for group in forgetful._kept)


def test_a_resumed_run_ends_with_the_same_bits(config, zoo, tmp_path, monkeypatch):
    whole = train(config, tmp_path / "whole", quiet=True).prompt.frame
    calls = 0
    real = Objective.__call__

    def dies_in_step_five(*arguments):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Objective, "__call__", dies_in_step_five)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", quiet=True)
    assert not (tmp_path / "cut" / "prompt.safetensors").exists()
    monkeypatch.setattr(Objective, "__call__", real)
    resumed = train(config, tmp_path / "cut", quiet=True)
    assert torch.equal(resumed.prompt.frame, whole)
    assert [step["step"] for step in resumed.steps] == [1, 2, 3, 4, 5, 6]


def test_a_killed_process_goes_on_from_its_checkpoint(config, zoo, tmp_path):
    whole = train(replace(config, steps=40), tmp_path / "whole", quiet=True).prompt.frame
    command = [
        sys.executable,
        "-m",
        "tvp.sdk.cli",
        "train",
        "-m",
        str(zoo[0]),
        "--guide",
        str(zoo[1]),
        "--canvas",
        "64",
        "--inner",
        "48",
        "--placement",
        "around",
        "--fca",
        "0.005",
        "--tse",
        "0.001",
        "--batch",
        "4",
        "--steps",
        "40",
        "--questions",
        "2",
        "--n-train",
        "8",
        "--n-validation",
        "4",
        "--checkpoint-every",
        "2",
        "--update",
        "adam",
        "--lr",
        "0.05",
        "--keep",
        "last",
        "-o",
        str(tmp_path / "cut"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert (tmp_path / "cut" / "checkpoint.pt").exists(), said.decode()
    assert not (tmp_path / "cut" / "prompt.safetensors").exists(), "it was not killed in the middle"
    subprocess.run(command, env=environment, check=True, capture_output=True)
    resumed = Prompt.load(tmp_path / "cut" / "prompt.safetensors")
    assert torch.equal(resumed.frame, whole)
    assert not list(Path(tmp_path / "cut").glob("*.tmp"))


def test_a_run_does_not_write_into_a_bundle(config, one_bundle):
    before = {file: file.read_bytes() for file in one_bundle.iterdir() if file.is_file()}
    with pytest.raises(RequestError, match="is a task bundle"):
        train(config, one_bundle)
    assert before == {file: file.read_bytes() for file in one_bundle.iterdir() if file.is_file()}


def test_a_second_run_at_once_is_refused(config, tmp_path):
    with claimed(tmp_path), pytest.raises(RequestError, match="Another run is writing to"):
        train(config, tmp_path, resume=False, quiet=True)
    assert train(config, tmp_path, quiet=True).steps


def test_another_configuration_does_not_continue_a_run(config, tmp_path):
    train(config, tmp_path, quiet=True)
    with pytest.raises(RequestError, match=r"lr: 0\.05 there, 0\.1 now.*--restart"):
        train(replace(config, lr=0.1), tmp_path, quiet=True)


def test_other_weights_or_data_do_not_continue_a_run(config, zoo, tmp_path):
    train(config, tmp_path, quiet=True)
    other = tasks.open_data("scenes", tasks.get("bad-camera"), "train", 12, seed=999)
    with pytest.raises(RequestError, match=r"fingerprint: .*--restart"):
        train(config, tmp_path, data=other, quiet=True)
    assert train(config, tmp_path, data=other, resume=False, quiet=True).steps


def test_a_checkpoint_of_an_earlier_version_is_resumed(config, tmp_path):
    """It calls the frame's placement its layout, and the class that holds the order of tokens Layout."""
    whole = train(config, tmp_path, quiet=True)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    earlier = state["identity"].replace('"placement": ', '"layout": ').replace("PromptLayout(", "Layout(")
    assert earlier.count("ayout") == state["identity"].count("ayout") + 1
    torch.save(state | {"identity": earlier}, tmp_path / "checkpoint.pt")
    again = train(config, tmp_path, quiet=True)
    assert again.steps == whole.steps
    with pytest.raises(RequestError, match=r"placement: 'around' there, 'over' now"):
        train(replace(config, placement="over"), tmp_path, quiet=True)


def test_a_checkpoint_without_a_field_that_came_later_is_resumed(config, tmp_path):
    whole = train(config, tmp_path, quiet=True)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    identity = json.loads(state["identity"])
    del identity["config"]["camera"]
    torch.save(state | {"identity": json.dumps(identity)}, tmp_path / "checkpoint.pt")
    assert train(config, tmp_path, quiet=True).steps == whole.steps
    with pytest.raises(RequestError, match=r"camera: '' there, 'fog:4' now"):
        train(replace(config, camera="fog:4"), tmp_path, quiet=True)


def test_pictures_without_questions_are_seen_through_a_camera_that_is_named_and_not_through_the_tasks(config, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "1.png")

    def first(camera):
        run = replace(config, task="bad-camera", pictures=str(tmp_path), camera=camera)
        task = tasks.through(tasks.get(run.task), run.camera)
        return signals.open_data(run, task, Team())[0]

    assert first("").clean is None
    assert (first("").picture == picture).all()
    assert (first("fog:4").clean == picture).all()
    assert (first("fog:4").picture != picture).any()


def test_a_run_sees_its_pictures_through_the_camera_of_its_configuration(config, tmp_path):
    def begun(**changes):
        run = replace(config, steps=1, fca=0.0, tse=0.0, **changes)
        return train(run, tmp_path / repr(changes), quiet=True).prompt

    bad = begun(task="bad-camera")
    named = begun(task="scenes", camera="bad")
    assert torch.equal(named.frame, bad.frame)
    assert named.facts["config"]["camera"] == "bad"
    assert named.facts["data"] == bad.facts["data"]
    assert begun(task="bad-camera", camera="none").facts["data"] == begun(task="scenes").facts["data"]
    assert begun(task="scenes").facts["data"] != bad.facts["data"]


@pytest.mark.parametrize("damage", [b"PK nonsense", b"hello", b"", None])
def test_a_damaged_checkpoint_is_named(config, tmp_path, damage):
    if damage is None:
        torch.save({"step": 3}, tmp_path / "checkpoint.pt")
    else:
        (tmp_path / "checkpoint.pt").write_bytes(damage)
    with pytest.raises(DataError, match=r"checkpoint\.pt is damaged"):
        train(config, tmp_path, quiet=True)


def test_a_bad_model_name_loses_no_run_even_with_restart(config, tmp_path):
    train(config, tmp_path, quiet=True)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ModelError):
        train(replace(config, models=("zoo:lava",)), tmp_path, resume=False, quiet=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_jsonl_of_pictures_questions_and_answers_is_trained_and_measured(config, tmp_path):
    rows = []
    for i in range(10):
        Image.new("RGB", (30, 20), (25 * i, 80, 0)).save(tmp_path / f"{i}.png")
        answer = "yes" if i % 2 else "no"
        rows.append({"image": f"{i}.png", "question": "Is it odd?", "answer": answer, "labels": ["yes", "no"]})
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = replace(config, task="custom", data=str(tmp_path / "mine.jsonl"), steps=3)
    result = train(config, tmp_path / "run", quiet=True)
    assert result.prompt.facts["data"]["n"] == 10
    data = tasks.open_data(config.data, tasks.get("custom"), "test", 0, 0)
    measured = accuracy(families.load(config.models[0]), data, Geometry(64, 48), result.prompt, tasks.get("custom"))
    assert measured.n == 10
    assert 0 < measured.accuracy < 1  # ranked by its labels; a random model would never generate them


def test_the_image_range_stays_inside_the_box(config, tmp_path):
    result = train(replace(config, pixel_range="image", lr=0.3, steps=8), tmp_path, quiet=True)
    assert result.prompt.frame.min() >= 0
    assert result.prompt.frame.max() <= 1


def test_two_sources_are_trained_on(config, zoo, tmp_path_factory, tmp_path):
    other = save_tiny("blip2", tmp_path_factory.mktemp("blip2"))
    result = train(replace(config, models=(str(zoo[0]), str(other)), steps=2), tmp_path, quiet=True)
    assert len(result.prompt.facts["sources"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"models": ()},
        {"batch": 0},
        {"fca": -1.0},
        {"pixel_range": "wide"},
        {"update": "sgd"},
        {"inner": 99},
        {"inner": 64},
        {"seed": -1},
    ],
)
def test_impossible_configurations_are_refused(config, change):
    with pytest.raises(RequestError):
        replace(config, **change)


class Oracle:
    """Answers every question with a fixed text; scores the second label best."""

    device = torch.device("cpu")
    reads_question = False
    generates = True

    def to_pixels(self, canvas):
        return canvas

    def encode(self, pixels):
        return pixels.flatten(1)[:, None]

    def connect_rows(self, features, rows, questions):
        return features[rows]

    def generate(self, embeddings, questions, max_new_tokens):
        return ["2"] * len(questions)

    def answer_scores(self, embeddings, questions, candidates, at_once=256):
        return torch.eye(len(candidates))[1].expand(len(questions), -1)


def test_accuracy_counts_exact_matches_only():
    data = tasks.open_data("scenes", tasks.get("count"), "test", 200, 0)
    share = np.mean([q.answer == "2" for i in range(200) for q in data[i].questions])
    free = accuracy(Oracle(), data, Geometry(64, 48))
    closed = accuracy(Oracle(), data, Geometry(64, 48), task=tasks.get("count"))
    assert free.accuracy == pytest.approx(share)
    assert closed.accuracy == pytest.approx(share)  # label 1 of the counts is "2" as well
    assert free.low < free.accuracy < free.high


def test_the_interval_is_that_of_a_proportion():
    result = summarise(np.arange(1000) < 300)
    assert result.high - result.low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 1000), rel=0.1)


def test_a_run_leaves_its_configuration_logs_and_pictures(config, tmp_path, painted):
    config = replace(config, validate_every=3)
    result = train(config, tmp_path, quiet=True, tensorboard=True)
    assert make_config({}, tmp_path / "config.toml") == config
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert [line for line in lines if "accuracy" in line] == result.validations
    assert set(lines[0]) == {"step", "seconds", "rate", "answer", "fca", "tse"}
    for name in ("curves.png", "prompt.png", "frames/000003.png", "frames/000006.png"):
        Image.open(tmp_path / name).verify()
    assert list((tmp_path / "tensorboard").iterdir())
    (tmp_path / "prompt.safetensors").unlink()
    train(config, tmp_path, quiet=True)  # a finished run that is taken up again only writes its prompt
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == lines
    assert (tmp_path / "prompt.safetensors").exists()


def test_early_stopping_keeps_the_best_frame(config, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.5, 0.6, 0.9])
    frames = []

    def judged(source, data, geometry, prompt, task, batch):
        frames.append(prompt.frame.clone())
        right = np.arange(10) < 10 * next(scores)
        return summarise(right)

    monkeypatch.setattr(validation, "accuracy", judged)
    config = replace(config, steps=20, validate_every=2, patience=2)
    result = train(config, tmp_path, quiet=True)
    assert [v["step"] for v in result.validations] == [2, 4, 6, 8]  # 0.6 again is no new best
    assert torch.equal(result.prompt.frame, frames[1])
    assert result.prompt.facts["validation"] == [{"step": 4, "accuracy": 0.6}] == [result.chosen]
    assert result.prompt.facts["steps"] == 4
    again = train(config, tmp_path, quiet=True)  # it had stopped, and stays so
    assert len(again.steps) == 8
    assert torch.equal(again.prompt.frame, frames[1])


@pytest.mark.parametrize("change", [{"rank": 2}, {"augment": ("flip",)}, {"update": "sign", "lr": 0.01}])
def test_other_ways_to_train_resume_with_the_same_bits_too(config, tmp_path, monkeypatch, change):
    config = replace(config, **change)
    whole = train(config, tmp_path / "whole", quiet=True).prompt.frame
    real = Objective.__call__
    n_calls = []

    def dies_in_step_four(*arguments):
        n_calls.append(1)
        if len(n_calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Objective, "__call__", dies_in_step_four)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(Objective, "__call__", real)
    assert torch.equal(train(config, tmp_path / "cut", quiet=True).prompt.frame, whole)


def test_compiled_encoders_give_the_same_prompt(config, zoo, tmp_path, monkeypatch):
    """The graphs are captured as ever, and run by PyTorch itself: no compiler is needed here."""
    captured = []

    def backend(graph, inputs):
        captured.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=backend))
    plain = train(config, tmp_path / "plain", [families.load(zoo[0])], quiet=True)
    compiled = train(config, tmp_path / "compiled", [families.load(zoo[0])], quiet=True, compile=True)
    assert len(captured) >= 2  # the source's and the guide's
    torch.testing.assert_close(compiled.prompt.frame, plain.prompt.frame, atol=1e-4, rtol=0)


def test_a_run_that_ended_in_its_last_validation_is_validated_when_it_goes_on(config, tmp_path, monkeypatch):
    whole = train(config, tmp_path / "whole", quiet=True)

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(validation, "accuracy", dies)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", quiet=True)
    again = train(config, tmp_path / "cut", quiet=True)
    assert again.validations == whole.validations
    assert again.prompt.facts["validation"] == [again.chosen] == [whole.chosen]
    assert (tmp_path / "cut" / "curves.png").exists()


def test_as_many_scenes_are_trained_on_as_are_asked_for(config, tmp_path, monkeypatch):
    sizes = []
    real = preparation.split
    monkeypatch.setattr(preparation, "split", lambda *a: sizes.append([len(part) for part in real(*a)]) or real(*a))
    for n_train, n_validation in ((8, 4), (16, 4), (40, 4)):
        train(replace(config, n_train=n_train, n_validation=n_validation), tmp_path / f"{n_train}", quiet=True)
    assert sizes == [[8, 2], [16, 4], [40, 4]]


def test_a_device_that_cannot_be_used_is_told_with_offload_too(config, tmp_path):
    with pytest.raises(RequestError, match="'cudaa' cannot be used"):
        train(config, tmp_path, device="cudaa", offload=True, quiet=True)
