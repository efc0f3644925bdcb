"""Corruptions do what they say, by as much as they say, and the same each time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from tvp.sdk.errors import RequestError
from tvp.trainer import corruptions
from tvp.trainer.corruptions import CIFAR_10_C, CORRUPTIONS, IMAGENET_C, SEVERITIES, TINY_IMAGENET_C, Corrupted, corrupt
from tvp.trainer.data import Scenes

NAMES = list(CORRUPTIONS)


def grey(height, width, level=128):
    return np.full((height, width, 3), level, np.uint8)


def spread(picture):
    return picture.astype(float).std((0, 1))


@pytest.fixture(scope="module")
def photo():
    """A picture with large shapes and fine grain, 96 x 128."""
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((128, 96), Image.Resampling.BICUBIC)
    return (np.asarray(coarse) * 0.8 + rng.integers(0, 51, (96, 128, 3))).astype(np.uint8)


@pytest.mark.parametrize(
    ("side", "expected"), [(32, CIFAR_10_C.noise), (64, TINY_IMAGENET_C.noise), (224, IMAGENET_C.noise)]
)
def test_noise_has_the_stated_deviation(side, expected):
    """At severities whose tails a mid-grey picture holds without being cut off."""
    for severity, deviation in zip(SEVERITIES, expected, strict=True):
        if deviation <= 0.15:
            added = corrupt(grey(side, side), "noise", severity, 0) / 255 - 128 / 255
            assert added.std() == pytest.approx(deviation, rel=0.06)
            assert abs(added.mean()) < 0.01
            assert (
                abs(np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1]) < 0.1
            )  # another for each channel


def test_contrast_halves_the_spread_and_keeps_the_mean(photo):
    small = photo[:48, :48]
    assert CIFAR_10_C.contrast[1] == 0.5
    halved = corrupt(small, "contrast", 2, 0)
    assert spread(halved) == pytest.approx(spread(small) / 2, rel=0.02)
    assert halved.mean((0, 1)) == pytest.approx(small.mean((0, 1)), abs=0.5)


def test_blur_is_a_gaussian_of_the_stated_width():
    """A point becomes a bell with the stated variance, and what is flat stays flat up to the edge."""
    point = np.zeros((65, 65, 3))
    point[32, 32] = 1.0
    rng = np.random.default_rng(0)
    away = np.arange(65) - 32
    for deviation in (1.0, 2.0, 6.0):
        bell = corruptions.blur(point, deviation, rng)
        assert bell.sum((0, 1)) == pytest.approx(1.0)
        for axis in (0, 1):
            assert (bell.sum(axis)[:, 0] * away**2).sum() == pytest.approx(deviation**2, rel=0.02)
    assert (corrupt(grey(70, 50), "blur", 5, 0) == 128).all()


def test_jpeg_is_that_of_pillow(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=TINY_IMAGENET_C.jpeg[2])
    assert (corrupt(photo, "jpeg", 3, 0) == np.asarray(Image.open(tmp_path / "photo.jpg"))).all()


def test_fog_is_a_grey_cloud_that_keeps_the_brightest(photo):
    foggy = corrupt(photo, "fog", 3, 0).astype(float)
    assert foggy.max() <= photo.max()
    assert spread(foggy).mean() < spread(photo).mean()
    cloud = corrupt(grey(96, 128, 200), "fog", 3, 0)
    assert (cloud == cloud[..., :1]).all()
    assert cloud.std() > 5


def test_plasma_is_coarse_and_fills_its_range():
    cloud = corruptions.plasma(100, 2.0, np.random.default_rng(1))
    assert cloud.shape == (128, 128)
    assert cloud.min() == 0
    assert cloud.max() == 1
    near, far = (np.abs(cloud - np.roll(cloud, step, 1)).mean() for step in (1, 32))
    assert near < far / 3  # neighbours are alike, what is far apart is not
    rough = corruptions.plasma(100, 1.2, np.random.default_rng(1))
    assert np.abs(rough - np.roll(rough, 1, 1)).mean() > near  # a slower fall leaves more of the fine scales


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [32, 64, 128])
def test_a_severer_one_takes_a_picture_further_away(photo, name, side):
    """At the three sizes for which strengths are known, on the mean of four pictures."""
    pictures = [np.asarray(Image.fromarray(np.roll(photo, 9 * k, k % 2)).resize((side, side))) for k in range(4)]
    distances = [
        np.mean(
            [
                np.abs(corrupt(picture, name, severity, k).astype(float) - picture).mean()
                for k, picture in enumerate(pictures)
            ]
        )
        for severity in SEVERITIES
    ]
    assert distances[0] > 0
    assert all(one < other for one, other in itertools.pairwise(distances)), distances


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (40, 3), (63, 200), (64, 65), (130, 129)])
def test_any_shape_stays_and_the_input_is_left_alone(name, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = picture.copy()
    for severity in (1, 5):
        result = corrupt(picture, name, severity, 0)
        assert result.shape == picture.shape
        assert result.dtype == np.uint8
    assert (picture == before).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_pictures_are_no_trouble(name, level):
    assert corrupt(grey(33, 17, level), name, 5, 0).shape == (33, 17, 3)


def test_the_same_seed_gives_the_same_picture_and_another_gives_another(photo):
    for name in NAMES:
        assert (corrupt(photo, name, 4, (1, 2)) == corrupt(photo, name, 4, (1, 2))).all()
    for name in ("noise", "fog"):
        assert (corrupt(photo, name, 4, (1, 2)) != corrupt(photo, name, 4, (1, 3))).any()


def test_a_corrupted_data_set_asks_the_same_about_other_pictures():
    data = Scenes(3, seed=1)
    noisy = Corrupted(data, "noise", 3, seed=5)
    assert len(noisy) == 3
    for i in (2, 0, 2):  # in any order, any number of times
        assert noisy[i].questions == data[i].questions
        assert noisy[i].caption == data[i].caption
        assert (noisy[i].picture == corrupt(data[i].picture, "noise", 3, (5, i))).all()
    added = [noisy[i].picture.astype(int) - data[i].picture for i in (0, 1)]
    assert (added[0] != added[1]).any()


def test_names_and_severities_are_read():
    assert corruptions.parse("fog:2") == [("fog", 2)]
    assert corruptions.parse("jpeg") == [("jpeg", severity) for severity in SEVERITIES]
    assert corruptions.parse("all:3") == [(name, 3) for name in NAMES]
    assert len(corruptions.parse("all")) == 25


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nose", r"There is no corruption 'nose'.*Did you mean noise"),
        ("", "There is no corruption ''"),
        ("fog:6", "severity '6' of fog"),
        ("fog:0", "from 1 to 5"),
        ("fog:", "severity ''"),
        ("all:x", "severity 'x' of all"),
    ],
)
def test_wrong_names_and_severities_are_refused(text, says):
    with pytest.raises(RequestError, match=says):
        corruptions.parse(text)


def test_a_wrong_name_is_refused_when_the_data_is_opened_not_when_it_is_read(photo):
    with pytest.raises(RequestError, match="Did you mean contrast"):
        Corrupted(Scenes(1, 0), "contrst", 1)
    with pytest.raises(RequestError, match="from 1 to 5"):
        corrupt(photo, "fog", 6, 0)
