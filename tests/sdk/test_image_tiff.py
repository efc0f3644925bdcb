"""Every kind of TIFF file: the levels that its specification gives, or a sentence that names the kind.

The files are written by tests/tiff_files.py, which also computes what is right; Pillow has no part in either.
"""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from tests.pictures import encode
from tests.tiff_files import (
    BLACK_IS_ZERO,
    CMYK,
    DROPPED,
    FLOAT,
    LAB,
    MULTIPLIED,
    PALETTE,
    RGB,
    SEPARATE,
    SIGNED,
    UNSIGNED,
    WHITE_IS_ZERO,
    YCBCR,
    Tiff,
)
from tvp.sdk import read_image
from tvp.sdk.errors import ImageError

SAMPLES = [
    *((bits, UNSIGNED) for bits in (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32)),
    *((bits, SIGNED) for bits in (8, 16, 32)),
    *((bits, FLOAT) for bits in (16, 32, 64)),
]
LAYOUTS = [
    {},
    {"planar": True},
    {"deflated": True},
    {"planar": True, "deflated": True},
    {"deflated": True, "predictor": 2},
    {"fill_order": 2},
    {"tiled": True},
    {"tiled": True, "deflated": True},
]
# Kinds of samples that are read in every layout of little-endian files but planes and lowest bits first.
READ = {
    *((colour, bits, UNSIGNED, ()) for colour in (WHITE_IS_ZERO, BLACK_IS_ZERO) for bits in (1, 2, 4, 8, 16)),
    *((PALETTE, bits, UNSIGNED, ()) for bits in (1, 2, 4, 8)),
    (BLACK_IS_ZERO, 12, UNSIGNED, ()),
    *((colour, 32, FLOAT, ()) for colour in (WHITE_IS_ZERO, BLACK_IS_ZERO)),
    *((BLACK_IS_ZERO, 8, UNSIGNED, (extra,)) for extra in (DROPPED, MULTIPLIED, SEPARATE)),
    *((RGB, bits, UNSIGNED, extra) for bits in (8, 16) for extra in ((), (DROPPED,), (MULTIPLIED,), (SEPARATE,))),
    *((CMYK, bits, UNSIGNED, ()) for bits in (8, 16)),
    (YCBCR, 8, UNSIGNED, ()),
}


def read_or_refused(file):
    try:
        return read_image(file), ""
    except ImageError as error:
        return None, str(error)


def palette(bits):
    return np.random.default_rng(1).integers(0, 65536, (2**bits, 3))


@pytest.mark.parametrize("colour", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR])
def test_every_kind_is_read_right_or_named(colour):
    for (bits, form), extra, layout, order in itertools.product(
        SAMPLES, [(), (DROPPED,), (MULTIPLIED,), (SEPARATE,), (0, 0)], LAYOUTS, [b"II", b"MM"]
    ):
        kind = Tiff(order, colour, bits, form, extra, **layout)
        pointless = (kind.planar and kind.n_samples == 1) or (kind.predictor == 2 and (bits < 8 or form == FLOAT))
        if pointless or (colour == PALETTE and (bits > 8 or form != UNSIGNED)) or (kind.predictor == 2 and bits % 8):
            continue
        values, colours = kind.values(7, 18), palette(bits) if colour == PALETTE else None
        file = kind.file(values, colours)
        read, said = read_or_refused(file)
        if read is None:
            plain = layout in ({}, {"deflated": True}, {"tiled": True})
            assert not (plain and order == b"II" and (colour, bits, form, extra) in READ), (kind, said)
            assert f"of {bits} bits (" in said, kind
            assert ("little" if order == b"II" else "big") + "-endian" in said
            continue
        # Pillow keeps the upper 8 of 16 bits, of colours and of alpha.
        bound = 3 if bits == 16 and MULTIPLIED in extra else 2 if bits == 16 or extra or colour == PALETTE else 1
        assert form != SIGNED, kind
        assert np.abs(read - kind.levels(values, colours)).max() <= bound + 1e-6, kind


@pytest.mark.parametrize("deflated", [False, True])
def test_12_bits_are_as_bright_as_16(deflated):
    """A 12-bit picture arrived 16 times too dark."""
    values = np.arange(4096).reshape(64, 64, 1)
    read = read_image(Tiff(bits=12, deflated=deflated).file(values))
    assert (read == np.rint(values / 4095 * 255)).all()


@pytest.mark.parametrize("layout", [{}, {"deflated": True}, {"planar": True}, {"planar": True, "deflated": True}])
def test_a_grey_of_lab_is_grey(layout):
    kind = Tiff(photometric=LAB, **layout)
    values = np.zeros((9, 9, 3), int)
    values[..., 0] = 128  # L* = 50, whose sRGB is 119
    if kind.planar:
        with pytest.raises(ImageError, match="Lab, samples in planes"):
            read_image(kind.file(values))
    else:
        assert np.abs(read_image(kind.file(values)).astype(int) - 119).max() <= 1


def test_a_tiff_that_a_program_opened_is_read_as_its_file():
    for kind in (Tiff(bits=12), Tiff(b"MM", bits=32, format=FLOAT, deflated=True), Tiff(photometric=0, bits=16)):
        values = kind.values()
        file = kind.file(values)
        assert (read_image(Image.open(io.BytesIO(file))) == read_image(file)).all()
    loaded = Image.open(io.BytesIO(Tiff(b"MM", bits=32, format=FLOAT, deflated=True).file(kind.values() / 65535)))
    loaded.load()
    with pytest.raises(ImageError, match=r"PIL image is a TIFF of floating-point numbers of 32 bits .*big-endian"):
        read_image(loaded)


def test_a_compression_that_nobody_knows_is_named():
    file = bytearray(Tiff().file(Tiff().values()))
    place = file.index(struct.pack("<HHI", 259, 3, 1)) + 8
    file[place : place + 2] = struct.pack("<H", 50013)
    with pytest.raises(ImageError, match="compression 50013"):
        read_image(bytes(file))


@pytest.mark.parametrize(("scale", "white"), [(1, 1), (1.03, 1), (255, 255)])
def test_floats_of_a_little_more_than_1_are_not_black(scale, white):
    values = np.linspace(-0.01, 1, 64, dtype=np.float32).reshape(8, 8) * scale
    expected = np.rint(values.clip(0, white) / white * 255)[:, :, None]
    assert (read_image(Image.fromarray(values)) == expected).all()


@pytest.mark.parametrize("values", [np.array([[0, 70_000]]), np.array([[-5, 200]]), np.array([[0.0, 0.5, 1e30]])])
def test_values_whose_white_is_unknown_are_refused(values):
    values = values.astype(np.int32 if values.dtype.kind == "i" else np.float32)
    with pytest.raises(ImageError, match=r"has values from .* to .* does not say which is white"):
        read_image(Image.fromarray(values))


def test_a_jpeg_of_12_bits_is_named():
    file = bytearray(encode(np.zeros((8, 8, 3), np.uint8), "JPEG"))
    file[file.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageError, match="JPEG of 12 bits a sample"):
        read_image(bytes(file))


def test_a_portable_float_map():
    values = np.linspace(0, 1, 8, dtype="<f4").reshape(2, 4)
    read = read_image(b"Pf\n4 2\n-1.0\n" + values[::-1].tobytes())  # its last row comes first
    assert (read == np.rint(values * 255)[:, :, None]).all()
