"""What a picture's file says about itself, read before anything decodes it: its format, its sizes and what it costs.

Pillow's decoders trust these numbers. A file of some KB can make them work for a minute, or take gigabytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ._image_avif import frame_sizes, read_items

MAX_PIECES = 100_000  # of a file: chunks, blocks, markers, strips. Those of cameras and programs have some hundreds.
MAX_SCANS = 100  # of a JPEG. Programs write some ten.
MAX_EXIF = 100  # blocks of 64 KiB in a JPEG. Cameras write one.
MAX_TAGS = 1000  # of EXIF or TIFF. Cameras write some hundred.
MAX_PROFILES = 8  # colour profiles of a PNG, which has one. Each may unfold to 1 MiB.
LARGE_TILE = 2048 * 2048  # pixels of a TIFF's tile that is larger than its picture; common are 256 x 256
RGBA_AND_RGB = 7  # bytes a pixel: Pillow's own picture, and the array that is made of it

# What begins a file -> its format.
STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    **{b"P" + kind: "PPM" for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"f")},
}
# Formats that are named, and not read.
OTHERS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop's PSD",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"<?xml": "SVG or other XML",
    b"\0\0\1\0": "ICO",
    b"DDS ": "DDS",
    b"v/1\x01": "OpenEXR",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
AVIF_BRANDS = {b"avif", b"avis"}


class Refused(Exception):
    """Why a file is not decoded: the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class Declared:
    """What a file says about its picture.

    Attributes:
        width, height: px; 0 where Pillow's own reading of the header takes no memory and is checked instead.
        bytes_a_pixel: that reading it takes at most.
        passes: how often a decoder goes over the whole picture.
    """

    width: int = 0
    height: int = 0
    bytes_a_pixel: float = RGBA_AND_RGB
    passes: int = 1


def find_format(data: bytes) -> str | None:
    """Return the format of a file, as Pillow calls it; HEIF for HEIC; None for one that is not known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4], "big"), 4096)
        brands = [data[8:12]] + [data[at : at + 4] for at in range(16, size, 4)]
        if brands[0] not in (b"mif1", b"msf1"):
            brands = brands[:1]
        return "AVIF" if AVIF_BRANDS & {*brands} else "HEIF" if HEIC_BRANDS & {*brands} else None
    return next((name for start, name in STARTS.items() if data.startswith(start)), None)


def name_other(data: bytes) -> str | None:
    """Return the name of a format that is not read."""
    if data[4:8] == b"ftyp":
        return "a film, or a raw picture of a camera"
    return next((name for start, name in OTHERS.items() if data.lstrip()[:32].startswith(start)), None)


def declared(data: bytes, format: str) -> Declared:
    """Return what a file says about its picture.

    Args:
        data: the whole file.
        format: as `find_format` returns it.

    Raises:
        Refused: it is made to cost time or memory.
    """
    try:
        match format:
            case "PNG":
                if data.count(b"iCCP") > MAX_PROFILES:
                    raise Refused(f"has more than {MAX_PROFILES} colour profiles. Save it again")
            case "JPEG":
                return _jpeg(data)
            case "WEBP":
                return _webp(data)
            case "GIF":
                return _gif(data)
            case "TIFF":
                return _tiff(data)
            case "AVIF" | "HEIF":
                return _boxes(data, format)
    except (IndexError, struct.error):
        raise Refused("is damaged or cut off: its header ends too early. Give the whole file") from None
    return Declared()


def too_many(what: str, most: int = MAX_PIECES) -> Refused:
    return Refused(f"has more than {most:,} {what}. No program writes such a file; save the picture again")


JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # in a scan: none of its own restart markers


def _jpeg(data: bytes) -> Declared:
    width = height = n_scans = n_exif = 0
    samples, buffered, at = 3.0, False, 2
    for _ in range(MAX_PIECES):
        found = JPEG_MARKER.search(data, at)
        if found is None or found[1] == b"\xd9":  # the end
            break
        marker, at = found[1][0], found.end()
        if marker in (0x01, 0xD8):  # without a length
            continue
        if at + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, at)
        if marker == 0xDA:
            n_scans += 1
            if n_scans > MAX_SCANS:
                raise too_many("scans", MAX_SCANS)
        elif marker == 0xE1 and data[at + 2 : at + 6] == b"Exif":
            n_exif += 1
            if n_exif > MAX_EXIF:  # which Pillow joins, one after the other
                raise too_many("blocks of EXIF data", MAX_EXIF)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and length >= 8:
            depth, tall, wide, n_layers = struct.unpack_from(">BHHB", data, at + 2)
            if depth != 8:
                raise Refused(f"is a JPEG of {depth} bits a sample, and only those of 8 are read. Save it as PNG")
            width, height = max(width, wide), max(height, tall)
            factors = data[at + 9 : at + 8 + 3 * n_layers : 3]
            areas = [(factor >> 4) * (factor & 15) for factor in factors] or [1]
            across, down = max(f >> 4 for f in factors or b"\x11"), max(f & 15 for f in factors or b"\x11")
            samples = sum(areas) / max(1, across * down)
            buffered = marker in (0xC2, 0xC6, 0xCA, 0xCE)
        at += max(2, length)
    else:
        raise too_many("markers")
    # Of several scans, all coefficients are kept until the last: 2 bytes each.
    kept = 2 * samples + 4 if buffered or n_scans > 1 else 0
    return Declared(width, height, max(RGBA_AND_RGB, kept), max(1, n_scans))


def _webp(data: bytes) -> Declared:
    width = height = 0
    at, end = 12, len(data)
    for _ in range(MAX_PIECES):
        if at + 8 > end:
            break
        kind, size = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 18]
        if kind == b"VP8X" and len(body) == 10:
            width = max(width, int.from_bytes(body[4:7], "little") + 1)
            height = max(height, int.from_bytes(body[7:10], "little") + 1)
        elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
            wide, tall = struct.unpack_from("<HH", body, 6)
            width, height = max(width, wide & 0x3FFF), max(height, tall & 0x3FFF)
        elif kind == b"VP8L" and body[:1] == b"\x2f":
            (bits,) = struct.unpack_from("<I", body, 1)
            width, height = max(width, (bits & 0x3FFF) + 1), max(height, (bits >> 14 & 0x3FFF) + 1)
        at += 8 + size + size % 2
    else:
        raise too_many("chunks")
    # The decoder keeps two canvases, gives one as bytes, and Pillow copies these twice.
    return Declared(width, height, 18)


def _gif(data: bytes) -> Declared:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    in_extension = False
    for _ in range(MAX_PIECES):
        mark = data[at]
        if in_extension:
            in_extension = mark > 0  # a block of that many bytes
            at += 1 + mark
        elif mark == 0x2C:  # the first frame, which may reach beyond the screen
            left, top, wide, tall = struct.unpack_from("<HHHH", data, at + 1)
            return Declared(max(width, left + wide), max(height, top + tall))
        elif mark == 0x3B:  # the end
            return Declared(width, height)
        else:
            in_extension = mark == 0x21
            at += 1 + in_extension
    raise too_many("blocks")


TIFF_SIZES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 16: 8, 17: 8}  # bytes of the types that are whole numbers
WIDTH, HEIGHT, BITS, STRIPS, SAMPLES, ROWS, TILE_WIDTH, TILE_HEIGHT, TILES = 256, 257, 258, 273, 277, 278, 322, 323, 324
ORIENTATION = 274
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def _tiff(data: bytes) -> Declared:
    counts, values = {STRIPS: 0, TILES: 0}, {BITS: 1, SAMPLES: 1}
    for tag, count, value in _tiff_entries(data):
        # Readers differ in which one of several they take.
        counts[tag], values[tag] = max(count, counts.get(tag, 0)), max(value, values.get(tag, 0))
    if max(counts[STRIPS], counts[TILES]) > MAX_PIECES:
        raise too_many("strips or tiles")
    width, height = values.get(WIDTH, 0), values.get(HEIGHT, 0)
    piece = values.get(TILE_WIDTH, 0) * values.get(TILE_HEIGHT, 0)
    if piece > 2 * width * height + LARGE_TILE:
        raise Refused(
            f"has tiles of {values[TILE_WIDTH]} x {values[TILE_HEIGHT]} pixels in a picture of {width} x {height}. "
            "Save it again"
        )
    piece = max(piece, width * min(values.get(ROWS, height), height))
    depth = values[BITS] * values[SAMPLES] / 8 * piece / max(1, width * height)
    return Declared(width, height, max(RGBA_AND_RGB, depth + 4))


def tiff_tags(data: bytes) -> dict[int, int]:
    """Return the first value of each tag of a TIFF that holds whole numbers."""
    return {tag: value for tag, _, value in _tiff_entries(data)}


def _tiff_entries(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield tag, count and first value of each entry of the first directory that holds whole numbers."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    entry, number, head = ("HHQ", "Q", 12) if big else ("HHI", "I", 8)
    (at,) = struct.unpack_from(order + number, data, 8 if big else 4)
    (n_entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    if n_entries > MAX_TAGS:
        raise too_many("tags", MAX_TAGS)
    n_bytes = struct.calcsize(number)  # of a value
    for _ in range(n_entries):
        tag, kind, count = struct.unpack_from(order + entry, data, at)
        place = at + head
        at = place + n_bytes
        size = TIFF_SIZES.get(kind)
        if not size or not count:
            continue
        if size * count > n_bytes:
            (place,) = struct.unpack_from(order + number, data, place)
        value = int.from_bytes(data[place : place + size], "little" if order == "<" else "big")
        yield tag, count, value


def _boxes(data: bytes, format: str) -> Declared:
    """Read every size in a HEIC or AVIF file: of the picture, of its tiles and of its thumbnails."""
    sizes = [(0, 0)]
    for number, found in enumerate(re.finditer(rb"ispe", data)):
        if number == MAX_PIECES:
            raise too_many("sizes")
        if found.end() + 12 <= len(data):
            sizes.append(struct.unpack_from(">II", data, found.end() + 4))
    if format == "AVIF":
        try:
            for kind, content in read_items(data):
                if kind == b"av01":
                    sizes += frame_sizes(content)
                else:  # Pillow reads it when it opens the file
                    _orientation_of(content[4 + int.from_bytes(content[:4], "big") :])
        except ValueError as error:
            raise Refused(str(error)) from None
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    # The decoder keeps brightness and colours, gives their mixture as bytes, and Pillow copies these.
    return Declared(width, height, 18)


def orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation of EXIF or XMP data, from what Pillow found beside a picture.

    Pillow's own reading warns of every broken tag, of which there may be 65,000, and Python keeps the text of each
    warning.
    """
    exif = info.get("exif")
    try:
        if exif is None and "Raw profile type exif" in info:  # as ImageMagick writes it into PNG
            exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
        if exif and (found := _orientation_of(exif)):
            return found
    except (Refused, ValueError, IndexError, struct.error):  # a picture whose metadata is damaged can still be read
        pass
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    match = XMP_ORIENTATION.search(xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp)
    return int(match[1]) if match else 1


def _orientation_of(exif: bytes) -> int:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    return next((value for tag, _, value in _tiff_entries(exif) if tag == ORIENTATION), 0)
