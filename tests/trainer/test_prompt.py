"""The prompt: its geometry, its pixels and its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tvp.sdk import read_image
from tvp.sdk.errors import DataError, RequestError
from tvp.trainer.families.pixels import PixelFormat, resize_matrix, to_pixels
from tvp.trainer.prompt import Geometry, Prompt, fitted_size


def random_prompt(pixel_range="free", canvas=20, inner=12):
    geometry = Geometry(canvas, inner)
    frame = torch.rand(3, canvas, canvas, generator=torch.Generator().manual_seed(0)) * geometry.mask()
    return Prompt(frame if pixel_range == "image" else frame * 4 - 2 * geometry.mask(), geometry, pixel_range)


def test_the_published_geometry_has_69840_trainable_values():
    assert Geometry().edge == 30
    assert int(Geometry().mask().sum()) * 3 == 69_840


def test_the_picture_is_untouched_and_the_frame_added():
    prompt = random_prompt()
    pictures = torch.randint(0, 256, (2, 12, 12, 3), dtype=torch.uint8)
    prompted = prompt.on(prompt.geometry.place(pictures))
    assert torch.equal(prompted[:, :, 4:16, 4:16], pictures.permute(0, 3, 1, 2) / 255)
    assert torch.equal(prompted[0] * prompt.geometry.mask(), prompt.frame)


def test_over_the_picture_a_free_frame_is_added():
    prompt = random_prompt()
    prompt.geometry = Geometry(20, 12, placement="over")
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    assert (prompt.geometry.shrink(picture) == picture).all()  # not shrunk
    canvas = prompt.geometry.place(torch.from_numpy(picture)[None])
    torch.testing.assert_close(prompt.on(canvas)[0], canvas[0] + prompt.frame)


def test_over_the_picture_a_frame_that_is_a_picture_is_merged_in_whole_levels():
    geometry = Geometry(20, 12, placement="over")
    canvas = geometry.place(torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 20, 20, 3))
    assert torch.equal(Prompt.start(geometry, "image").on(canvas), canvas)  # it starts by changing nothing
    prompt = Prompt(random_prompt("image").frame, geometry, "image")
    png = np.asarray(prompt.picture()).astype(int)
    assert (png[4:16, 4:16] == 128).all()
    levels = (canvas.permute(0, 2, 3, 1) * 255).round().int().numpy()
    merged = np.clip(levels + png - 128, 0, 255)  # by hand, of the PNG alone
    seen = prompt.on(canvas).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(seen - merged).max() < 1e-3
    assert {0, 255} <= set(merged.ravel())


def test_a_prompt_of_the_first_format_still_loads(tmp_path):
    prompt = random_prompt()
    geometry = {"canvas": 20, "inner": 12, "fit": "crop"}
    about = {"format": "1", "geometry": json.dumps(geometry), "pixel_range": "free", "facts": "{}"}
    save_file({"frame": prompt.frame}, tmp_path / "old.safetensors", about)
    assert torch.equal(Prompt.load(tmp_path / "old.safetensors").frame, prompt.frame)
    assert Prompt.load(tmp_path / "old.safetensors").geometry == prompt.geometry


def test_values_inside_the_picture_are_ignored():
    prompt = random_prompt()
    dirty = Prompt(prompt.frame + 1 - prompt.geometry.mask(), prompt.geometry)
    canvas = torch.zeros(1, 3, 20, 20)
    assert torch.equal(dirty.on(canvas), prompt.on(canvas))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 224))
@settings(deadline=None)
def test_fitted_sizes_cover_or_fit_the_square(width, height, side):
    cropped, padded = fitted_size(width, height, side, "crop"), fitted_size(width, height, side, "pad")
    assert min(cropped) == side
    assert max(padded) == side
    assert min(padded) >= 1


def test_crop_keeps_the_middle_and_pad_keeps_everything():
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, :10] = [255, 0, 0]
    picture[:, 10:20] = [0, 255, 0]
    picture[:, 20:] = [0, 0, 255]
    assert (Geometry(10, 10, "crop").shrink(picture) == [0, 255, 0]).all()
    padded = Geometry(30, 30, "pad").shrink(picture)
    assert (padded[:10] == 0).all()
    assert (padded[20:] == 0).all()
    assert (padded[10:20] == picture).all()


def test_an_unchanged_size_changes_no_pixel():
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    assert (Geometry(20, 12).shrink(picture) == picture).all()


def test_impossible_geometries_are_refused():
    for canvas, inner in ((10, 12), (10, 0), (10, 7)):
        with pytest.raises(RequestError, match="inner size"):
            Geometry(canvas, inner)
    with pytest.raises(RequestError, match="crop"):
        Geometry(10, 8, "stretch")  # type: ignore[arg-type]


def test_a_saved_prompt_comes_back(tmp_path):
    prompt = random_prompt()
    prompt.facts = {"task": "count", "sources": ["a"]}
    prompt.save(tmp_path / "prompt.safetensors")
    loaded = Prompt.load(tmp_path / "prompt.safetensors")
    assert torch.equal(loaded.frame, prompt.frame)
    assert (loaded.geometry, loaded.pixel_range, loaded.facts) == (prompt.geometry, "free", prompt.facts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompt.png", "prompt.safetensors"]


def test_in_the_image_range_the_png_is_the_prompt(tmp_path):
    prompt = random_prompt("image")
    prompt.save(tmp_path / "prompt.safetensors")
    png = torch.from_numpy(np.array(Image.open(tmp_path / "prompt.png"))).permute(2, 0, 1) / 255
    assert torch.equal(prompt.on(torch.zeros(1, 3, 20, 20))[0], png)


def test_the_image_range_passes_its_gradient_through_the_rounding():
    prompt = random_prompt("image")
    prompt.frame.requires_grad_(True)
    prompt.on(torch.zeros(1, 3, 20, 20)).sum().backward()
    assert torch.equal(prompt.frame.grad, prompt.geometry.mask().expand(3, -1, -1))


def test_damaged_missing_and_newer_files_are_refused(tmp_path):
    file = tmp_path / "prompt.safetensors"
    with pytest.raises(DataError, match="no prompt file"):
        Prompt.load(file)
    prompt = random_prompt()
    prompt.save(file)
    whole = file.read_bytes()
    for n in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:n])
        with pytest.raises(DataError, match="not an intact prompt"):
            Prompt.load(file)
    geometry = {"canvas": 20, "inner": 12, "fit": "crop", "layout": "around"}
    about = {"format": "4", "geometry": json.dumps(geometry), "pixel_range": "free", "facts": "{}"}
    save_file({"frame": prompt.frame}, file, about)
    with pytest.raises(DataError, match=r"format 4.*Update"):
        Prompt.load(file)
    save_file({"frame": torch.full((3, 20, 20), float("nan"))}, file, {**about, "format": "1"})
    with pytest.raises(DataError, match="finite"):
        Prompt.load(file)


@pytest.mark.parametrize("level", [0.0, 1.0, 0.5])
def test_the_gradient_is_whole_where_a_value_is_a_bound(level):
    """As all of a zero frame is, at black: a resized canvas is clipped there."""
    format = PixelFormat(48, (0.5, 0.5, 0.5), (0.5, 0.25, 0.125))
    canvas = torch.full((1, 3, 32, 32), level, dtype=torch.float64, requires_grad=True)
    to_pixels(canvas, format).sum().backward()
    weight = resize_matrix(32, 48, "bicubic").sum(0)
    expected = torch.outer(weight, weight) / torch.tensor(format.std).view(3, 1, 1)
    assert torch.allclose(canvas.grad[0], expected, atol=1e-12)


def test_the_file_keeps_the_names_of_its_format(tmp_path):
    """What is called `placement` in Python is `layout` in files of format 2; files of format 1 have none."""
    file = tmp_path / "prompt.safetensors"
    Prompt.start(Geometry(20, 12, "pad", "over"), "free").save(file)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert about["format"] == "2"
    assert about["geometry"] == '{"canvas": 20, "inner": 12, "fit": "pad", "layout": "over"}'
    assert Prompt.load(file).geometry == Geometry(20, 12, "pad", "over")
    about |= {"format": "1", "geometry": '{"canvas": 20, "inner": 12, "fit": "crop"}'}
    save_file({"frame": torch.zeros(3, 20, 20)}, file, about)
    assert Prompt.load(file).geometry == Geometry(20, 12, "crop", "around")


def test_a_transparent_picture_is_seen_as_the_sdk_sees_it():
    """Its hidden colour is nobody's: what PIL's own conversion to RGB would show."""
    drawing = Image.new("RGBA", (20, 20), (9, 9, 9, 0))
    drawing.paste((0, 0, 0, 255), (5, 5, 15, 15))
    seen = Geometry(20, 20).shrink(drawing)
    assert (seen == read_image(drawing)).all()
    assert seen[0, 0].tolist() == [255] * 3
    assert seen[10, 10].tolist() == [0] * 3
