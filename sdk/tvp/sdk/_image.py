"""Reading pictures from a path, bytes, a PIL image or an array."""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# Image.open knows a named format only once its plugin is imported.
from PIL import TiffImagePlugin as _tiff  # noqa: F401
from PIL import WebPImagePlugin as _webp  # noqa: F401

from .errors import ImageError

ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

MAX_PIXELS = 100_000_000  # 10,000 x 10,000: more than cameras make, far less than a decompression bomb
MAX_BYTES = 256 * 2**20
MAX_RATIO = 100  # of the sides: a narrow strip would be enlarged to gigabytes before its middle is cut out
MAX_SLOW = 4_000_000  # pixels of a file that Pillow decodes in Python, which takes some seconds
STRIP = 2**21  # pixels converted at once
ORIENTATION = 0x0112  # of EXIF
# Orientation -> quarter turns to the left, then whether to swap left and right.
UPRIGHT = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
# The formats of cameras and phones. Pillow opens many more, some of them by starting other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_opening = threading.Lock()


def read_image(source: ImageLike) -> NDArray[np.uint8]:
    """Read a picture as upright RGB pixels.

    EXIF orientation is applied, and alpha is laid on black. Palette, grey, CMYK and 16-bit pictures are converted. Of
    an animation, the first frame is read.

    Args:
        source: a path, the bytes of a file, a PIL image, or a uint8 array (height, width, 3) of values from 0 to 255.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ImageError: the picture is unreadable, cut off or empty, has more than 100 megapixels or 256 MiB, or one side
            is more than 100 times the other.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the PIL image")
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), "the image data"
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        name = f"the image file {path}"
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise ImageError(f"{_capital(name)} cannot be read: it is a folder. Give a file.")
            if not stat.S_ISREG(status.st_mode):  # a pipe may never begin, and a device may never end
                raise ImageError(f"{_capital(name)} cannot be read: it is a pipe or a device. Give its bytes instead.")
            with open(path, "rb") as stream:
                data = stream.read(MAX_BYTES + 1)  # a file in /proc has no size to check
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise ImageError(
                f"{_capital(name)} cannot be read: {getattr(error, 'strerror', None) or error}."
            ) from error
    else:
        raise ImageError(
            f"A {type(source).__name__} is not a picture; it must be a path, bytes, a PIL image "
            "or a uint8 array (height, width, 3)."
        )
    if len(data) > MAX_BYTES:
        raise ImageError(f"{_capital(name)} is larger than {MAX_BYTES >> 20} MiB. Give a smaller picture.")
    if not data:
        raise ImageError(f"{_capital(name)} is empty (0 bytes). Give another picture.")
    try:
        with _open(data) as image:
            return _decode(image, name)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{_capital(name)} is not a picture in a known format; known are {', '.join(FORMATS)}."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{_capital(name)} is too large: {error} Give a smaller picture.") from error
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged data
        raise ImageError(f"{_capital(name)} is damaged or cut off: {error}.") from error


def _open(data: bytes) -> Image.Image:
    # Pillow warns at a limit of its own; ours is an error. Warning filters belong to the whole process, and threads
    # that change them at once could leave them changed. So threads take turns, and only the header is read here.
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"The array is {array.dtype} {array.shape}; a picture must be uint8 (height, width, 3) and not empty."
        )
    _check_size(array.shape[1], array.shape[0], "the array")
    return np.ascontiguousarray(array)


def _decode(image: Image.Image, name: str) -> NDArray[np.uint8]:
    _check_size(*image.size, name)
    if image.format == "PPM" and image.width * image.height > MAX_SLOW and _is_slow(image):
        raise ImageError(
            f"{_capital(name)} is a PPM file of {image.width} x {image.height} pixels, as text or with a largest value "
            f"other than 255. Pillow reads it value by value; at most {MAX_SLOW:,} pixels are allowed. Save it as PNG."
        )
    try:
        image.load()
        turned, mirrored = UPRIGHT.get(_orientation(image), (0, False))
        pixels = _to_rgb(image)
        pixels = np.rot90(pixels, turned)
        return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
    except MemoryError as error:
        raise ImageError(f"{_capital(name)} needs more memory than there is. Give a smaller picture.") from error
    except Exception as error:  # as in read_image
        raise ImageError(f"{_capital(name)} is damaged or cut off: {error}.") from error


def _is_slow(image: Image.Image) -> bool:
    """Return whether Pillow decodes a PPM file in Python."""
    return any(tile[0] != "raw" for tile in getattr(image, "tile", ()))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a picture whose metadata is damaged can still be read
        return 1


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return a loaded image as uint8 (height, width, 3).

    It is converted strip by strip: a file of some KB may hold 100 megapixels, and each of Pillow's conversions makes a
    copy of up to 8 bytes a pixel.
    """
    width, height = image.size
    # 16-bit grey keeps its upper 8 bits, and floats in [0, 1] are scaled to 255. Pillow would clip both.
    scale = 1.0
    if image.mode == "F":
        scale = 255.0 if image.getextrema()[1] <= 1 else 1.0  # type: ignore[operator]
    elif image.mode.startswith("I"):  # in some formats, mode I has 16-bit values too
        # Only the values show which; but Pillow scales every PGM of more than 8 bits to 16.
        deep = image.mode != "I" or image.format == "PPM" or image.getextrema()[1] > 255  # type: ignore[operator]
        scale = 1 / 257 if deep else 1.0
    pixels = np.empty((height, width, 3), np.uint8)
    n_rows = max(1, STRIP // width)
    for top in range(0, height, n_rows):
        strip = image.crop((0, top, width, min(height, top + n_rows)))
        if strip.mode.startswith("I") or strip.mode == "F":
            values = np.nan_to_num(np.asarray(strip).astype(np.float64), posinf=2**16, neginf=0)
            if isinstance(clear := strip.info.get("transparency"), int):  # the grey that stands for transparent
                values[values == clear] = 0
            values *= scale
            strip = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
        if "A" in strip.getbands() or "transparency" in strip.info:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, (0, 0, 0, 255)), strip)
        pixels[top : top + n_rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _check_size(width: int, height: int, name: str) -> None:
    if not width or not height:
        raise ImageError(f"{_capital(name)} has no pixels ({width} x {height}). Give another picture.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{_capital(name)} has {width} x {height} pixels; at most {MAX_PIXELS:,} are allowed. Shrink it."
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            f"{_capital(name)} has {width} x {height} pixels; one side may be at most {MAX_RATIO} times the other. "
            "Crop it."
        )


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]
