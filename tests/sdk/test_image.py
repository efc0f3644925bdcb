"""Pictures of every kind: the right pixels or an ImageError."""

from __future__ import annotations

import io
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tvp.sdk import read_image
from tvp.sdk.errors import ImageError, RequestError


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_every_source_gives_the_same_pixels(picture, tmp_path):
    image = Image.fromarray(picture)
    data = encode(image)
    (tmp_path / "a.png").write_bytes(data)
    for source in (picture, image, data, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert (read_image(source) == picture).all()


def test_exif_orientation_is_applied(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    turned = read_image(encode(Image.fromarray(picture), exif=exif))
    assert (turned == np.rot90(picture, -1)).all()


def test_modes_are_converted():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.repeat(grey[:, :, None], 3, 2)
    assert (read_image(encode(Image.fromarray(grey))) == expected).all()
    assert (read_image(encode(Image.fromarray(grey.astype(np.uint16) * 257))) == expected).all()
    assert (read_image(Image.fromarray(grey.astype(np.float32) / 255)) == expected).all()
    palette = Image.fromarray(np.full((4, 4, 3), [10, 200, 30], np.uint8)).quantize(4)
    assert (read_image(encode(palette)) == [10, 200, 30]).all()
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert np.abs(read_image(encode(cmyk, "JPEG")).astype(int) - [255, 0, 0]).max() < 8


def test_alpha_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    half = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    assert (read_image(encode(clear)) == 255).all()
    assert np.abs(read_image(encode(half)).astype(int) - [227, 177, 152]).max() <= 1


def test_a_black_drawing_without_a_background_is_seen():
    drawing = np.zeros((9, 9, 4), np.uint8)
    drawing[4, :, 3] = 255  # a line
    read = read_image(encode(Image.fromarray(drawing)))
    assert (read[4] == 0).all()
    assert (np.delete(read, 4, 0) == 255).all()


@pytest.mark.parametrize("background", ["#0a141e", (10, 20, 30)])
def test_another_background(background):
    assert (read_image(Image.new("RGBA", (4, 4)), background=background) == [10, 20, 30]).all()
    grey = Image.fromarray(np.full((4, 4), 300, np.uint16))
    grey.info["transparency"] = 300
    assert (read_image(grey, background=background) == [10, 20, 30]).all()


@pytest.mark.parametrize("background", ["whyte", (1, 2), (1, 2, 256), (1, 2, 3.0), "#ffffff00", None, 3])
def test_a_background_that_is_no_colour(background):
    with pytest.raises(RequestError, match="must be a colour"):
        read_image(np.zeros((4, 4, 3), np.uint8), background=background)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read_image(data) == [255, 0, 0]).all()


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"text\.jpg is not a picture"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(ImageError, match=r"empty\.png is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="cannot be read: it is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image("a\0b")
    with pytest.raises(ImageError, match="int is not a picture"):
        read_image(3)


@pytest.mark.parametrize("size", [(1, 1_000_000), (30_000, 100)])
def test_a_strip_is_refused_before_it_is_enlarged(size):
    with pytest.raises(ImageError, match="at most 100 times the other"):
        read_image(encode(Image.new("1", size)))


def test_formats_that_start_other_programs_are_not_opened():
    with pytest.raises(ImageError, match="not a picture in a known format"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


def test_dark_16_bit_pictures_stay_dark():
    dark = Image.fromarray(np.full((4, 4), 255, np.uint16))
    assert read_image(encode(dark)).max() == 1


def test_a_bomb_is_refused_before_it_is_decoded():
    bomb = encode(Image.new("1", (30_000, 30_000)))
    assert len(bomb) < 2_000_000
    with pytest.raises(ImageError, match=r"30000 x 30000 pixels|too large"):
        read_image(bomb)


def test_a_programs_warnings_are_left_alone_by_threads(picture):
    """What catch_warnings saves and puts back is the whole process's."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    before = warnings.filters[:]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: read_image(data.getvalue()), range(200)))
    assert warnings.filters == before


@pytest.mark.parametrize("density", [None, (72, 72)])
def test_metadata_that_cannot_be_read_does_not_cost_the_picture(picture, density):
    whole = encode(Image.fromarray(picture), "JPEG", quality=95, **({"dpi": density} if density else {}))
    block = b"Exif\0\0this is no TIFF header"
    broken = whole[:20] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + whole[20:]
    assert np.array_equal(read_image(broken), read_image(whole))


@pytest.mark.parametrize(("largest", "level", "expected"), [(65535, 200, 1), (65535, 65535, 255), (1000, 500, 128)])
def test_a_deep_pgm_is_as_bright_as_it_says(largest, level, expected):
    data = b"P5 4 4 %d\n" % largest + level.to_bytes(2, "big") * 16
    assert set(read_image(data).ravel().tolist()) == {expected}


def test_a_file_that_would_be_read_value_by_value_is_refused():
    began = time.perf_counter()
    with pytest.raises(ImageError, match="value by value"):
        read_image(b"P6 3000 3000 254\n" + bytes(27_000_000))
    assert time.perf_counter() - began < 1
    assert read_image(b"P6 3000 3000 255\n" + bytes(27_000_000)).shape == (3000, 3000, 3)
    assert read_image(b"P6 2 2 254\n" + bytes([254] * 12)).min() == 255
