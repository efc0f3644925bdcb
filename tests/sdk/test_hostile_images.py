"""Pictures that are cut off, changed, huge or odd: the right pixels or an ImageError, in little memory and time."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from tests.pictures import PICTURE, RGB, SMOOTH, encode, frames, png
from tvp.sdk import read_image
from tvp.sdk.errors import ImageError

FILES = {
    "png": encode(PICTURE),
    "png smooth": encode(SMOOTH),
    "png palette": encode(Image.fromarray(PICTURE).quantize(64)),
    "apng": frames("PNG"),
    "jpeg": encode(PICTURE, "JPEG", quality=90),
    "jpeg smooth": encode(SMOOTH, "JPEG", quality=30),
    "jpeg progressive": encode(PICTURE, "JPEG", progressive=True),
    "webp": encode(PICTURE, "WEBP"),
    "webp lossless": encode(PICTURE, "WEBP", lossless=True),
    "webp animated": frames("WEBP", lossless=True),
    "gif": encode(PICTURE, "GIF"),
    "gif smooth": encode(SMOOTH, "GIF"),
    "gif animated": frames("GIF"),
    "bmp": encode(PICTURE, "BMP"),
    "bmp palette": encode(Image.fromarray(PICTURE).quantize(16), "BMP"),
    "tiff": encode(PICTURE, "TIFF"),
    "tiff lzw": encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encode(SMOOTH, "TIFF", compression="tiff_deflate"),
    "tiff jpeg": encode(SMOOTH, "TIFF", compression="jpeg"),
    "ppm": encode(PICTURE, "PPM"),
}
if features.check("avif"):
    FILES["avif"] = encode(PICTURE, "AVIF")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_every_percent_is_an_error_or_the_whole_picture(name):
    data, n_refused = FILES[name], 0
    whole = read_image(data)
    for percent in range(100):
        try:
            read = read_image(data[: len(data) * percent // 100])
        except ImageError as error:
            n_refused += 1
            assert "The image data" in str(error)  # noqa: PT017
        else:
            assert (read == whole).all(), f"at {percent} % the pixels are not those of the whole file"
    assert n_refused > 20


QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


CHANGED = {"png palette", "jpeg", "webp", "gif animated", "bmp palette", "tiff lzw", "avif"}


@pytest.mark.parametrize("name", sorted(CHANGED & {*FILES}))
def test_flipped_bytes_are_an_error_or_a_picture(name):
    whole = FILES[name]

    @QUICK
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)), min_size=1, max_size=8), st.booleans()
    )
    def run(flips, early):
        data = bytearray(whole)
        for place, bits in flips:
            data[place % 64 if early else place] ^= bits  # the head of a file is where sizes are
        try:
            read = read_image(bytes(data))
        except ImageError:
            return
        assert read.dtype == np.uint8
        assert read.ndim == 3
        assert read.shape[2] == 3

    run()


@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"P6 ", b"RIFF", b"\0\0\0\x10ftypavif"]
    ),
)
@settings(QUICK, max_examples=300)
def test_random_bytes_are_an_error_or_a_picture(data, start):
    with contextlib.suppress(ImageError):
        assert read_image(start + data).shape[2] == 3


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/null", "folder", "/proc/self/mem"])
def test_what_never_ends_is_not_waited_for(kind, tmp_path):
    path = kind if kind.startswith("/") else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    said = []

    def read():
        try:
            read_image(path)
        except ImageError as error:
            said.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert said, "it waits"
    assert str(path) in said[0]


def bounded(code, n_mib):
    """Run code in a process that may grow by n_mib of address space once the reader is imported."""
    before = f"""
import io, os, resource, sys
import numpy as np
from PIL import Image, features
from tvp.sdk import read_image
from tvp.sdk.errors import ImageError
read_image(np.zeros((2, 2, 3), np.uint8))
data = sys.stdin.buffer.read()
used = int(open('/proc/self/statm').read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
resource.setrlimit(resource.RLIMIT_AS, (used + {n_mib} * 2**20,) * 2)
"""
    return lambda data: subprocess.run(
        [sys.executable, "-c", before + code],
        input=data,
        capture_output=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def huge(format):
    """A small file that says that it holds far more: its true size, 8 x 8, is replaced in its head."""
    small = encode(
        Image.new("RGB" if format != "GIF" else "P", (8, 8)), format, **({"lossless": True} if format == "WEBP" else {})
    )
    if format == "PNG":
        return png(200_000, 200_000, 8, RGB, [b"\0" * 24] * 8)
    old, new = {
        "JPEG": (struct.pack(">HH", 8, 8), struct.pack(">HH", 65_500, 65_500)),
        "GIF": (struct.pack("<HH", 8, 8), struct.pack("<HH", 65_500, 65_500)),
        "BMP": (struct.pack("<II", 8, 8), struct.pack("<II", 200_000, 200_000)),
        "PPM": (b"8 8", b"200000 200000"),
        "WEBP": (struct.pack("<I", 7 | 7 << 14), struct.pack("<I", 16_382 | 16_382 << 14)),
        "TIFF": (b"", b""),
    }[format]
    if format == "TIFF":
        for tag in (256, 257):  # width, height: one value of 4 bytes
            for kind, old_value in ((3, b"\x08\0\0\0"), (4, b"\x08\0\0\0")):
                entry = struct.pack("<HHI", tag, kind, 1)
                small = small.replace(entry + old_value, struct.pack("<HHI", tag, 4, 1) + struct.pack("<I", 200_000))
        return small
    assert old in small[:300] or format == "WEBP"
    if format == "WEBP":  # bits: 14 of width - 1, 14 of height - 1, behind the signature 0x2f
        place = small.index(b"VP8L") + 9
        (bits,) = struct.unpack("<I", small[place : place + 4])
        return small[:place] + struct.pack("<I", bits & ~(2**28 - 1) | 16_382 | 16_382 << 14) + small[place + 4 :]
    return small.replace(old, new)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_file_that_says_that_it_is_huge_is_refused_in_no_memory(format):
    done = bounded("try: read_image(data)\nexcept ImageError as error: print(error)", 40)(huge(format))
    assert b" x " in done.stdout or b"too large" in done.stdout, (done.stdout, done.stderr)


@pytest.mark.parametrize(
    "more",
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000, 9)),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"\0" * 200_000_000, 9)),
        (b"iCCP", b"icc\0\0" + zlib.compress(b"\0" * 200_000_000, 9)),
    ],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_a_text_that_unfolds_to_200_mb_is_not_unfolded(more):
    data = png(2, 2, 8, RGB, [b"\1" * 6] * 2, more)
    assert len(data) < 250_000
    code = "try: print(read_image(data).tolist())\nexcept ImageError as error: print(error)"
    done = bounded(code, 60)(data)
    assert done.stdout.strip() in (b"[[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]]",) or b"image data" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "I;16", "F"])
def test_a_large_picture_takes_at_most_ten_bytes_a_pixel(mode):
    """Of 25 megapixels: Pillow's own (up to 4), the array that is returned (3), and strips that are converted."""
    data = encode(
        Image.new(mode, (5000, 5000)),
        "TIFF" if mode == "F" else "PNG",
        **({"compression": "tiff_deflate"} if mode == "F" else {}),
    )
    assert len(data) < 300_000
    code = "read = read_image(data); print(read.shape, read.max())"
    done = bounded(code, 25_000_000 * 10 // 2**20 + 64)(data)
    assert done.stdout.startswith(b"(5000, 5000, 3) "), done.stderr


def test_without_memory_it_is_an_image_error_that_says_so():
    data = encode(Image.new("RGB", (5000, 5000)))
    done = bounded("try: read_image(data)\nexcept ImageError as error: print(error)", 60)(data)
    assert b"more memory than there is" in done.stdout, done.stderr
