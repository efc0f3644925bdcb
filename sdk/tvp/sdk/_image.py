"""Reading pictures from a path, bytes, a PIL image or an array."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ._image_limits import DEFAULT, ImageLimits, Reading
from .errors import ImageError, RequestError

ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
Background = str | tuple[int, int, int]
Reader = Callable[[ImageLike], NDArray[np.uint8]]

STRIP = 2**21  # pixels converted at once
# Orientation -> quarter turns to the left, then whether to swap left and right.
UPRIGHT = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


def read_image(
    source: ImageLike, limits: ImageLimits = DEFAULT, *, background: Background = "white"
) -> NDArray[np.uint8]:
    """Read a picture as upright RGB pixels.

    EXIF orientation is applied. Palette, grey, CMYK and 16-bit pictures are converted; of floating-point
    values 1 is white, or 255 where some are above 2. Of an animation, the first frame is read.

    Transparent pixels are laid on white, as browsers show them, and as the processors of Idefics2 do. Most other
    models' processors (CLIP, SigLIP, LLaVA, Qwen2-VL) drop the transparency, which shows colours that nobody sees. On
    black, a black drawing would vanish.

    Args:
        source: a path, the bytes of a file, a PIL image, or a uint8 array (height, width, 3) of values from 0 to 255.
        limits: what the picture may cost; see `ImageLimits`.
        background: what shows through transparent pixels: a name or `#rrggbb` as Pillow knows them, or (r, g, b).

    Returns:
        uint8 (height, width, 3).

    Raises:
        ImageError: the picture is unreadable, cut off or empty, above a limit, or one side is more than 100 times the
            other.
        RequestError: the limits or the background are wrong.
    """
    return make_reader(limits, background)(source)


def make_reader(limits: ImageLimits, background: Background) -> Reader:
    """Return `read_image` with these settings, which are checked once; raises RequestError where they are wrong."""
    if not isinstance(limits, ImageLimits):
        raise RequestError(f"limits is {limits!r}; give ImageLimits(pixels=…, bytes=…, seconds=…).")
    colour = _parse_background(background)
    return lambda source: _read(source, Reading(limits, colour))


def _read(source: ImageLike, reading: Reading) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return _from_array(source, reading)
    if isinstance(source, Image.Image):
        reading.name = "the PIL image"
        return _decode(source, reading, _orientation_in_memory)
    # Imported with the first file: Pillow's classes and the readers of headers cost more than they are worth to a
    # caller that has arrays.
    from ._image_files import open_image, orientation_of, read_file

    if isinstance(source, bytes | bytearray | memoryview):
        reading.name = "the image data"
        reading.check_bytes(memoryview(source).nbytes)
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        reading.name = f"the image file {Path(source)}"
        data = read_file(Path(source), reading)
    else:
        raise ImageError(
            f"A {type(source).__name__} is not a picture; it must be a path, bytes, a PIL image "
            "or a uint8 array (height, width, 3)."
        )
    if not data:
        raise reading.error("is empty (0 bytes). Give another picture")
    try:
        with open_image(data, reading) as image:
            return _decode(image, reading, orientation_of)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # the program's own limit, in those classes that look at it
        raise reading.error(f"is too large: {str(error).rstrip('.')}. Give a smaller picture") from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged data
        raise _damaged(error, reading) from error


def _parse_background(colour: Background) -> tuple[int, int, int]:
    try:
        values = ImageColor.getrgb(colour) if isinstance(colour, str) else tuple(colour)
        if len(values) == 3 and all(type(value) is int and 0 <= value <= 255 for value in values):
            return values[0], values[1], values[2]
    except (TypeError, ValueError):
        pass
    raise RequestError(
        f"The background is {colour!r}; it must be a colour such as 'white', '#ffffff' or (255, 255, 255)."
    )


def _from_array(array: NDArray[np.uint8], reading: Reading) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"The array is {array.dtype} {array.shape}; a picture must be uint8 (height, width, 3) and not empty."
        )
    reading.check_size(array.shape[1], array.shape[0])
    return np.ascontiguousarray(array)


def _decode(image: Image.Image, reading: Reading, orientation_of: Callable[[Image.Image], int]) -> NDArray[np.uint8]:
    reading.check_size(*image.size)
    try:
        if _is_tiff(image):
            from ._image_tiff import load_tiff

            load_tiff(image, reading)
        image.load()
        turned, mirrored = UPRIGHT.get(orientation_of(image), (0, False))
        pixels = np.rot90(_to_rgb(image, reading), turned)
        return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
    except ImageError:
        raise
    except Exception as error:  # as in _read
        raise _damaged(error, reading) from error


def _damaged(error: Exception, reading: Reading) -> ImageError:
    if isinstance(error, MemoryError):
        return reading.error("needs more memory than there is. Give a smaller picture")
    return reading.error(f"is damaged or cut off: {str(error).rstrip('.') or type(error).__name__}")


def _orientation_in_memory(image: Image.Image) -> int:
    """Return the orientation of an image that may hold EXIF data which was never in a file."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a picture whose metadata is damaged can still be read
        return 1


def _is_tiff(image: Image.Image) -> bool:
    return image.format == "TIFF" and hasattr(image, "tag_v2")


def _strips(image: Image.Image, reading: Reading) -> Iterator[tuple[int, Image.Image]]:
    """Yield the place of the first row, and the rows, of each strip of a loaded image."""
    width, height = image.size
    n_rows = max(1, min(STRIP, Image.MAX_IMAGE_PIXELS or STRIP) // width)  # Pillow warns of a larger strip
    for top in range(0, height, n_rows):
        reading.check_time()
        yield top, image.crop((0, top, width, min(height, top + n_rows)))


def _white(image: Image.Image, reading: Reading) -> tuple[float, bool]:
    """Return the value that is white in a loaded grey image of many bits, and whether 0 is white instead.

    Pillow would clip at 255. A file may say it; otherwise only the values show it.
    """
    inverted = False
    if _is_tiff(image):
        from ._image_tiff import is_inverted, white_of

        inverted = is_inverted(image)
        if image.mode != "F":
            return white_of(image), inverted
    if (image.format == "PPM" and image.mode == "I") or image.mode.startswith("I;16"):  # Pillow scales a deep PGM so
        return 65535.0, inverted
    least, most = math.inf, -math.inf
    for _, strip in _strips(image, reading):
        values = np.asarray(strip)
        values = values[np.isfinite(values)]
        if values.size:
            least, most = min(least, float(values.min())), max(most, float(values.max()))
    if image.mode == "F" and most <= 2:  # a resized picture may reach a little beyond 1
        return 1.0, inverted
    if most <= 255.5 and (image.mode == "F" or least >= 0):
        return 255.0, inverted
    if image.mode == "I" and least >= 0 and most <= 65535:
        return 65535.0, inverted
    raise reading.error(
        f"has values from {least:g} to {most:g}, and does not say which is white. Give floating-point values up to 1 "
        "or 255, or whole numbers of 8 or 16 bits"
    )


def _to_rgb(image: Image.Image, reading: Reading) -> NDArray[np.uint8]:
    """Return a loaded image as uint8 (height, width, 3).

    It is converted strip by strip: a file of some KB may hold 100 megapixels, and each of Pillow's conversions makes a
    copy of up to 8 bytes a pixel.
    """
    width, height = image.size
    white, inverted = _white(image, reading) if image.mode.startswith(("I", "F")) else (255.0, False)
    pixels = np.empty((height, width, 3), np.uint8)
    for top, strip in _strips(image, reading):
        shows = None  # where the background does
        if strip.mode.startswith(("I", "F")):
            values = np.nan_to_num(np.asarray(strip).astype(np.float64), posinf=white, neginf=0)
            if isinstance(clear := strip.info.get("transparency"), int):  # the grey that stands for transparent
                shows = values == clear
            shares = values.clip(0, white) / white
            strip = Image.fromarray(np.rint(255 * (1 - shares if inverted else shares)).astype(np.uint8))
        elif strip.mode == "La":  # grey, multiplied by its alpha
            strip = strip.convert("LA")
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, (*reading.background, 255)), strip)
        part = pixels[top : top + strip.height]
        part[:] = np.asarray(strip.convert("RGB"))
        if shows is not None:
            part[shows] = reading.background
    return pixels
