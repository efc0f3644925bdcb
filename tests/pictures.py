"""Pictures and files of them, for tests."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

PICTURE = np.random.default_rng(0).integers(0, 256, (47, 61, 3), np.uint8)
SMOOTH = (np.add.outer(np.arange(47), np.arange(61))[:, :, None] * [1, 2, 0] % 256).astype(np.uint8)
# PNG's kinds of channels.
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def frames(format, **options):
    more = [Image.fromarray(SMOOTH), Image.fromarray(PICTURE[::-1].copy())]
    return encode(Image.fromarray(PICTURE), format, save_all=True, append_images=more, **options)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *more):
    """A PNG of raw rows (bytes each), which Pillow itself cannot write in every depth."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", head), *(chunk(*pair) for pair in more), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
