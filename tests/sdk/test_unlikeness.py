"""How unlike a picture is: moments worked out by hand, in every kind of bundle, in old ones and in damaged ones."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundles import make_bundle, seal
from tests.sdk.reference_client import Client
from tests.sdk.test_cli import tvp
from tvp import sdk
from tvp.sdk.errors import BundleError, RequestError
from tvp.sdk.formats.moments import FILE, FLOOR, LEAST, Moments, describe, read_moments, root_mean_square

GOLDENS = Path(__file__).parents[1] / "goldens" / "format-2"
QUESTION = "How many objects are there?"


@pytest.fixture(scope="module", params=["llava_next", "instructblip-t5", "clip", "siglip"])
def old(request, tmp_path_factory):
    """A bundle of before of each kind: causal, seq2seq behind a connector, and contrastive."""
    folder = tmp_path_factory.mktemp("old")
    if not (file := GOLDENS / f"{request.param}.tvp").exists():
        return without_moments(make_bundle(request.param, folder), folder / "without")
    zipfile.ZipFile(file).extractall(folder)
    return folder


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def without_moments(bundle, folder):
    return with_moments(bundle, folder, None, n=0)


def with_moments(bundle, folder, data, n=64, listed=True):
    """A copy that holds these bytes as its moments; None for no file."""
    shutil.copytree(bundle, folder, copy_function=os.link)
    file = folder / "manifest.json"
    content = json.loads(file.read_bytes())
    file.unlink()  # it is a link
    (folder / FILE).unlink(missing_ok=True)
    content["files"].pop(FILE, None)
    if data is not None:
        (folder / FILE).write_bytes(data)
        if listed:
            content["files"][FILE] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    file.write_bytes(seal({**content, "n_moment_pictures": n}))
    return folder


def numbers_of(folder, picture):
    """A picture's numbers, by the client that is written from the page alone."""
    client = Client(folder)
    (seen,) = client.run("vision_encoder", **client.run("preprocess", image=np.asarray(picture))).values()
    seen = seen.reshape(-1, seen.shape[-1]).astype(np.float64)
    return seen[0] if len(seen) == 1 else np.concatenate([seen.mean(0), seen.std(0)])


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (40, 52, 3), np.uint8)


# The statistic.


def test_a_picture_is_described_by_mean_and_spread_of_each_channel():
    tokens = np.array([[1, 2, 5], [3, 6, 5]], np.float32)
    assert describe(tokens).tolist() == [2, 4, 5, 1, 2, 0]
    assert describe(tokens[:1]).tolist() == [1, 2, 5]  # one token has no spread
    assert describe(tokens.astype(np.float16)).dtype == np.float32


def test_unlikeness_by_hand():
    moments = Moments(np.float32([1, 4, 5, 2, 2, 3]), np.float32([0.5, 1, 9, 1, 0.25, 1]))
    tokens = np.array([[1, 2, 5], [3, 6, 5]], np.float32)
    # (2-1)/.5 = 2, 0, 0, (1-2)/1 = -1, 0, (0-3)/1 = -3: squares 4 + 1 + 9 = 14, over 6 numbers
    assert moments.unlikeness(tokens) == pytest.approx((14 / 6) ** 0.5)
    with pytest.raises(BundleError, match="about 6 numbers of a picture, and the vision encoder gives 3"):
        moments.unlikeness(tokens[:1])


def slowly(rows):
    """Mean and scaled spread, each picture left out in its turn."""
    least = FLOOR * np.sqrt((rows.std(0, ddof=1) ** 2).mean())
    far = []
    for i, row in enumerate(rows):
        others = np.delete(rows, i, 0)
        z = (row - others.mean(0)) / np.maximum(others.std(0, ddof=1), least)
        far.append(np.sqrt((z**2).mean()))
    return rows.mean(0), np.maximum(rows.std(0, ddof=1), least) * np.mean(far)


@pytest.mark.parametrize("n", [LEAST, 9, 40])
def test_moments_are_those_of_leaving_each_picture_out(n):
    rng = np.random.default_rng(n)
    rows = rng.standard_t(3, (n, 30)) * rng.uniform(0.001, 5, 30) + rng.normal(0, 9, 30)
    rows[:, 7] = 2.5  # never moves
    mean, spread = slowly(rows)
    moments = Moments.of(rows)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(moments.spread, spread, rtol=1e-5)


@pytest.mark.parametrize("width", [4, 64, 1500])
@pytest.mark.parametrize("n", [12, 64])
def test_it_is_about_one_for_pictures_like_those_whatever_the_width_and_their_number(n, width):
    """Channels go together, as features do, and tails are heavy; single draws vary, so twenty are averaged."""
    ones, moved = [], []
    for seed in range(20):
        rng = np.random.default_rng([n, width, seed])
        mix = rng.normal(size=(6, width))
        rows = rng.standard_t(4, (n + 200, 6)) @ mix + 0.3 * rng.standard_t(4, (n + 200, width))
        moments = Moments.of(rows[:n])
        ones.append(np.mean([moments.unlikeness(row[None]) for row in rows[n:]]))
        moved.append(np.mean([moments.unlikeness(row[None] + 3 * rows.std(0)) for row in rows[n:]]))
    assert np.mean(ones) == pytest.approx(1, abs=0.06)
    assert np.mean(moved) > 2.5


def test_a_channel_that_never_moved_does_not_drown_the_others():
    rows = np.random.default_rng(0).normal(size=(32, 50))
    rows[:, 3] = 1.0
    moments = Moments.of(rows)
    strange = np.zeros((1, 50))
    strange[0, 3] = 1.0 + 1e-4  # rounding on another device
    assert moments.unlikeness(strange) < 1


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((LEAST - 1, 4)), "7 pictures; at least 8"),
        (np.ones((9, 4)), "alike"),
        (np.full((9, 4), np.nan), "not finite"),
    ],
)
def test_pictures_that_say_nothing(rows, says):
    with pytest.raises(ValueError, match=says):
        Moments.of(rows)


# Bundles.


def test_a_bundle_of_before_does_not_know(old):
    with sdk.load(old, providers="cpu") as task:
        assert task.see(pixels(0)).unlikeness is None
        assert task.ask(pixels(0), QUESTION, max_new_tokens=2).unlikeness is None
    said = tvp("ask", old, old / "golden" / "0.png", QUESTION, "--json")
    assert json.loads(said.stdout)["unlikeness"] is None
    assert "unlikeness    (not known)" in tvp("inspect", old).stdout


def test_planted_moments_of_every_kind(old, tmp_path, caplog):
    """Of a picture that is the mean itself, and of one that is planted a known way off."""
    golden = old / "golden" / "0.png"
    mean = numbers_of(old, Image.open(golden).convert("RGB"))
    other = numbers_of(old, pixels(1))
    spread = np.abs(other - mean).clip(1e-3) / 2  # each number of the other one is 2 spreads off
    folder = with_moments(old, tmp_path / "new", npy(np.stack([mean, spread]).astype("<f4")))
    kept = np.abs(other - mean) > 1e-3
    expected = np.sqrt(np.mean(np.where(kept, 2.0, 2 * np.abs(other - mean) / 1e-3) ** 2))
    with sdk.load(folder, providers="cpu") as task, caplog.at_level(logging.INFO, "tvp.sdk"):
        view = task.see(pixels(1))
        assert view.unlikeness == pytest.approx(expected, abs=2e-3)
        assert f"unlikeness {view.unlikeness:.2f}" in caplog.text
        assert task.see(golden).unlikeness == pytest.approx(0, abs=2e-3)
        assert view.ask(QUESTION, max_new_tokens=2).unlikeness == view.unlikeness
        many = task.ask_many([(golden, QUESTION), (pixels(1), QUESTION)], max_new_tokens=2)
        assert [answer.unlikeness for answer in many] == pytest.approx([0, expected], abs=2e-3)
    assert Client(folder).unlikeness(golden) == pytest.approx(0, abs=2e-3)
    said = tvp("ask", folder, golden, QUESTION, "--json")
    assert json.loads(said.stdout)["unlikeness"] == pytest.approx(0, abs=2e-3)
    assert "unlikeness    by 64 pictures of the export" in tvp("inspect", folder).stdout


def test_a_fresh_bundle_says_what_the_client_says(one_bundle):
    client = Client(one_bundle)
    with sdk.load(one_bundle, providers="cpu") as task:
        assert task.manifest.n_moment_pictures == 64
        for name in ("0.png", "1.png"):
            picture = one_bundle / "golden" / name
            assert task.see(picture).unlikeness == pytest.approx(client.unlikeness(picture), rel=1e-4)


# Several pictures together.


def test_unlikeness_of_several_pictures_is_that_of_their_mean(one_bundle):
    mean, spread = read_moments(one_bundle).mean, read_moments(one_bundle).spread
    pictures = [pixels(seed) for seed in range(5)]
    rows = np.stack([numbers_of(one_bundle, picture) for picture in pictures])
    expected = np.sqrt((((rows.mean(0) - mean) / spread) ** 2).mean())
    with sdk.load(one_bundle, providers="cpu") as task:
        views = [task.see(picture) for picture in pictures]
        assert sdk.unlikeness(views) == pytest.approx(expected, rel=1e-4)
        assert sdk.unlikeness(views[::-1]) == pytest.approx(expected, rel=1e-4)
        assert sdk.unlikeness(views[2:3]) == pytest.approx(views[2].unlikeness, rel=1e-6)
        assert sdk.unlikeness(views) < np.mean([view.unlikeness for view in views])
    assert sdk.unlikeness(views) == pytest.approx(expected, rel=1e-4)  # no model runs for it


def test_a_change_that_no_picture_shows_is_seen_in_the_mean():
    """A shift of half a spread in each number: single pictures look as usual, and ten together do not."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(64, 300))
    moments = Moments.of(rows)

    def together(shift):
        return root_mean_square(np.mean([moments.away(rng.normal(size=(1, 300)) + shift) for _ in range(10)], 0))

    assert together(0) < 0.4 < 0.55 < together(0.5)
    assert moments.unlikeness(rng.normal(size=(1, 300)) + 0.5) < 1.3


def test_views_that_have_no_unlikeness_together(one_bundle, old):
    with sdk.load(one_bundle, providers="cpu") as task, sdk.load(one_bundle, providers="cpu") as again:
        with pytest.raises(RequestError, match="There are no views"):
            sdk.unlikeness([])
        with pytest.raises(RequestError, match="different tasks"):
            sdk.unlikeness([task.see(pixels(0)), again.see(pixels(0))])
        with sdk.load(old, providers="cpu") as without:
            with pytest.raises(RequestError, match="different tasks"):
                sdk.unlikeness([task.see(pixels(0)), without.see(pixels(0))])
            with pytest.raises(RequestError, match="says which features are usual"):
                sdk.unlikeness([without.see(pixels(0))] * 2)


GOOD = np.ones((2, 6), "<f4")


def huge() -> bytes:
    """A head that promises more than any memory has."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (2, 2**40)})
    return stream.getvalue() + bytes(48)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "damaged"),
        (b"no array", "damaged"),
        (npy(GOOD)[:-1], "must be float32"),
        (npy(GOOD) + b"x", "must be float32"),
        (huge(), "must be float32"),
        (npy(GOOD.astype("<f8")), "must be float32"),
        (npy(GOOD.astype(">f4")), "must be float32"),
        (npy(np.asfortranarray(GOOD)), "must be float32"),
        (npy(np.ones((3, 6), "<f4")), "must be float32"),
        (npy(np.ones((2, 0), "<f4")), "must be float32"),
        (npy(np.ones((2, 6, 1), "<f4")), "must be float32"),
        (npy(np.array([[None] * 6] * 2)), "must be float32"),
        (npy(np.where(np.eye(2, 6), np.nan, GOOD).astype("<f4")), "finite"),
        (npy(np.stack([GOOD[0], 0 * GOOD[0]])), "above 0"),
        (npy(np.stack([GOOD[0], -GOOD[0]])), "above 0"),
        (npy(np.ones((2, 2**18 + 2**12), "<f4")), "too large"),
    ],
)
def test_damaged_moments_are_refused(tmp_path, data, says):
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(BundleError, match=says):
        read_moments(tmp_path)


def test_moments_go_through_a_file(tmp_path):
    moments = Moments.of(np.random.default_rng(0).normal(size=(20, 33)))
    moments.write(tmp_path)
    read = read_moments(tmp_path)
    assert np.array_equal(read.mean, moments.mean)
    assert np.array_equal(read.spread, moments.spread)
    (tmp_path / FILE).unlink()
    with pytest.raises(BundleError, match="missing"):
        read_moments(tmp_path)


def test_hostile_bundles_are_refused(one_bundle, tmp_path):
    for name, arguments, says in (
        ("damaged", {"data": b"no array"}, "damaged"),
        ("unlisted", {"data": npy(GOOD), "listed": False}, "does not list moments.npy"),
        ("gone", {"data": None}, "does not list moments.npy"),
        ("negative", {"data": npy(GOOD), "n": -1}, "n_moment_pictures is -1"),
        ("text", {"data": npy(GOOD), "n": "64"}, "n_moment_pictures must be of type int"),
        ("flag", {"data": npy(GOOD), "n": True}, "n_moment_pictures must be of type int"),
    ):
        folder = with_moments(one_bundle, tmp_path / name, **arguments)
        with pytest.raises(BundleError, match=says):
            sdk.load(folder, providers="cpu")
    folder = with_moments(one_bundle, tmp_path / "other", npy(GOOD))  # of another width than the encoder's
    with sdk.load(folder, providers="cpu") as task, pytest.raises(BundleError, match="about 6 numbers"):
        task.see(pixels(0))
    assert with_moments(one_bundle, tmp_path / "ignored", b"x", n=0, listed=False)
    with sdk.load(tmp_path / "ignored", providers="cpu") as task:
        assert task.see(pixels(0)).unlikeness is None
