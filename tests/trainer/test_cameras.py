"""Cameras do what they say, by as much as they say, and the same each time."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tvp.trainer import tasks
from tvp.trainer.cameras import CORRUPTIONS, KINDS, SEVERITIES, Part, effects, parse
from tvp.trainer.cameras.kinds import CIFAR_10_C, IMAGENET_C, TINY_IMAGENET_C
from tvp.trainer.data import Sample, Scenes, ThroughCamera

RANDOM = ("noise", "shot", "motion", "fog", "dead")
NEUTRAL = {kind: f"{kind}={found.neutral:g}" for kind, found in KINDS.items() if found.neutral is not None}
NEUTRAL |= {"cast": "cast=1/1/1", "motion": "motion=0/30"}


def grey(height, width, level=128):
    return np.full((height, width, 3), level, np.uint8)


def spread(picture):
    return picture.astype(float).std((0, 1))


def through(text, picture, seed=0):
    return parse(text).shoot(picture, seed)


def make_photo(height, width, seed=3):
    """A picture with large shapes and fine grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
    return (smooth * 0.8 + rng.integers(0, 51, (height, width, 3))).astype(np.uint8)


class Photos:
    def __init__(self, n=12):
        self._n = n

    def __len__(self):
        return self._n

    def __getitem__(self, index):
        return Sample(make_photo(32 + 13 * index, 40 + 9 * index, index), (), f"photo {index}")


@pytest.fixture(scope="module")
def photo():
    return make_photo(96, 128)


def digest(*pictures):
    total = hashlib.sha256()
    for picture in pictures:
        total.update(np.ascontiguousarray(picture).tobytes())
    return total.hexdigest()[:16]


# What the code before this registry recorded: the bad camera (scenes.Camera) and five corruptions (corruptions.py).
# Prompts, bundles and a study were made with these very bits.
BEFORE = {
    "bad scenes": "df33e0168d88c244",
    "bad scenes questions": "487cdc73ffb15f31",
    "bad scenes 200": "9705e65403dd910c",
    "bad photos": "29be857edd38d32a",
    "gain=0.5": "b8636d90432de3a1",
    "cast=1/0.5/0.25": "f34916eca62673d7",
    "gain=0.7,cast=0.9/0.8/0.3": "cf24b80869ef20b6",
    "gain=0.5,noise=0.1": "c825296f4300ac76",
    "noise 32": "a76004dca57bf41b",
    "noise 64": "0e41648873b9f4f0",
    "noise 130": "e95b3ded5e62df53",
    "blur 32": "0bd7006d95b6178f",
    "blur 64": "11f724fa60bd05fe",
    "blur 130": "8ce115b5324a52ec",
    "contrast 32": "8f21804c68d63de7",
    "contrast 64": "0b622083dca6bb7f",
    "contrast 130": "67a36adf6968385b",
    "fog 32": "681aee88641011b5",
    "fog 64": "82a9d1d943ee009a",
    "fog 130": "f95d3dab2d0173b1",
}


def test_the_bad_camera_records_the_bits_that_it_always_did():
    small, large = Scenes(40, seed=900, camera=tasks.BAD_CAMERA), Scenes(10, 7, 200, camera=tasks.BAD_CAMERA)
    photos = ThroughCamera(Photos(), tasks.BAD_CAMERA, 2000)
    found = {
        "bad scenes": digest(*(small[i].picture for i in range(40))),
        "bad scenes questions": hashlib.sha256(repr([small[i].questions for i in range(40)]).encode()).hexdigest()[:16],
        "bad scenes 200": digest(*(large[i].picture for i in range(10))),
        "bad photos": digest(*(photos[i].picture for i in range(12))),
    }
    for text in [text for text in BEFORE if "=" in text]:
        found[text] = digest(*(through(text, make_photo(48, 60, i), [5, i]) for i in range(4)))
    assert found == {name: BEFORE[name] for name in found}


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "jpeg"])  # jpeg's bits are Pillow's
def test_four_corruptions_record_the_bits_that_they_always_did(name):
    for height, width in ((32, 40), (64, 70), (130, 150)):
        shot = [through(f"{name}:{s}", make_photo(height, width, s), (1, s)) for s in SEVERITIES]
        assert digest(*shot) == BEFORE[f"{name} {height}"]


def test_gain_cast_and_noise_are_the_formula_of_the_bad_camera(photo):
    """In any order of the factors; what stands between them and the noise makes it another noise."""
    rng = np.random.default_rng([4, 2])
    factors = np.asarray((1.0, 0.62, 0.38), np.float32) * np.float32(0.32)
    seen = photo.astype(np.float32) * factors + rng.standard_normal(photo.shape, np.float32) * np.float32(0.04 * 255)
    expected = np.clip(np.rint(seen), 0, 255).astype(np.uint8)
    assert (through("bad", photo, [4, 2]) == expected).all()
    assert (through("cast=1/.62/.38,gain=.32,noise=.04", photo, [4, 2]) == expected).all()
    assert (through("gain=.32,cast=1/.62/.38,grey=0.1,noise=.04", photo, [4, 2]) != expected).any()
    # Behind another part they are computed alike, without rounding before.
    assert np.abs(through("contrast=1,bad", photo, [4, 2]).astype(int) - expected).max() == 0


@pytest.mark.parametrize("kind", NEUTRAL)
def test_a_part_at_its_neutral_value_is_the_identity(photo, kind):
    assert (through(NEUTRAL[kind], photo) == photo).all()
    assert (through("none", photo) == photo).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, 64, 128])
def test_a_severer_one_takes_a_picture_further_away(kind, side):
    """At the three sizes for which strengths are known, on the mean of some pictures."""
    pictures = [make_photo(side, side, k) for k in range(6)]
    distances = [
        np.mean(
            [
                np.abs(through(f"{kind}:{severity}", picture, k).astype(float) - picture).mean()
                for k, picture in enumerate(pictures)
            ]
        )
        for severity in SEVERITIES
    ]
    assert distances[0] > 0
    assert all(one < other for one, other in itertools.pairwise(distances)), distances


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (40, 3), (63, 200), (64, 65), (130, 129)])
def test_any_shape_stays_and_the_input_is_left_alone(kind, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = picture.copy()
    for severity in (1, 5):
        result = through(f"{kind}:{severity}", picture)
        assert result.shape == picture.shape
        assert result.dtype == np.uint8
        assert not np.shares_memory(result, picture)
    assert (picture == before).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_pictures_are_no_trouble(kind, level):
    assert through(f"{kind}:5", grey(33, 17, level)).shape == (33, 17, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_picture_and_another_gives_another(photo, kind):
    same = through(f"{kind}:4", photo, (1, 2))
    assert (through(f"{kind}:4", photo, (1, 2)) == same).all()
    assert (through(f"{kind}:4", photo, np.random.default_rng((1, 2))) == same).all()
    assert (through(f"{kind}:4", photo, (1, 3)) != same).any() == (kind in RANDOM)


@pytest.mark.parametrize("kind", ["noise", "shot"])
def test_a_stronger_noise_is_more_of_the_same(kind):
    one, twice = (through(f"{kind}={value}", grey(40, 40)).astype(float) - 128 for value in (0.05, 0.1))
    assert np.abs(twice - 2 * one).max() <= 1.5  # each is rounded


def test_more_dead_pixels_are_the_same_and_others():
    few, many = (through(f"dead={share}", grey(80, 80)) != 128 for share in (0.05, 0.2))
    assert (many | ~few).all()
    assert few.mean() == pytest.approx(0.05, abs=0.01)
    assert many.mean() == pytest.approx(0.2, abs=0.02)
    picture = through("dead=0.2", grey(80, 80))
    assert set(np.unique(picture)) == {0, 128, 255}
    assert (picture == picture[..., :1]).all()  # a pixel is dead in all channels
    assert (picture == 0).mean() == pytest.approx(0.1, abs=0.02)
    assert set(np.unique(through("dead=1", grey(8, 8)))) == {0, 255}


# What each part does, against an answer by hand or another program.


@pytest.mark.parametrize("side_from", [CIFAR_10_C, TINY_IMAGENET_C, IMAGENET_C])
def test_noise_has_the_stated_deviation(side_from):
    """At severities whose tails a mid-grey picture holds without being cut off."""
    side = max(side_from, 32)
    for severity, deviation in zip(SEVERITIES, KINDS["noise"].severities[side_from], strict=True):
        if deviation <= 0.15:
            added = through(f"noise:{severity}", grey(side, side)) / 255 - 128 / 255
            assert added.std() == pytest.approx(deviation, rel=0.06)
            assert abs(added.mean()) < 0.01
            # Each channel has noise of its own.
            assert abs(np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1]) < 0.1


def test_shot_noise_grows_with_the_root_of_the_light_as_photons_do():
    photons = 400
    for level in (40, 80, 160):
        seen = through(f"shot={photons**-0.5}", grey(100, 100, level)) / 255
        counted = np.random.default_rng(1).poisson(level / 255 * photons, (100, 100, 3)) / photons
        assert seen.std() == pytest.approx(counted.std(), rel=0.05)
        assert seen.mean() == pytest.approx(counted.mean(), rel=0.01)
    assert (through("shot=0.5", grey(9, 9, 0)) == 0).all()


def test_contrast_halves_the_spread_and_keeps_the_mean(photo):
    halved = through("contrast=0.5", photo)
    assert spread(halved) == pytest.approx(spread(photo) / 2, rel=0.02)
    assert halved.mean((0, 1)) == pytest.approx(photo.mean((0, 1)), abs=0.5)


def test_blur_is_scipys_gaussian(photo):
    for deviation in (0.3, 1.0, 6.0):
        seen = effects.blur(photo / 255, deviation, np.random.default_rng(0))
        expected = ndimage.gaussian_filter(photo / 255, (deviation, deviation, 0), mode="nearest", truncate=4)
        assert np.abs(seen - expected).max() < 1e-12


@pytest.mark.parametrize("text", ["blur:5", "defocus:5", "motion:5", "defocus=7.3", "motion=20/30", "resolution:5"])
def test_what_is_flat_stays_flat_up_to_the_edge(text):
    assert (through(text, grey(70, 50)) == 128).all()


def test_defocus_is_the_mean_over_a_disc(photo):
    """Against scipy's shifts, by points that are drawn at random in the disc."""
    values = photo[:40, :50] / 255
    rng = np.random.default_rng(5)
    for radius in (0.5, 2.5):
        angle, away = rng.uniform(0, 2 * np.pi, 4000), radius * np.sqrt(rng.uniform(0, 1, 4000))
        shifts = np.stack([away * np.sin(angle), away * np.cos(angle)], 1)
        expected = sum(ndimage.shift(values[..., 0], shift, order=1, mode="nearest") for shift in shifts) / 4000
        seen = effects.defocus(values, radius, rng)
        assert np.abs(seen[..., 0] - expected).max() < 0.02
        assert np.abs(seen - values).mean() > 4 * np.abs(seen[..., 0] - expected).mean()


def test_motion_of_three_pixels_is_their_mean():
    """Along a row, of a picture that is linear between pixels; then the same along a column."""
    row = np.zeros((9, 9, 3), np.uint8)
    row[:, 4] = 240
    seen = through("motion=2/0", row).astype(int)
    # The line reaches one pixel to each side; the mean of a point's linear neighbourhood over it: 1/4, 1/2, 1/4.
    assert np.abs(seen[3, 2:7, 0] - [0, 60, 120, 60, 0]).max() <= 1
    assert (seen == seen[:1]).all()
    upright = through("motion=2/90", row.transpose(1, 0, 2)).astype(int)
    assert np.abs(upright - seen.transpose(1, 0, 2)).max() <= 1
    point = np.zeros((21, 21, 3), np.uint8)
    point[10, 10] = 255
    slanted = through("motion=12/45", point)[..., 0]  # counter-clockwise: from bottom left to top right
    assert slanted[8, 12] > 0
    assert slanted[12, 8] > 0
    assert slanted[8, 8] == slanted[12, 12] == 0


def test_motion_takes_a_direction_of_its_own_for_each_picture(photo):
    part = Part("motion", (10.0,))
    angles = [part.draw(96, 128, np.random.default_rng(i))[1] for i in range(200)]
    assert min(angles) >= -45
    assert max(angles) <= 45
    assert np.std(angles) == pytest.approx(90 / 12**0.5, rel=0.1)


def test_resolution_repeats_means_of_blocks():
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    means = picture.reshape(4, 2, 6, 2, 3).mean((1, 3))
    expected = means.repeat(2, 0).repeat(2, 1)
    assert np.abs(through("resolution=0.5", picture) - expected).max() <= 0.5
    assert len(np.unique(through("resolution=0.001", picture)[..., 0])) == 1


def test_jpeg_is_that_of_pillow(photo, tmp_path):
    quality = KINDS["jpeg"].severities[TINY_IMAGENET_C][2]
    Image.fromarray(photo).save(tmp_path / "photo.jpg", quality=int(quality))
    expected = np.asarray(Image.open(tmp_path / "photo.jpg"))
    assert (through("jpeg:3", photo) == expected).all()
    assert (through(f"jpeg={quality}", photo) == expected).all()


def test_jpeg_behind_too_much_light_is_cut_off_and_not_wrapped():
    assert (through("gain=3,jpeg=90", grey(16, 16, 200)) == 255).all()


def test_fog_is_a_grey_cloud_that_keeps_the_brightest(photo):
    foggy = through("fog:3", photo).astype(float)
    assert foggy.max() <= photo.max()
    assert spread(foggy).mean() < spread(photo).mean()
    cloud = through("fog:3", grey(96, 128, 200))
    assert (cloud == cloud[..., :1]).all()
    assert cloud.std() > 5


def test_plasma_is_coarse_and_fills_its_range():
    cloud = effects.plasma(100, 2.0, np.random.default_rng(1))
    assert cloud.shape == (128, 128)
    assert cloud.min() == 0
    assert cloud.max() == 1
    near, far = (np.abs(cloud - np.roll(cloud, step, 1)).mean() for step in (1, 32))
    assert near < far / 3  # neighbours are alike, what is far apart is not
    rough = effects.plasma(100, 1.2, np.random.default_rng(1))
    assert np.abs(rough - np.roll(rough, 1, 1)).mean() > near  # a slower fall leaves more of the fine scales


def test_overexposure_of_a_stop_doubles_the_light_and_ends_at_white():
    light = (100 / 255) ** 2.2
    assert (through("overexposure=1", grey(2, 2, 100)) == round((2 * light) ** (1 / 2.2) * 255)).all()
    assert (through("overexposure=2.2", grey(2, 2, 100)) == 200).all()
    assert (through("overexposure=2.2,gain=0.5", grey(2, 2, 200)) == 128).all()  # what was cut off is lost


def test_grey_is_pillows(photo):
    seen = through("grey=1", photo)
    assert (seen == seen[..., :1]).all()
    assert np.abs(seen[..., 0].astype(int) - np.asarray(Image.fromarray(photo).convert("L"))).max() <= 1
    half = through("grey=0.5", photo).astype(int)
    assert np.abs(half - (seen.astype(int) + photo) / 2).max() <= 1


def test_a_vignette_leaves_the_middle_and_takes_its_share_of_the_corners():
    seen = through("vignette=0.6", grey(41, 61, 200))
    assert seen[20, 30, 0] == 200
    assert seen[0, 0, 0] == seen[-1, -1, 0] == 80
    edge = 20**2 / (20**2 + 30**2)  # of the squared distance
    assert seen[0, 30, 0] == round(200 * (1 - 0.6 * edge))


def test_gain_and_cast_are_factors_up_to_white():
    assert (through("gain=0.5,cast=1/0.5/0", grey(8, 8, 255)) == [128, 64, 0]).all()
    assert (through("gain=3", grey(2, 2, 100)) == 255).all()
    assert (through("gain=3,gain=0.5", grey(2, 2, 100)) == 150).all()  # nothing is cut off in between


# Compositions and severities.


def test_parts_follow_each_other_in_their_order():
    picture = np.zeros((9, 9, 3), np.uint8)
    picture[4, 4] = 255
    assert through("overexposure=2.2,blur=1", picture)[4, 4, 0] == through("blur=1", picture)[4, 4, 0]
    assert through("blur=1,overexposure=2.2", picture)[4, 4, 0] == pytest.approx(
        2 * through("blur=1", picture)[4, 4, 0], abs=1
    )


def test_nothing_is_rounded_between_parts():
    picture = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    assert (through("gain=0.01,grey=0,gain=10,gain=10", picture) == picture).all()
    assert (through("contrast=0.01,gain=1", picture) != picture).any()


def test_a_severity_means_what_the_size_of_the_picture_says():
    assert str(parse("noise:1,fog:5").at(32, 500)) == "noise=0.04,fog=1.5/1.75"
    assert str(parse("noise:5,gain:4").at(64, 64)) == "noise=0.18,gain=0.32"
    assert str(parse("noise:5").at(127, 128)) == "noise=0.18"
    assert str(parse("noise:5,fog:2..3").at(224, 128)) == "noise=0.38,fog:2..3"


@pytest.mark.parametrize("kind", KINDS)
def test_every_severity_is_a_value_that_may_be_written(photo, kind):
    """So what a severity does can be said in units, to the bit."""
    for severity in SEVERITIES:
        camera = parse(f"{kind}:{severity}")
        for size in (32, 64, 224):
            values = camera.at(size, size)
            assert ":" not in str(values)
            assert parse(str(values)) == values
    assert (camera.shoot(photo, 5) == camera.at(*photo.shape[:2]).shoot(photo, 5)).all()
