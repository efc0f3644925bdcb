"""`tvp camera` draws what it says, and says what it drew."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.bundles import random_prompt
from tvp.sdk.cli import cli
from tvp.sdk.errors import TvpError
from tvp.trainer.camera_cli import read_pictures
from tvp.trainer.cameras import KINDS, parse
from tvp.trainer.contact_sheet import EDGE, GAP, MARGIN, Block, draw_sheet
from tvp.trainer.data import Scenes
from tvp.trainer.lens import Lens, LensDesign
from tvp.trainer.prompt import Geometry, Prompt

SIDE = 64


def camera(*arguments):
    return CliRunner().invoke(cli, ["camera", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 64 px, in folders of two classes."""
    rng = np.random.default_rng(0)
    for name in ("cats/1.png", "dogs/2.png", "dogs/3.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "data" / name)
    (tmp_path / "data" / "notes.txt").write_text("no picture")
    return tmp_path / "data"


def cells(sheet, picture):
    """The places (x, y) at which a sheet holds this very picture."""
    sheet, picture = np.asarray(sheet), np.asarray(picture)
    height, width = picture.shape[:2]
    corners = np.argwhere((sheet[: 1 - height or None, : 1 - width or None] == picture[0, 0]).all(2))
    return [(x, y) for y, x in corners.tolist() if (sheet[y : y + height, x : x + width] == picture).all()]


def test_a_sheet_holds_each_picture_clean_and_through_each_camera(folder, tmp_path):
    done = camera(folder, "-c", "bad", "-c", "jpeg", "--side", SIDE, "-o", tmp_path / "sheet.png", "--seed", 4)
    assert done.exit_code == 0, done.output
    sheet = Image.open(tmp_path / "sheet.png")
    rows = []
    for i, picture in enumerate(read_pictures(str(folder), 3, 4)):
        bad = cells(sheet, parse("bad").shoot(picture, (4, i)))
        clean = cells(sheet, picture)
        assert [x for x, _ in clean] == [MARGIN, MARGIN]  # of the block of single cameras, and of JPEG's
        assert bad == [(MARGIN + SIDE + GAP, clean[0][1])]
        for severity in range(1, 6):
            found = cells(sheet, parse(f"jpeg:{severity}").shoot(picture, (4, i)))
            assert found == [(MARGIN + severity * (SIDE + GAP), clean[1][1])]
        rows.append(clean[0][1])
    assert np.diff(rows).tolist() == [SIDE + GAP] * 2
    lines = done.output.splitlines()
    assert lines[0].startswith(f"3 picture(s) of {folder}")
    assert [line.split()[0] for line in lines[1:]] == [
        "bad",
        *(f"jpeg:{severity}" for severity in range(1, 6)),
        "wrote",
    ]
    assert lines[1].endswith("gain=0.32,cast=1/0.62/0.38,noise=0.04")
    assert lines[2].endswith("jpeg=65")


def test_the_distance_that_is_said_is_the_mean_difference(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / "a.png")
    done = camera(tmp_path / "a.png", "-c", "gain=0.5", "-o", tmp_path / "sheet.png")
    assert done.output.splitlines()[1].split() == ["gain=0.5", "50.0"]


def darkening_lens():
    design = LensDesign("colour")
    return Prompt(None, Geometry(64, 64), lens=Lens(design, design.start() | {"matrix": torch.eye(3) / 2}))


@pytest.mark.parametrize("make", [random_prompt, darkening_lens])
def test_a_prompt_adds_a_row_behind_it(folder, tmp_path, make):
    prompt = make()
    prompt.save(tmp_path / "mine.safetensors")
    one = folder / "cats" / "1.png"
    side = prompt.geometry.canvas
    for option in ("--prompt", "--lens"):
        done = camera(
            one, "-c", "fog:2", option, tmp_path / "mine.safetensors", "--side", side, "-o", tmp_path / "s.png"
        )
        assert done.exit_code == 0, done.output
        sheet = Image.open(tmp_path / "s.png")
        clean = np.asarray(Image.open(one))
        seen = [clean, parse("fog:2").shoot(clean, (0, 0))]
        behind = prompt.on(prompt.geometry.show(seen)).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        (a, b) = (cells(sheet, (picture * 255).round().astype(np.uint8)) for picture in behind)
        assert len(a) == len(b) == 1
        assert a[0][1] == b[0][1]
        assert b[0][0] - a[0][0] == side + GAP


def test_without_a_camera_every_kind_is_shown(tmp_path):
    done = camera("scenes", "-o", tmp_path / "all.png")
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.output.splitlines()[1:-1:5]] == list(KINDS)
    with Image.open(tmp_path / "all.png") as sheet:
        width, height = sheet.size
    assert 0.8 < height / width < 1.25  # in two columns of blocks


def test_pictures_are_found_wherever_they_are(folder, tmp_path):
    one = np.asarray(Image.open(folder / "cats" / "1.png"))
    assert (read_pictures(str(folder / "cats" / "1.png"), 9, 0)[0] == one).all()
    assert len(read_pictures(str(folder), 9, 0)) == 3
    assert len(read_pictures(str(folder), 2, 0)) == 2
    assert (read_pictures("scenes", 2, 5)[1] == Scenes(2, 11)[1].picture).all()  # those that tests are about
    row = {"image": "dogs/2.png", "question": "What?", "answer": "a dog"}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    assert (read_pictures(str(folder / "rows.jsonl"), 3, 0)[0] == np.asarray(Image.open(folder / "dogs/2.png"))).all()


def test_the_list_names_every_kind_with_its_units():
    done = camera("--list")
    assert done.exit_code == 0
    for kind, found in KINDS.items():
        assert f"{kind}: {found.about}" in done.output
        assert all(value.name in done.output for value in found.values)
    assert "bad is gain=0.32,cast=1/0.62/0.38,noise=0.04" in done.output
    assert "from 128 px: 0.08  0.12  0.18  0.26  0.38" in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "Name a picture, a folder of pictures, or scenes"),
        (("scenes", "-c", "nose:3"), 2, "Did you mean noise"),
        (("scenes", "-c", "gain"), 0, "gain:5"),
        (("scenes", "-o", "gone/sheet.png"), 2, "there is no folder gone"),
        (("scenes", "--n", "0"), 2, "0 is not in the range"),
    ],
)
def test_wrong_usage_is_refused(arguments, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = camera(*arguments)
    assert done.exit_code == code, done.output
    assert says in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "There is no data source 'nowhere'"),
        (("nowhere.png",), "cannot be read"),
        (("scenes", "-p", "gone.safetensors"), "There is no prompt file gone.safetensors"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_written(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TvpError, match=says):
        camera(*arguments, "-c", "fog:3")
    assert not list(tmp_path.iterdir())


def test_pictures_of_any_shape_lie_whole_in_their_cell():
    wide, tall = np.full((10, 40, 3), 10, np.uint8), np.full((400, 100, 3), 200, np.uint8)
    sheet = np.asarray(draw_sheet([Block("", "", [("a", ""), ("b", "")], [("", [wide, tall])])], 40))
    assert (sheet == 10).all(2).sum() == 10 * 40
    assert (sheet == 200).all(2).sum() == 40 * 10


def test_long_captions_and_names_are_broken_and_white_pictures_have_an_edge():
    white = np.full((40, 40, 3), 255, np.uint8)
    text = "gain=0.32,cast=1/0.62/0.38,noise=0.04,aword" + "x" * 60
    sheet = np.asarray(draw_sheet([Block("title", "about", [(text, text)], [("name-" * 30, [white])])], 40))
    around = (sheet == np.array([int(EDGE[i : i + 2], 16) for i in (1, 3, 5)])).all(2)
    assert around.sum() == 4 * 41
    assert (sheet[:, 1 - MARGIN :] == 255).all()  # nothing runs out of the sheet
