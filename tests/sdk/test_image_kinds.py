"""Pictures of every kind that there is: the right pixels.

What is right is computed here, from arrays, and never with the reader's own conversions.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from tests.pictures import GREY, GREY_ALPHA, PALETTE, PICTURE, RGB, RGB_ALPHA, SMOOTH, encode, frames, png
from tvp.sdk import read_image
from tvp.sdk.errors import ImageError

CHANNELS = {GREY: 1, RGB: 3, GREY_ALPHA: 2, RGB_ALPHA: 4}


def on_white(values, alpha):
    return values * (alpha / 255) + 255 - alpha


@pytest.mark.parametrize("colour", CHANNELS)
@pytest.mark.parametrize("depth", [8, 16])
def test_every_depth_and_channel_of_png(colour, depth):
    """Greys of 16 bits are rounded to 8, other channels keep their upper 8; alpha is laid on white."""
    stored = np.random.default_rng(1).integers(0, 2**depth, (9, 13, CHANNELS[colour]))
    rows = [row.astype(">u2" if depth == 16 else "u1").tobytes() for row in stored]
    read = read_image(png(13, 9, depth, colour, rows)).astype(float)
    levels = np.rint(stored / 257) if colour == GREY and depth == 16 else stored >> (depth - 8)
    if colour in (GREY_ALPHA, RGB_ALPHA):
        assert np.abs(read - on_white(levels[..., :-1], levels[..., -1:])).max() <= 1
    else:
        assert (read == levels).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_greys_of_few_bits(depth):
    values = np.arange(32).reshape(4, 8) % 2**depth
    bits = "".join(f"{value:0{depth}b}" for value in values.ravel())
    packed = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    rows = [bytes(packed[i : i + depth]) for i in range(0, len(packed), depth)]
    expected = values * 255 // (2**depth - 1)
    assert (read_image(png(8, 4, depth, GREY, rows)) == expected[:, :, None]).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_with_transparency(depth):
    rng = np.random.default_rng(2)
    colours, alphas = rng.integers(0, 256, (2**depth, 3), np.uint8), rng.integers(0, 256, (2**depth, 1), np.uint8)
    values = rng.integers(0, 2**depth, (6, 16))
    bits = "".join(f"{value:0{depth}b}" for value in values.ravel())
    packed = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    rows = [packed[i : i + 2 * depth] for i in range(0, len(packed), 2 * depth)]
    plain = png(16, 6, depth, PALETTE, rows, (b"PLTE", colours.tobytes()))
    assert (read_image(plain) == colours[values]).all()
    clear = png(16, 6, depth, PALETTE, rows, (b"PLTE", colours.tobytes()), (b"tRNS", alphas.tobytes()))
    assert np.abs(read_image(clear) - on_white(colours[values], alphas[values])).max() <= 1


@pytest.mark.parametrize("colour", [GREY, RGB])
@pytest.mark.parametrize("depth", [8, 16])
def test_one_colour_that_is_transparent(colour, depth):
    """PNG's other transparency, without an alpha channel."""
    n, kind = CHANNELS[colour], ">u2" if depth == 16 else "u1"
    stored = np.full((4, 4, n), 200 * (257 if depth == 16 else 1))
    stored[1, 2] = 100 * (257 if depth == 16 else 1)
    key = stored[1, 2].astype(">u2").tobytes()
    read = read_image(png(4, 4, depth, colour, [row.astype(kind).tobytes() for row in stored], (b"tRNS", key)))
    expected = np.full((4, 4, 3), 200)
    expected[1, 2] = 255
    assert (read == expected).all()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_greys_of_tiff(order):
    values = np.random.default_rng(3).integers(0, 2**16, (20, 30)).astype(order)
    for read in (read_image(encode(Image.fromarray(values), "TIFF")), read_image(Image.fromarray(values))):
        assert np.abs(read - values.astype(float)[:, :, None] / 257).max() <= 0.5


def test_floats_and_what_is_none():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    expected = np.rint(values * 255)[:, :, None]
    assert (read_image(encode(Image.fromarray(values), "TIFF")) == expected).all()
    assert (read_image(Image.fromarray(values * 255)) == expected).all()
    for odd in (np.nan, np.inf, -np.inf, -5):
        strange = values.copy()
        strange[3, 3] = odd
        assert read_image(Image.fromarray(strange)).shape == (8, 8, 3)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format):
    stored = np.empty((32, 32, 4), np.uint8)
    stored[:] = [200, 30, 90, 40]
    levels = stored.astype(float)
    expected = (255 - levels[..., :3]) * (255 - levels[..., 3:]) / 255
    read = read_image(encode(Image.fromarray(stored, "CMYK"), format))
    assert np.abs(read - expected).max() <= (4 if format == "JPEG" else 1)


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"]
MODES += ["I;16", "I;16L", "I;16B", "I;16N"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_is_read_or_refused(mode):
    try:
        read = read_image(Image.new(mode, (5, 4)))
    except ImageError:
        assert mode in ("LAB", "La", "I;16L", "I;16N")  # of which Pillow itself knows no way to RGB
    else:
        assert read.shape == (4, 5, 3)
        clear = mode in ("LA", "PA", "RGBA", "La", "RGBa")
        assert mode in ("YCbCr", "CMYK", "LAB") or (read == (255 if clear else 0)).all()


def test_the_a_of_lab_is_no_alpha():
    read = read_image(Image.new("LAB", (4, 4), (255, 128, 128)))
    assert (read >= 250).all()
    assert (read_image(Image.new("LAB", (4, 4), (0, 128, 128)), background="red") <= 5).all()


def test_a_grey_with_alpha_and_a_palette_with_alpha():
    grey, alpha = PICTURE[..., 0], PICTURE[..., 1]
    stored = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    expected = on_white(grey.astype(float), alpha.astype(float))[:, :, None]
    for source in (stored, encode(stored), encode(stored, "WEBP", lossless=True, exact=True)):
        assert np.abs(read_image(source) - expected).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF"])
def test_of_an_animation_the_first_frame_is_read(format):
    read = read_image(frames(format, **({"lossless": True} if format == "WEBP" else {})))
    if format != "GIF":
        assert (read == PICTURE).all()
        return
    # 256 colours of more than 2,000: near, and nearer than any other frame.
    gap = [np.abs(read.astype(int) - frame).mean() for frame in (PICTURE, SMOOTH, PICTURE[::-1])]
    assert gap[0] < min(gap[1:]) / 3


def test_a_first_frame_that_is_smaller_than_its_canvas():
    """A GIF's frame of 2 x 1 at (1, 2) of 4 x 4: around it is its background, which is transparent: white."""
    colours = bytes([9, 9, 9, 250, 20, 30, 40, 50, 60, 1, 2, 3])
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x91, 0, 0) + colours
    control = b"\x21\xf9\x04\x01\0\0\0\0"  # colour 0 is transparent
    frame = b"\x2c" + struct.pack("<HHHHB", 1, 2, 2, 1, 0) + b"\x02\x02\x8c\x53\x00\x3b"
    expected = np.full((4, 4, 3), 255)
    expected[2, 1:3] = [250, 20, 30]
    codes = int("101001001100"[::1], 2)  # end, 1, 1, clear; the first in the lowest bits
    frame = frame[:10] + b"\x02\x02" + struct.pack("<H", codes) + b"\0;"
    assert (read_image(head + control + frame) == expected).all()


# EXIF 2.32, 4.6.4: where row 0 and column 0 of what is stored lie in what is seen.
SIDES = ["top left", "top right", "bottom right", "bottom left", "left top", "right top", "right bottom", "left bottom"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright(format, orientation):
    row, column = SIDES[orientation - 1].split()
    stored = SMOOTH if row in ("top", "bottom") else SMOOTH.transpose(1, 0, 2)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column in ("bottom", "right") else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    read = read_image(encode(np.ascontiguousarray(stored), format, exif=exif, **options))
    assert read.shape == SMOOTH.shape
    assert read.flags.c_contiguous
    assert np.abs(read.astype(int) - SMOOTH).max() <= (6 if format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (read_image(encode(PICTURE, exif=exif)) == PICTURE).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_sizes_at_the_edge(format):
    one = read_image(encode(np.full((1, 1, 3), 200, np.uint8), format))
    assert one.shape == (1, 1, 3)
    assert np.abs(one.astype(int) - 200).max() <= 1
    for size in ((1, 20_000), (20_000, 1)):
        if format == "WEBP" and max(size) > 16_383:  # which it cannot hold
            size = tuple(min(16_383, side) for side in size)
        with pytest.raises(ImageError, match="at most 100 times the other"):
            read_image(encode(Image.new("RGB", size), format))
    for shape in ((1, 20_000, 3), (20_000, 1, 3)):
        with pytest.raises(ImageError, match="at most 100 times the other"):
            read_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::2, ::3],
        lambda a: a[::-1, ::-1],
        lambda a: a[..., ::-1],
        lambda a: np.asfortranarray(a),
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.broadcast_to(a[:1, :1], (40, 30, 3)),
        lambda a: np.frombuffer(a.tobytes(), np.uint8).reshape(a.shape),  # which may not be written to
        lambda a: np.dstack([a, a])[..., 1:4],
    ],
)
def test_views_of_arrays_are_read_as_they_are_seen(view):
    seen = view(PICTURE)
    read = read_image(seen)
    assert read.flags.c_contiguous
    assert read.tolist() == seen.tolist()


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64", "float32", "bool", "complex64", "U1", "object", "u1,u1"])
def test_arrays_of_other_types_are_refused(kind):
    with pytest.raises(ImageError, match="a picture must be uint8"):
        read_image(np.zeros((4, 4, 3), kind))


@pytest.mark.parametrize(
    "shape", [(), (3,), (4, 4), (4, 4, 1), (4, 4, 4), (3, 4, 4), (1, 4, 4, 3), (0, 4, 3), (4, 0, 3)]
)
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(ImageError, match="a picture must be uint8"):
        read_image(np.zeros(shape, np.uint8))
