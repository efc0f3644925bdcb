"""What a lens starts from: statistics, and kinds and starts that are chosen by trying."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import CANVAS
from tests.trainer.test_lens_runs import OFFSET, Clean, Patches, Planted
from tvp.sdk.errors import RequestError
from tvp.trainer import starts, validation
from tvp.trainer.config import TrainConfig, make_config
from tvp.trainer.step import Objective
from tvp.trainer.summary import sentences
from tvp.trainer.train import train


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
        keep="last",
        balance=True,
        n_train=16,
        n_validation=4,
        checkpoint_every=2,
        guard_model="none",
    )


@pytest.mark.parametrize("paired", [True, False])
def test_the_start_from_statistics_is_exact_for_gains_and_offsets(config, tmp_path, paired):
    gain = np.array([0.5, 0.4, 0.3])
    config = replace(config, lens_start="statistics", lens_lr=0.0, steps=1)
    config = config if paired else replace(config, like="scenes")
    data = Planted(32, 0, np.diag(gain), paired=paired)
    good = None if paired else Clean(32, 0)  # the same pictures, so that the statistics are the same
    values = train(config, tmp_path, data=data, like=good, quiet=True).prompt.lens.values
    rounding = 0.02 if paired else 0.15  # without pairs, other pictures are set aside for validation
    assert values["matrix"].numpy() == pytest.approx(np.diag(1 / gain), abs=rounding / min(gain))
    assert values["bias"].numpy() == pytest.approx(-OFFSET / gain, abs=rounding)
    assert torch.equal(values["tone"], torch.zeros(3))


def test_the_start_from_statistics_needs_good_pictures(config, tmp_path):
    config = replace(config, lens_start="statistics", task="scenes")
    with pytest.raises(RequestError, match="needs good pictures: pairs, a camera, or --like"):
        train(config, tmp_path, quiet=True)


def test_a_choice_that_cannot_be_read_or_is_of_another_run_is_made_anew(config, tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "FEWEST_TRIED", 1)
    config = replace(config, lens="colour", lens_start="auto", steps=1)
    whole = train(config, tmp_path / "a", quiet=True)
    file = tmp_path / "a" / "choice.json"
    said = json.loads(file.read_text())
    assert [one["start"] for one in said["tried"]] == ["identity", "normalise", "statistics"]
    best = max(said["tried"], key=lambda one: one["score"])
    assert (whole.choice.kind, whole.choice.start) == (best["kind"], best["start"])
    for damaged in ("", "[]", "{}", json.dumps(said | {"start": "magic"}), json.dumps(said | {"identity": {}})):
        file.write_text(damaged)
        assert train(config, tmp_path / "a", quiet=True).choice == whole.choice
        assert json.loads(file.read_text()) == said


def test_by_default_kinds_and_starts_are_tried():
    config = make_config({"models": ("m",), "method": "lens"})
    assert (config.lens, config.lens_start) == ("auto", "auto")
    with pytest.raises(RequestError, match="width of a lens"):
        replace(config, lens_width=65)


@pytest.mark.parametrize(
    ("distances", "kind"),
    [
        ({"conv": 0.100, "kernel": 0.101, "colour": 0.2}, "kernel"),
        ({"conv": 0.100, "kernel": 0.103, "colour": 0.2}, "conv"),
        ({"conv": 0.100, "kernel": 0.2, "colour": 0.1015}, "colour"),
        ({"conv": 0.1015, "kernel": 0.1005, "colour": 0.1}, "colour"),
    ],
)
def test_a_simpler_kind_is_taken_where_it_is_as_good_within_noise(config, tmp_path, monkeypatch, distances, kind):
    monkeypatch.setattr(
        validation.HeldOut,
        "distance",
        lambda held_out, prompt: distances[prompt.lens.design.kind] + prompt.lens.design.normalise if prompt else 0.5,
    )
    config = replace(config, lens="auto", lens_start="auto", steps=1)
    result = train(config, tmp_path, quiet=True)
    assert (result.choice.kind, result.prompt.lens.design.kind) == (kind, kind)
    assert not result.prompt.lens.design.normalise
    said = [sentence for sentence in sentences(result) if sentence.startswith(("tried", "took"))]
    assert said[0].startswith("tried lenses for 4 steps each, with these distances: conv from identity 10.")
    best = min(distances, key=lambda one: distances[one])
    simpler = ", which is simpler and within 2% of the best" if kind != best else ""
    assert said[1] == f"took {kind} from {result.choice.start}{simpler}"


def test_tries_are_small_and_one_that_is_clearly_behind_is_stopped(config, tmp_path, monkeypatch):
    """A try shows a quarter of a batch. The normalisation is wrong for these pictures, whose start is planted."""
    shown, real = [], Objective.__call__

    def measured(objective, batch, learned, team):
        shown.append(len(batch.indices))
        return real(objective, batch, learned, team)

    monkeypatch.setattr(Objective, "__call__", measured)
    gain = np.diag([0.5, 0.4, 0.3])
    config = replace(config, models=("patches",), lens_start="auto", steps=60, batch=32, lens_lr=0.01)
    choice = train(config, tmp_path, [Patches()], Planted(80, 0, gain), quiet=True).choice
    tried = {one["start"]: one["steps"] for one in choice.tried}
    assert choice.start == "statistics"
    assert tried["statistics"] == 6
    assert shown == [8] * sum(tried.values()) + [32] * 60


def test_without_good_pictures_the_statistics_are_not_tried(config, tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "FEWEST_TRIED", 1)
    result = train(replace(config, lens_start="auto", task="scenes", steps=1), tmp_path, quiet=True)
    assert [one["start"] for one in result.choice.tried] == ["identity", "normalise"]
