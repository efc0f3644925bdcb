"""Files made to cost time or memory: refused before they are decoded, quickly, and in no memory. Limits of a caller.

It is long because each format has its own hostile files, and all share the builders at the top.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
import types
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from tests.pictures import PICTURE, SMOOTH, chunk, encode
from tests.sdk.test_hostile_images import bounded
from tvp import sdk
from tvp.sdk import ImageLimits, _image_files, read_image
from tvp.sdk._image_avif import frame_sizes, read_items
from tvp.sdk.errors import ImageError, RequestError

BLANK = Image.new("RGB", (8, 8), (200, 30, 40))
PNG = encode(BLANK)
IDAT = PNG.index(b"IDAT") - 4
avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def refused(data, says, seconds=5.0, limits=None):
    """A picture is refused in much less time than it would take; five seconds are several times the normal."""
    began = time.perf_counter()
    with pytest.raises(ImageError, match=says):
        read_image(data, limits or ImageLimits())
    assert time.perf_counter() - began < seconds


def refused_in_no_memory(data, says):
    done = bounded("try: read_image(data)\nexcept ImageError as error: print(error)", 40)(data)
    assert says in done.stdout.decode(), (done.stdout, done.stderr)


@pytest.mark.parametrize("kind", [b"abCd", b"IDAT"])
@pytest.mark.parametrize("place", [IDAT, -12], ids=["before", "behind"])
def test_a_png_of_a_million_chunks(kind, place):
    refused(PNG[:place] + chunk(kind, b"") * 1_000_000 + PNG[place:], "far more pieces")


def test_a_png_of_some_thousand_chunks_is_read():
    """As programs write them that flush often, and with every note of an experiment."""
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PICTURE), 0)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 61, 47, 8, 2, 0, 0, 0))]
    parts += [chunk(b"tEXt", b"note\0%d" % number) for number in range(5000)]
    parts += [chunk(b"IDAT", data[at : at + 2]) for at in range(0, len(data), 2)]
    assert (read_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")) == PICTURE).all()


def test_a_png_with_thousands_of_colour_profiles():
    profile = chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_000_000), 9))
    refused(PNG[:IDAT] + profile * 3000 + PNG[IDAT:], "colour profiles")


def scans(n, size=64):
    """A progressive JPEG whose last scan comes n times more."""
    data = encode(Image.new("RGB", (size, size), (200, 30, 40)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda"))
    return data[:-2] + data[last:-2] * n + data[-2:]


def test_a_jpeg_of_thousands_of_scans():
    refused(scans(3000, 2000), "more than 100 scans")
    assert (read_image(scans(50)) == read_image(scans(0))).all()


def test_scans_are_work_that_a_limit_of_time_forbids():
    refused(scans(80, 2000), r"9\d scans of 2000 x 2000 pixels, which take longer", limits=ImageLimits(seconds=0.1))


@pytest.mark.parametrize("behind", [b"\xff\xda" * 300, scans(0) * 40], ids=["film", "pictures"])
def test_what_lies_behind_a_jpegs_end_or_in_its_notes_are_no_scans(behind):
    """Phones put a film or more pictures there, and every camera a preview in front."""
    data = encode(SMOOTH, "JPEG")
    note = b"\xff\xe5" + struct.pack(">H", 60_002) + (b"\xff\xda" * 30_000)
    assert (read_image(data[:2] + note + data[2:] + behind) == read_image(data)).all()


def test_a_jpeg_of_a_million_markers():
    data = encode(SMOOTH, "JPEG")
    refused(data[:2] + b"\xff\xfe\0\2" * 1_000_000 + data[2:], "more than 100,000 markers")


def test_a_jpeg_of_thousands_of_exif_blocks():
    data, block = encode(SMOOTH, "JPEG"), b"\xff\xe1" + struct.pack(">H", 65_002) + b"Exif\0\0" + bytes(64_994)
    refused(data[:2] + block * 500 + data[2:], "more than 100 blocks of EXIF data")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", pytest.param("AVIF", marks=avif)])
def test_thousands_of_broken_tags_are_no_flood_of_warnings(format):
    """The orientation is found, and nothing is said of what is broken behind it."""
    n = 900
    tags = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    tags += b"".join(struct.pack(">HHII", number, 7, 100_000, 8) for number in range(40_000, 40_000 + n))
    exif = b"MM\0*" + struct.pack(">IH", 8, n + 1) + tags + bytes(4)
    plain = encode(SMOOTH, "PNG")
    if format == "PNG":
        data = plain[:33] + chunk(b"eXIf", exif) + plain[33:]
    elif format == "JPEG":
        data, plain = encode(SMOOTH, "JPEG", exif=b"Exif\0\0" + exif), encode(SMOOTH, "JPEG")
    elif format == "TIFF":
        rows = dict.fromkeys(range(40_000, 40_000 + n), (7, 100_000, 8)) | {274: (3, 1, 6), 273: (4, 1, 8)}
        data = tiff(rows | {278: (4, 1, 16), 279: (4, 1, 256)}, bytes(256))
    else:
        with warnings.catch_warnings(action="ignore"):
            data = encode(SMOOTH, format, exif=b"Exif\0\0" + exif if format == "WEBP" else exif)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read = read_image(data)
    # Of TIFF itself, Pillow reads all tags as often as it likes; they are at most 1,000.
    assert len(said) <= (3 * n if format in ("TIFF", "AVIF") else 0)
    if format in ("PNG", "JPEG"):
        assert (read == np.rot90(read_image(plain), -1)).all()
    elif format == "WEBP":
        assert read.shape == (61, 47, 3)
    if format in ("TIFF", "AVIF"):
        more = struct.pack(">HHII", 50_000, 7, 1, 0) * 1000
        many = exif[:8] + struct.pack(">H", 1001) + more + struct.pack(">HHII", 50_000, 7, 1, 0) + bytes(4)
        with warnings.catch_warnings(action="ignore"):
            data = many if format == "TIFF" else encode(SMOOTH, "AVIF", exif=many)
        refused(data, "more than 1,000 tags")


def test_the_orientation_of_other_metadata():
    """XMP, and the text in which ImageMagick keeps EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    block = b"Exif\0\0" + exif.tobytes()[6:]
    profile = f"\nexif\n{len(block):8}\n" + "\n".join(block.hex()[at : at + 72] for at in range(0, 2 * len(block), 72))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for more in (
        chunk(b"tEXt", b"Raw profile type exif\0" + profile.encode() + b"\n"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        plain = encode(SMOOTH)
        assert (read_image(plain[:33] + more + plain[33:]) == np.rot90(SMOOTH, -1)).all()
    assert read_image(encode(SMOOTH, "JPEG", xmp=xmp)).shape == (61, 47, 3)
    turned = Image.fromarray(SMOOTH)
    turned.getexif()[0x0112] = 6  # which never was in a file
    assert (read_image(turned) == np.rot90(SMOOTH, -1)).all()


def test_a_jpeg_of_fill_bytes():
    """A run of 0xff, which a careless expression would look through from each of its bytes."""
    data = encode(SMOOTH, "JPEG")
    began = time.perf_counter()
    assert (read_image(data[:-2] + b"\xff" * 5_000_000 + data[-1:]) == read_image(data)).all()
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_of_100_megapixels(mode, lossless):
    """Its decoder takes some 18 bytes a pixel. The head alone: nothing behind it is looked at."""
    small = encode(Image.new(mode, (16, 16), (9, 9, 9)), "WEBP", lossless=lossless, exact=True)
    if small[12:16] == b"VP8X":
        data = small[:24] + (9999).to_bytes(3, "little") * 2 + small[30:]
    elif lossless:
        at = small.index(b"VP8L") + 9
        data = small[:at] + struct.pack("<I", 9999 | 9999 << 14) + small[at + 4 :]
    else:
        at = small.index(b"\x9d\x01\x2a") + 3
        data = small[:at] + struct.pack("<HH", 10_000, 10_000) + small[at + 4 :]
    refused_in_no_memory(data, "10000 x 10000 pixels; at most 57,419,690 are allowed in such a file")


def test_a_webp_of_millions_of_chunks():
    data = encode(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP", exif=b"Exif\0\0none") + b"none\0\0\0\0" * 1_000_000
    refused_in_no_memory(data[:4] + struct.pack("<I", len(data) - 8) + data[8:], "more than 100,000 chunks")


def tiff(tags, body=b"", big=False):
    """A TIFF of these tags: (number, type, count, value or place). Its body lies at byte 8, or 16 if big."""
    head = (
        b"II+\0\x08\0\0\0" + struct.pack("<Q", 16 + len(body)) if big else b"II*\0" + struct.pack("<I", 8 + len(body))
    )
    tags = {256: (4, 1, 16), 257: (4, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)} | tags
    rows = b"".join(struct.pack("<HHQQ" if big else "<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return head + body + struct.pack("<Q" if big else "<H", len(tags)) + rows + bytes(8)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_whose_tile_is_larger_than_its_picture(big):
    body = zlib.compress(bytes(1000))
    tile = {322: (4, 1, 30_000), 323: (4, 1, 30_000), 324: (4, 1, 16 if big else 8), 325: (4, 1, len(body))}
    refused_in_no_memory(
        tiff(tile | {259: (3, 1, 8)}, body, big), "tiles of 30000 x 30000 pixels in a picture of 16 x 16"
    )


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_more_bytes_a_pixel_than_allowed(big):
    strip = {256: (4, 1, 9000), 257: (4, 1, 9000), 258: (3, 1, 16), 277: (3, 1, 6), 278: (4, 1, 9000)}
    data = tiff(strip | {273: (4, 1, 8), 279: (4, 1, 8), 262: (3, 1, 2)}, big=big)
    refused_in_no_memory(data, "in such a file, which takes 16 bytes a pixel")


def test_a_tiff_of_a_million_strips():
    n = 1_000_000
    refused(
        tiff({273: (4, n, 8), 278: (4, 1, 1), 279: (4, n, 8)}, struct.pack("<I", 8) * n), "more than 100,000 strips"
    )


def test_a_tiff_of_endless_tags():
    refused(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**62), "more than 1,000 tags")
    refused(b"II*\0" + struct.pack("<IH", 8, 1000), "header ends too early")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits"])
def test_usual_tiffs_are_read(compression):
    smooth = np.repeat(np.repeat(SMOOTH, 20, 0), 20, 1)
    read = read_image(encode(smooth, "TIFF", compression=compression))
    assert np.abs(read.astype(int) - smooth).max() <= (40 if compression == "jpeg" else 0)


def test_a_gif_whose_first_frame_reaches_far_beyond_its_screen():
    screen = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
    put_back = b"\x21\xf9\x04\x08\0\0\0\0"  # for which a picture of the frame's size is made at once
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 12_000, 12_000, 0) + b"\x02\x02\x8c\x53\x00\x3b"
    refused_in_no_memory(screen + put_back + frame, "12000 x 12000 pixels")


@pytest.mark.parametrize("block", [b"\1x", b"\x21\xfe\0", b"x"])
def test_a_gif_of_a_million_blocks(block):
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + (b"\x21\xfe" if block == b"\1x" else b"")
    refused(head + block * 1_000_000 + b"\0;", "more than 100,000 blocks")


def rle(width, height, rows, compression=1):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + head + bytes([1, 2, 3, 0] * 256) + rows


def test_a_bmp_that_is_decoded_in_python():
    assert (read_image(rle(4, 4, b"\4\1\0\0" * 4)) == [3, 2, 1]).all()
    refused(rle(3000, 3000, b"\xff\1" * 36_000), "value by value")
    refused(rle(4, 4, b"\0\2\0\0" * 5_000_000), "value by value")  # steps that lead nowhere


@pytest.mark.parametrize("data", [b"P6" + b" " * 5_000_000 + b"8 8 255\n", b"P6" + b"#\n" * 5_000_000 + b"8 8 255\n"])
def test_a_ppm_with_a_header_of_megabytes(data):
    refused(data + bytes(192), "far more pieces|damaged")


@avif
def test_avif_is_read_as_pillow_reads_it(tmp_path):
    data = encode(SMOOTH, "AVIF", quality=95)
    assert np.abs(read_image(data).astype(int) - SMOOTH).mean() < 8
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert (read_image(encode(clear, "AVIF")) >= 253).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(encode(SMOOTH, "AVIF", exif=exif)).shape == (61, 47, 3)
    for cut in range(0, len(data), 7):
        with pytest.raises(ImageError):
            read_image(data[:cut])


@avif
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("size", [(1, 1), (61, 47), (640, 480)])
def test_the_frames_of_an_avif_say_their_size(mode, size):
    items = list(read_items(encode(Image.new(mode, size), "AVIF", exif=b"MM\0*\0\0\0\x08" + bytes(6))))
    assert {kind for kind, _ in items} == {b"av01", b"Exif"}
    assert {tuple(*frame_sizes(content)) for kind, content in items if kind == b"av01"} == {size}


@avif
def test_an_avif_whose_frames_are_larger_than_it_says():
    data = encode(Image.new("L", (8000, 8000)), "AVIF", speed=10)
    at = data.index(b"ispe") + 8
    refused_in_no_memory(data[:at] + struct.pack(">II", 8, 8) + data[at + 8 :], "8000 x 8000 pixels")
    refused_in_no_memory(data[:at] + struct.pack(">II", 16_000, 16_000) + data[at + 8 :], "16000 x 16000 pixels")


@avif
def test_an_avif_animation_is_told():
    more = [Image.fromarray(PICTURE)]
    refused(encode(Image.fromarray(SMOOTH), "AVIF", save_all=True, append_images=more), "is an AVIF animation")


def ftyp(*brands):
    return struct.pack(">I", 8 + 4 * len(brands) + 4) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])


def test_heic_names_its_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brands in ([b"heic"], [b"mif1", b"miaf", b"heic"]):
        refused(ftyp(*brands) + bytes(100), r"It is a HEIC picture.*pip install 'tvp-edge\[heif\]'.*Or save it as PNG")


def test_heic_is_read_where_its_package_is_installed(monkeypatch):
    class HeifImageFile(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._mode, self._size = "RGB", (2, 2)
            self.tile = [("raw", (0, 0, 2, 2), len(self.fp.getvalue()) - 12, ("RGB", 0, 1))]

    plugin = types.ModuleType("pillow_heif")
    plugin.HeifImageFile = HeifImageFile
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    known = dict(Image.OPEN)
    assert read_image(ftyp(b"heic") + bytes(range(12))).ravel().tolist() == list(range(12))
    assert known == Image.OPEN  # other readers of this process open what they opened before
    size = b"ispe" + bytes(4) + struct.pack(">II", 9000, 9000)
    refused(ftyp(b"heic") + size + bytes(12), "9000 x 9000 pixels; at most 57,419,690")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"%PDF-1.7", "PDF"),
        (b"  <svg xmlns=''>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (ftyp(b"isom", b"mp42"), "a film"),
    ],
)
def test_other_formats_are_named(start, name):
    refused(start + bytes(50), f"not a picture in a known format: it looks like .*{name}.*Known are PNG, .* Save it as")


def test_without_avif_or_webp_the_way_out_is_named(monkeypatch):
    from PIL import AvifImagePlugin, WebPImagePlugin

    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)
    refused(ftyp(b"avif") + bytes(50), "It is AVIF, which this Pillow was built without")
    refused(b"RIFF\x20\0\0\0WEBPVP8L" + bytes(20), "It is WEBP, which this Pillow was built without")


# Limits of the caller.


def test_a_service_sets_less(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(PICTURE))
    sources = [PICTURE, Image.fromarray(PICTURE), path.read_bytes(), bytearray(path.read_bytes()), path]
    for source in sources:
        refused(source, r"61 x 47 pixels; at most 2,000 are allowed", limits=ImageLimits(pixels=2000))
        assert (read_image(source, ImageLimits(pixels=61 * 47)) == PICTURE).all()
    for source in sources[2:]:
        refused(source, "is larger than 1,000 bytes", limits=ImageLimits(bytes=1000))
        refused(source, "takes longer to read than 1e-09 s", limits=ImageLimits(seconds=1e-9))
    refused(sources[1], "takes longer to read than 1e-09 s", limits=ImageLimits(seconds=1e-9))


def test_time_ends_a_decoder_in_the_middle(monkeypatch):
    """Of a large JPEG, which takes its file in many pieces."""
    data = encode(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8), "JPEG", quality=95)
    read, n_reads = _image_files._Stream.read, []

    def slow(self, size=-1):
        n_reads.append(size)
        time.sleep(0.02)
        return read(self, size)

    monkeypatch.setattr(_image_files._Stream, "read", slow)
    refused(data, r"longer to read than 0\.5 s", limits=ImageLimits(seconds=0.5))
    assert 10 < len(n_reads) < 80


@pytest.mark.parametrize(
    "wrong", [{"pixels": 0}, {"pixels": 1.5}, {"bytes": -1}, {"bytes": True}, {"seconds": 0}, {"seconds": float("nan")}]
)
def test_limits_that_are_none(wrong):
    with pytest.raises(RequestError, match=f"ImageLimits.{next(iter(wrong))} is .* above 0"):
        ImageLimits(**wrong)


def test_limits_of_another_kind(one_bundle):
    with pytest.raises(RequestError, match=r"limits is \{.*\}; give ImageLimits"):
        read_image(PICTURE, {"pixels": 3})
    with pytest.raises(RequestError, match="limits is 3; give"):
        sdk.load(one_bundle, limits=3)
    with pytest.raises(RequestError, match="The background is 'whyte'"):
        sdk.load(one_bundle, background="whyte")


def test_a_task_keeps_to_its_limits_and_background(one_bundle):
    clear = Image.new("RGBA", (10, 10))
    with sdk.load(one_bundle, limits=ImageLimits(pixels=100), background="black") as task:
        for ask in (task.ask, task.see, task.rank, task.stream, lambda image: task.ask_many([(image, "What?")])):
            with pytest.raises(ImageError, match="at most 100 are allowed"):
                ask(PICTURE, *(["What?"] if ask in (task.ask, task.rank, task.stream) else []))
        on_black = task.pixel_values(clear)
        assert (on_black == task.pixel_values(np.zeros((10, 10, 3), np.uint8))).all()
    with sdk.load(one_bundle) as task:
        assert (task.pixel_values(clear) == task.pixel_values(np.full((10, 10, 3), 255, np.uint8))).all()


def test_a_file_is_read_in_no_more_memory_than_it_has(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(PICTURE))
    done = bounded("print(read_image(data.decode()).shape)", 40)(str(path).encode())
    assert done.stdout == b"(47, 61, 3)\n", done.stderr
    with open(path, "wb") as stream:
        stream.truncate(300 * 2**20)  # a hole: it takes no place on the disk
    done = bounded("try: read_image(data.decode())\nexcept ImageError as error: print(error)", 40)(str(path).encode())
    assert b"is larger than 256 MiB" in done.stdout, done.stderr
    refused("/proc/self/status", "not a picture in a known format")  # whose size is 0


# Nothing belongs to all threads.


def test_a_slow_picture_keeps_nobody_else_waiting(monkeypatch):
    waiting, done = threading.Event(), threading.Event()
    read = _image_files._Stream.read

    def slow(self, size=-1):
        if len(self.getvalue()) == len(PNG):
            waiting.set()
            assert done.wait(60)
        return read(self, size)

    monkeypatch.setattr(_image_files._Stream, "read", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(read_image, PNG)
        assert waiting.wait(60)
        for source in (encode(PICTURE), encode(PICTURE, "JPEG"), encode(PICTURE, "WEBP"), PICTURE):
            assert read_image(source).shape == PICTURE.shape
        done.set()
        assert first.result().shape == (8, 8, 3)


def test_pillows_own_limit_is_the_programs(monkeypatch):
    """It is neither changed nor warned of, and at its double a picture is refused, as Image.open does."""
    files = [encode(PICTURE, format) for format in ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47 * 61 // 2 - 1)
    for data in files:
        refused(data, "MAX_IMAGE_PIXELS|exceeds limit")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47 * 61 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in files[:-1]:
            assert read_image(data).shape == PICTURE.shape
        assert read_image(Image.new("L", (2500, 2000))).shape == (2000, 2500, 3)  # the program's own picture
    assert Image.MAX_IMAGE_PIXELS == 47 * 61 - 1
