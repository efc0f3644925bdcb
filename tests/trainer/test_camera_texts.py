"""Cameras are read and written as text, draw from ranges, and are taken up by every data set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tvp.sdk.errors import RequestError
from tvp.trainer import tasks
from tvp.trainer.cameras import (
    CORRUPTIONS,
    KINDS,
    NAMED,
    SEVERITIES,
    Camera,
    Part,
    parse,
    parse_columns,
    parse_corruption,
)
from tvp.trainer.data import Scenes, ThroughCamera


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("gain=0.32,cast=1/0.62/0.38,noise=0.04", None),
        ("bad", "gain=0.32,cast=1/0.62/0.38,noise=0.04"),
        ("jpeg:2,half-bad,jpeg:3", "jpeg:2,gain=0.5,cast=1/0.8/0.6,noise=0.02,jpeg:3"),
        ("half-bad", "gain=0.5,cast=1/0.8/0.6,noise=0.02"),
        (" bad , fog:4 ", "gain=0.32,cast=1/0.62/0.38,noise=0.04,fog:4"),
        ("none", None),
        ("none,jpeg:5", "jpeg:5"),
        ("fog:2..4", None),
        ("fog:3..3", "fog:3"),
        ("gain=0.2..1,noise=0..0.06", None),
        ("gain = .5 .. 1e0 ", "gain=0.5..1"),
        ("cast=1/0.5..0.9/0.1", None),
        ("motion=7", None),
        ("motion=7/-45..45", "motion=7"),
        ("motion=7/0", None),
        ("fog=1.5/2", "fog=1.5"),
        ("jpeg=30..90", None),
        ("blur=1e-5", "blur=1e-05"),
    ],
)
def test_a_camera_is_written_as_it_is_read(text, written):
    assert str(parse(text)) == (written or text)
    assert parse(str(parse(text))) == parse(text)
    assert len({parse(text), parse(str(parse(text)))}) == 1  # hashable


def numbers(low, high):
    number = st.floats(low, high)
    return number | st.tuples(number, number).map(lambda pair: (min(pair), max(pair)))


PARTS = st.sampled_from([kind for kind in KINDS if kind != "jpeg"]).flatmap(
    lambda kind: (
        st.tuples(*(numbers(value.low, value.high) for value in KINDS[kind].values)).map(lambda v: Part(kind, v))
        | st.integers(1, 5).map(lambda severity: Part(kind, severity=severity))
    )
)


@given(st.lists(PARTS, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_camera_survives_being_written(parts):
    camera = Camera(tuple(parts))
    assert parse(str(camera)) == camera


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has an empty part"),
        ("gain=0.5,", "has an empty part"),
        ("gain=0.5,,fog:1", "has an empty part"),
        ("=3", "has an empty part"),
        ("nose:3", r"There is no camera part 'nose'.*Did you mean noise"),
        ("bda", r"whole cameras are none, bad, half-bad.*Did you mean bad"),
        ("fog", r"fog needs a severity, such as fog:3, or values\. Write fog=\[amount.*optional\]"),
        ("fog:6", "The severity '6' of fog is unknown. It is a whole number from 1 to 5"),
        ("fog:0", "from 1 to 5"),
        ("fog:", "severity ''"),
        ("fog:3.5", "severity '3.5'"),
        ("fog:4..2", "severity '4..2'"),
        ("fog:1..2..3", "severity '1..2..3'"),
        ("bad:3", "bad is a whole camera, gain=0.32"),
        ("gain=dark", "gain has 'dark' as a value"),
        ("gain=", "gain has '' as a value"),
        ("gain=0.2..0.5..1", "gain has '0.2..0.5..1' as a value"),
        ("gain=1..0.5", "gain has the range 1..0.5; its lower end comes first"),
        ("gain=-1", "gain has -1 as its factor; it must lie between 0 and 16"),
        ("gain=nan", "it must lie between"),
        ("noise=0..2", "noise has 0..2 as its deviation, where white is 1; it must lie between 0 and 1"),
        ("cast=1/0.5", r"cast has 2 value\(s\)\. Write cast=\[factor of red\]"),
        ("gain=1/1", r"gain has 2 value\(s\)"),
        ("fog=1/2/3", r"fog has 3 value\(s\)"),
        ("jpeg=50.5", "jpeg has 50.5 as its quality, as in Pillow; it must be a whole number"),
        ("jpeg=0", "between 1 and 100"),
        ("resolution=0", "between 0.001 and 1"),
    ],
)
def test_what_is_no_camera_is_refused(text, says):
    with pytest.raises(RequestError, match=says):
        parse(text)


def test_a_part_is_checked_when_it_is_made():
    with pytest.raises(RequestError, match="Did you mean contrast"):
        Part("contrst", severity=1)
    with pytest.raises(RequestError, match="from 1 to 5"):
        Part("fog", severity=6)
    with pytest.raises(RequestError, match="needs a severity"):
        Part("fog")
    with pytest.raises(RequestError, match="needs a severity"):
        Part("fog", (1.0,), severity=2)


def test_the_named_cameras_are_those_of_the_tasks():
    assert NAMED["bad"] == tasks.BAD_CAMERA == tasks.get("bad-camera").camera


def test_a_kind_alone_is_five_cameras_where_columns_are_named():
    assert [str(camera) for camera in parse_columns(" fog ")] == [f"fog:{severity}" for severity in SEVERITIES]
    assert parse_columns("bad,fog:2") == [parse("bad,fog:2")]


def test_names_and_severities_of_corruptions_are_read():
    assert parse_corruption("fog:2") == [("fog", 2)]
    assert parse_corruption("motion") == [("motion", severity) for severity in SEVERITIES]
    assert parse_corruption("all:3") == [(name, 3) for name in ("noise", "blur", "contrast", "jpeg", "fog")]
    assert len(parse_corruption("all")) == 5 * len(CORRUPTIONS) == 25


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nose", r"There is no corruption 'nose'.*Did you mean noise"),
        ("", "There is no corruption ''"),
        ("bad", "There is no corruption 'bad'"),
        ("fog:6", "severity '6' of fog"),
        ("fog:0", "from 1 to 5"),
        ("fog:", "severity ''"),
        ("all:x", "severity 'x' of all"),
    ],
)
def test_wrong_names_and_severities_of_corruptions_are_refused(text, says):
    with pytest.raises(RequestError, match=says):
        parse_corruption(text)


def shoot(text, level, seed, size=(1, 1)):
    """What a camera makes of an even picture."""
    return parse(text).shoot(np.full((*size, 3), level, np.uint8), seed)


def test_each_picture_draws_from_a_range_evenly():
    seen = [shoot("gain=0.2..1", 200, (7, i))[0, 0, 0] / 200 for i in range(400)]
    assert min(seen) >= 0.195
    assert max(seen) <= 1
    assert np.mean(seen) == pytest.approx(0.6, abs=0.04)
    assert np.std(seen) == pytest.approx(0.8 / 12**0.5, abs=0.02)
    assert (shoot("gain=0.2..1", 128, (7, 3)) == shoot("gain=0.2..1", 128, (7, 3))).all()


def test_channels_of_a_range_are_drawn_each_for_itself():
    seen = np.array([shoot("cast=0..1/0..1/1", 255, i)[0, 0] for i in range(300)])
    assert (seen[:, 2] == 255).all()
    assert abs(np.corrcoef(seen[:, 0], seen[:, 1])[0, 1]) < 0.15


def test_a_range_of_severities_has_each_of_them():
    alone = {shoot(f"gain:{severity}", 200, 0)[0, 0, 0]: severity for severity in SEVERITIES}
    assert {alone[shoot("gain:2..4", 200, i)[0, 0, 0]] for i in range(40)} == {2, 3, 4}


def test_ranges_are_drawn_before_any_noise():
    """So the noise of a picture is the same, whatever the width of a range is."""
    first, second = (shoot(f"noise=0.05,gain={low}..1", 100, 3, (30, 30)) for low in (0.99, 0.999))
    assert np.abs(first.astype(int) - second).max() <= 2


def test_data_through_a_camera_asks_the_same_about_other_pictures():
    data = Scenes(3, seed=1)
    noisy = ThroughCamera(data, parse("noise:3"), seed=5)
    assert len(noisy) == 3
    for i in (2, 0, 2):  # in any order, any number of times
        assert noisy[i].questions == data[i].questions
        assert noisy[i].caption == data[i].caption
        assert (noisy[i].picture == parse("noise:3").shoot(data[i].picture, (5, i))).all()
        assert (noisy[i].clean == data[i].picture).all()
    added = [noisy[i].picture.astype(int) - data[i].picture for i in (0, 1)]
    assert (added[0] != added[1]).any()


def test_clean_is_what_was_there_before_the_first_camera():
    scenes = Scenes(2, seed=3, camera=tasks.BAD_CAMERA)
    assert Scenes(2, seed=3)[0].clean is None
    assert (scenes[1].clean == Scenes(2, seed=3)[1].picture).all()
    assert (ThroughCamera(scenes, parse("fog:3"))[1].clean == scenes[1].clean).all()


@pytest.mark.parametrize("source", ["scenes", "photos"])
def test_every_data_set_can_be_seen_through_a_camera(tmp_path, source):
    if source == "photos":
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                folder = tmp_path / split / name
                folder.mkdir(parents=True)
                Image.fromarray(np.arange(4800, dtype=np.uint8).reshape(40, 40, 3)).save(folder / "1.png")
        source, name = str(tmp_path), "custom"
    else:
        name = "scenes"
    task = tasks.get(name)
    clean = tasks.open_data(source, task, "test", 2, seed=0)[0]
    assert clean.clean is None
    foggy = tasks.open_data(source, tasks.through(task, "fog:4"), "test", 2, seed=0)[0]
    assert (foggy.clean == clean.picture).all()
    assert (foggy.picture != clean.picture).any()


def test_a_tasks_own_camera_is_replaced_and_none_takes_it_away():
    task = tasks.get("bad-camera")
    assert tasks.through(task, "") is task
    assert tasks.through(task, "none").camera is None
    assert tasks.through(task, "fog:4").camera == parse("fog:4")
    assert tasks.through(tasks.get("scenes"), "bad").camera == task.camera
    with pytest.raises(RequestError, match="Did you mean fog"):
        tasks.through(task, "frog:4")


@pytest.mark.parametrize("kind", KINDS)
def test_the_questions_about_a_scene_do_not_depend_on_the_severity(kind):
    weak, strong = (Scenes(6, seed=11, camera=parse(f"{kind}:{severity}")) for severity in (1, 5))
    assert [weak[i].questions for i in range(6)] == [strong[i].questions for i in range(6)]
