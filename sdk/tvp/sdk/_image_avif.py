"""The sizes of the frames in an AVIF file, read from the frames' own headers.

The container declares the size of a picture, and so does each coded frame in it. A decoder allocates the latter, and
scales the result to the former: a file of 3 KB that says 8 x 8 may hold 16,000 x 16,000 pixels.

Sources: ISO/IEC 14496-12 (boxes; iloc, iinf), AV1 Bitstream & Decoding Process Specification 5.3 and 5.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

SEQUENCE_HEADER = 1  # obu_type
MAX_BOXES = 10_000  # and items, extents, units of a picture; those of programs have some tens


def read_items(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and bytes of each item of an AVIF file that is a coded frame (`av01`) or its EXIF data (`Exif`).

    Raises:
        ValueError: it is an animation, or does not say where its frames are.
        IndexError, struct.error: it is cut off.
    """
    boxes = dict(_boxes(data, 0, len(data)))
    if b"moov" in boxes:
        raise ValueError("is an AVIF animation, which is not read. Save its first frame as PNG or JPEG")
    if b"meta" not in boxes:
        raise ValueError("has no pictures. Give another file")
    start, end = boxes[b"meta"]
    meta = dict(_boxes(data, start + 4, end))
    if b"iloc" not in meta or b"iinf" not in meta:
        raise ValueError("does not say where its pictures are. Save it again")
    kinds = dict(_kinds(data, *meta[b"iinf"]))
    for item, content in _contents(data, meta[b"iloc"], meta.get(b"idat", (0, 0))):
        if kinds.get(item) in (b"av01", b"Exif"):
            yield kinds[item], content


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield kind, start and end of each box."""
    for _ in range(MAX_BOXES):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        stop = end if size == 0 else at + size
        if stop < at + head or stop > end:
            raise IndexError
        yield kind, (at + head, stop)
        at = stop
    raise ValueError(f"has more than {MAX_BOXES:,} boxes. Save it again")


def _kinds(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and kind of each item."""
    at = start + (6 if data[start] == 0 else 8)  # behind version, flags and the number of entries
    for kind, (entry, _) in _boxes(data, at, end):
        version = data[entry]
        wide = version >= 3
        (item,) = struct.unpack_from(">I" if wide else ">H", data, entry + 4)
        place = entry + (10 if wide else 8)  # behind the number of a protection
        if kind == b"infe" and version >= 2:
            yield item, data[place : place + 4]


def _contents(data: bytes, iloc: tuple[int, int], idat: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each item."""
    at, end = iloc
    version, sizes, base_sizes = data[at], data[at + 4], data[at + 5]
    at += 6

    def take(n_bytes: int) -> int:
        nonlocal at
        if at + n_bytes > end:
            raise IndexError
        at += n_bytes
        return int.from_bytes(data[at - n_bytes : at], "big")

    n_left = MAX_BOXES
    for _ in range(take(4 if version == 2 else 2)):
        item = take(4 if version == 2 else 2)
        method = take(2) & 15 if version else 0
        take(2)  # which file: this one
        base = take(base_sizes >> 4)
        pieces = []
        for _ in range(take(2)):
            n_left -= 1
            if n_left < 0:
                raise ValueError(f"has more than {MAX_BOXES:,} pieces. Save it again")
            take(base_sizes & 15 if version else 0)
            offset, length = base + take(sizes >> 4), take(sizes & 15)
            start, stop = (0, len(data)) if method == 0 else idat
            pieces.append(data[start + offset : min(stop, start + offset + length) if length else stop])
        yield item, b"".join(pieces)


def frame_sizes(content: bytes) -> list[tuple[int, int]]:
    """Return width and height that each header of a coded frame gives; raises ValueError where there is none."""
    at, sizes = 0, []
    for _ in range(MAX_BOXES):
        if at >= len(content):
            break
        head = content[at]
        at += 2 if head & 4 else 1
        size = len(content) - at
        if head & 2:  # its size follows, 7 bits a byte, the lowest first
            size = 0
            for shift in range(0, 56, 7):
                byte = content[at]
                at += 1
                size |= (byte & 127) << shift
                if byte < 128:
                    break
        if head >> 3 & 15 == SEQUENCE_HEADER:
            sizes.append(_sequence_size(content[at : at + min(size, 256)]))
        at += size
    else:
        raise ValueError(f"has more than {MAX_BOXES:,} units. Save it again")
    if not sizes:
        raise ValueError("has a frame without a header. Save it again")
    return sizes


def _sequence_size(header: bytes) -> tuple[int, int]:
    bits = int.from_bytes(header, "big")
    n_left = 8 * len(header)

    def take(n: int) -> int:
        nonlocal n_left
        n_left -= n
        if n_left < 0:
            raise IndexError
        return bits >> n_left & (1 << n) - 1

    take(3 + 1)  # profile, still_picture
    reduced = take(1)
    if reduced:
        take(5)  # level
    else:
        n_delay = 0
        if take(1):  # timing_info
            take(64)
            if take(1):  # equal_picture_interval: a number in Exp-Golomb code
                n_zeros = 0
                while not take(1):
                    n_zeros += 1
                take(n_zeros)
            if take(1):  # decoder_model_info
                n_delay = take(5) + 1
                take(32 + 5 + 5)
        delayed = take(1)
        for _ in range(take(5) + 1):  # operating points
            take(12)
            if take(5) > 7:
                take(1)
            if n_delay and take(1):
                take(2 * n_delay + 1)
            if delayed and take(1):
                take(4)
    n_width, n_height = take(4) + 1, take(4) + 1
    width, height = take(n_width) + 1, take(n_height) + 1
    if not reduced:  # a frame may give another size, in as many bits
        width, height = _largest(width, n_width), _largest(height, n_height)
    return width, height


def _largest(side: int, n_bits: int) -> int:
    """Return the side that a frame may have; the usual one where its bits are those that it needs."""
    return side if n_bits <= max(1, (side - 1).bit_length()) else 1 << n_bits
