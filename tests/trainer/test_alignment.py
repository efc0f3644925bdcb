"""A shift between the pictures of pairs is found through noise, dim light, fog and blur."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from tvp.trainer import cameras, tasks
from tvp.trainer.alignment import measure
from tvp.trainer.config import TrainConfig
from tvp.trainer.data import Sample
from tvp.trainer.prompt import Geometry
from tvp.trainer.train import train

GEOMETRY = Geometry(64, 64)
CAMERAS = ["none", "bad", "noise:5", "fog:5", "contrast:5", "motion:4", "defocus:4", "resolution:4", "jpeg:5"]


@pytest.fixture(scope="module")
def wide():
    data = tasks.open_data("scenes", tasks.get("scenes"), "train", 32, 3, 80)
    return [data[i].picture for i in range(32)]


def shifted(pictures, camera, shift_of):
    """Pairs whose spoilt picture shows a window that lies elsewhere: shift_of(i) is (down, right), at most 8 px."""
    pairs = []
    for i, picture in enumerate(pictures):
        down, right = shift_of(i)
        window = picture[8 - down : 72 - down, 8 - right : 72 - right]
        spoilt = cameras.parse(camera).shoot(window, (0, i))
        pairs.append(Sample(spoilt, (), "", picture[8:72, 8:72]))
    return pairs


@pytest.mark.parametrize("shift", [(0, 0), (1, 3), (-2, 0), (4, -4)])
@pytest.mark.parametrize("camera", CAMERAS)
def test_a_planted_shift_is_found(wide, camera, shift):
    found = measure(shifted(wide, camera, lambda i: shift), GEOMETRY)
    assert found.shift == pytest.approx(np.hypot(*shift), abs=0.6)
    assert found.spread < 1.0
    assert found.hurts == (np.hypot(*shift) > 1.5)
    assert found.n == 32


def test_pairs_that_are_shifted_each_in_its_own_way_are_told(wide):
    random = np.random.default_rng(0).integers(-4, 5, (32, 2)).tolist()
    found = measure(shifted(wide, "bad", lambda i: random[i]), GEOMETRY)
    assert found.spread > 2
    assert found.hurts
    assert "each by about" in str(found)


def test_the_words_say_the_size(wide):
    assert str(measure(shifted(wide, "none", lambda i: (0, 0)), GEOMETRY)) == "pairs are aligned within 0.1 px of 64"
    # On a canvas of another size a shift is as many times larger.
    twice = measure(shifted(wide, "none", lambda i: (0, 4)), Geometry(128, 128))
    assert twice.shift == pytest.approx(8, abs=0.6)
    assert str(twice).startswith("pairs are shifted by ")
    assert str(twice).endswith(" px of 128")


@pytest.mark.parametrize("pixel", [0, 7])
def test_pictures_without_anything_to_see_have_no_shift(pixel):
    same = np.full((64, 64, 3), pixel, np.uint8)
    assert measure([Sample(same, (), "", same)] * 3, GEOMETRY).shift == 0


def test_a_run_says_it_keeps_it_and_warns(wide, zoo, tmp_path, caplog):
    config = TrainConfig(
        (str(zoo[0]),), method="lens", lens="colour", frame=False, learn_from="pairs", canvas=64, batch=4, steps=1,
        tse=0.0, n_validation=4, guard_model="none", keep="last",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "tvp.trainer"):
        result = train(config, tmp_path / "aligned", data=shifted(wide, "bad", lambda i: (0, 0)), quiet=True)
        assert not caplog.text
        shift = train(replace(config, seed=1), tmp_path / "b", data=shifted(wide, "bad", lambda i: (0, 4)), quiet=True)
    assert "pairs are shifted by 4" in caplog.text.replace("3.9", "4").replace("4.0", "4")
    assert "A lens cannot move pictures back" in caplog.text
    assert result.prompt.facts["alignment"]["shift"] < 0.6 < shift.prompt.facts["alignment"]["shift"]
