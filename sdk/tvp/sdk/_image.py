"""Reading pictures, whatever they come as: a path, bytes, a PIL image or an array."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError

ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

MAX_PIXELS = 100_000_000  # 10,000 x 10,000: more than any camera here, far less than a bomb
MAX_BYTES = 256 * 2**20
# Pillow's decoders raise all of these on damaged data.
DAMAGED = (OSError, SyntaxError, ValueError, IndexError, EOFError, TypeError, KeyError, OverflowError, struct.error)


def read_image(source: ImageLike) -> NDArray[np.uint8]:
    """Read a picture as uint8 (height, width, 3), RGB, upright.

    source: a path, the bytes of a file, a PIL image, or a uint8 array (height, width, 3).
        EXIF orientation is applied, alpha is laid on black, palette, grey, CMYK and 16-bit pictures
        are converted; of an animation the first frame is taken.
    Raises ImageError for what is unreadable, cut off, empty or of more than 100 megapixels.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the PIL image")
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), "the image bytes"
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        name = f"the image file {path}"
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ImageError(f"{_start(name)} is larger than {MAX_BYTES >> 20} MiB. Give a smaller picture.")
            data = path.read_bytes()
        except OSError as error:
            raise ImageError(f"{_start(name)} cannot be read: {error.strerror or error}.") from error
    else:
        raise ImageError(
            f"A {type(source).__name__} is not a picture; give a path, bytes, a PIL image "
            "or a uint8 array (height, width, 3)."
        )
    if not data:
        raise ImageError(f"{_start(name)} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning at its bomb limit; ours is an error
            with Image.open(io.BytesIO(data)) as image:
                return _decode(image, name)
    except UnidentifiedImageError as error:
        raise ImageError(f"{_start(name)} is not a picture in a format that Pillow knows.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{_start(name)} is too large: {error}") from error
    except DAMAGED as error:
        raise ImageError(f"{_start(name)} is damaged or cut off: {error}") from error


def _from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"The array is {array.dtype} {array.shape}; a picture is uint8 (height, width, 3) and not empty."
        )
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ImageError(f"The array has {array.shape[0]} x {array.shape[1]} pixels; at most {MAX_PIXELS:,} are read.")
    return np.ascontiguousarray(array)


def _decode(image: Image.Image, name: str) -> NDArray[np.uint8]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{_start(name)} has {width} x {height} pixels; at most {MAX_PIXELS:,} are read.")
    if not width or not height:
        raise ImageError(f"{_start(name)} has no pixels ({width} x {height}).")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = _to_8_bits(image)
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        return np.array(image.convert("RGB"))
    except DAMAGED as error:
        raise ImageError(f"{_start(name)} is damaged or cut off: {error}") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit and float greys keep their upper 8 bits; Pillow's own conversion would clip them."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F" and values.max(initial=0) <= 1:
        values = values * 255
    elif image.mode != "F" and values.max(initial=0) > 255:
        values = values / 257
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _start(name: str) -> str:
    return name[0].upper() + name[1:]
