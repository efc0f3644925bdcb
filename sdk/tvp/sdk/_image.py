"""Reading pictures from a path, bytes, a PIL image or an array."""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor
from PIL.JpegImagePlugin import JpegImageFile

from ._image_headers import Refused, declared, find_format, name_other, orientation
from .errors import ImageError, RequestError

ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
Background = str | tuple[int, int, int]
Reader = Callable[[ImageLike], NDArray[np.uint8]]

MAX_RATIO = 100  # of the sides: a narrow strip would be enlarged to gigabytes before its middle is cut out
MAX_SLOW = 4_000_000  # pixels of a file that Pillow decodes in Python, which takes some seconds
MAX_READS = 200_000  # that Pillow's Python code takes to read a header, or the pieces around pixels
MEMORY = 10  # bytes a permitted pixel, and some for small pictures
SMALL = 2**25
STRIP = 2**21  # pixels converted at once
SCANNED = 10**9  # pixels a second: no decoder goes over a picture faster
# Orientation -> quarter turns to the left, then whether to swap left and right.
UPRIGHT = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}
# The formats of cameras and phones, and Pillow's class for each. Pillow opens many more, some by starting programs.
PLUGINS = {
    "PNG": "PIL.PngImagePlugin:PngImageFile",
    "JPEG": "tvp.sdk._image:_Jpeg",
    "WEBP": "PIL.WebPImagePlugin:WebPImageFile",
    "GIF": "PIL.GifImagePlugin:GifImageFile",
    "BMP": "PIL.BmpImagePlugin:BmpImageFile",
    "TIFF": "PIL.TiffImagePlugin:TiffImageFile",
    "PPM": "PIL.PpmImagePlugin:PpmImageFile",
    "AVIF": "PIL.AvifImagePlugin:AvifImageFile",
    "HEIF": "pillow_heif:HeifImageFile",
}
KNOWN = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, AVIF and HEIC"
HEIC = "It is a HEIC picture, as phones take them; `pip install 'tvp-edge[heif]'` adds what reads it"


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost. A service that reads strangers' pictures sets less than the defaults.

    Of a PIL image, which its caller has opened, only `pixels` counts, and the time behind its decoder.

    Attributes:
        pixels: width times height. Beside the file, reading takes at most 10 bytes for each of these, and 32 MiB. A
            format that needs more for a pixel (WebP, AVIF, HEIC) may have fewer.
        bytes: of the file.
        seconds: for reading a picture. What the file declares is refused before anything is decoded, where it must
            take longer. Time is then looked at whenever the decoder takes more of the file, and between steps.
            Decoders of WebP, AVIF, HEIC and TIFF take all at once and are not interrupted: `pixels` bounds them.
    """

    pixels: int = 100_000_000
    bytes: int = 256 * 2**20
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, kinds in (("pixels", Integral), ("bytes", Integral), ("seconds", Real)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds) or not float(value) > 0:
                raise RequestError(f"ImageLimits.{name} is {value!r}; it must be a number above 0.")


DEFAULT = ImageLimits()


def read_image(
    source: ImageLike, limits: ImageLimits = DEFAULT, *, background: Background = "white"
) -> NDArray[np.uint8]:
    """Read a picture as upright RGB pixels.

    EXIF orientation is applied. Palette, grey, CMYK and 16-bit pictures are converted. Of an animation, the first
    frame is read.

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
    return lambda source: _read(source, _Reading(limits, colour))


def _read(source: ImageLike, reading: _Reading) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return _from_array(source, reading)
    if isinstance(source, Image.Image):
        reading.name = "the PIL image"
        return _decode(source, reading, opened_here=False)
    if isinstance(source, bytes | bytearray | memoryview):
        reading.name = "the image data"
        reading.check_bytes(memoryview(source).nbytes)
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        reading.name = f"the image file {Path(source)}"
        data = _read_file(Path(source), reading)
    else:
        raise ImageError(
            f"A {type(source).__name__} is not a picture; it must be a path, bytes, a PIL image "
            "or a uint8 array (height, width, 3)."
        )
    if not data:
        raise reading.error("is empty (0 bytes). Give another picture")
    try:
        with _open(data, reading) as image:
            return _decode(image, reading, opened_here=True)
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


@dataclass
class _Reading:
    """One picture that is being read."""

    limits: ImageLimits
    background: tuple[int, int, int]
    name: str = "the array"

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.limits.seconds

    def error(self, rest: str) -> ImageError:
        """Return an error whose sentence begins with the picture's name."""
        return ImageError(f"{self.name[0].upper()}{self.name[1:]} {rest}.")

    def check_bytes(self, n_bytes: int) -> None:
        if n_bytes > self.limits.bytes:
            most = self.limits.bytes
            said = f"{most >> 20} MiB" if most >= 2**20 else f"{most:,} bytes"
            raise self.error(f"is larger than {said}. Give a smaller picture")

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise self.error(f"takes longer to read than {self.limits.seconds:g} s. Give a smaller picture")

    def check_size(self, width: int, height: int, bytes_a_pixel: float = 0) -> None:
        """Refuse a picture that has no pixels, too many, or one side that is far longer than the other."""
        if not width or not height:
            raise self.error(f"has no pixels ({width} x {height}). Give another picture")
        most = self.limits.pixels
        if bytes_a_pixel:
            most = min(most, int((self.limits.pixels * MEMORY + SMALL) / bytes_a_pixel))
        if width * height > most:
            why = ""
            if bytes_a_pixel > MEMORY and width * height <= self.limits.pixels:
                why = f" in such a file, which takes {bytes_a_pixel:.0f} bytes a pixel to read"
            raise self.error(f"has {width} x {height} pixels; at most {most:,} are allowed{why}. Shrink it")
        if max(width, height) > MAX_RATIO * min(width, height):
            raise self.error(
                f"has {width} x {height} pixels; one side may be at most {MAX_RATIO} times the other. Crop it"
            )


class _Stream(io.BytesIO):
    """The bytes of a file, which end with an error where a reader takes too many pieces or too much time.

    Pillow reads headers, chunks and blocks in Python, one after the other, and feeds most decoders in pieces.
    """

    def __init__(self, data: bytes, reading: _Reading) -> None:
        super().__init__(data)
        self.reading, self.n_left = reading, MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.n_left -= 1
        if self.n_left < 0:
            raise self.reading.error(
                "consists of far more pieces than those that programs write. It may be made to cost time; save the "
                "picture again"
            )
        self.reading.check_time()
        return super().read(size)


def _read_file(path: Path, reading: _Reading) -> bytes:
    def refuse_special(status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise reading.error("cannot be read: it is a folder. Give a file")
        if not stat.S_ISREG(status.st_mode):  # a pipe may never begin, and a device may never end
            raise reading.error("cannot be read: it is a pipe or a device. Give its bytes instead")

    def open_now(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        refuse_special(path.stat())  # before it is opened: that alone may do something to a device
        with open(path, "rb", opener=open_now) as stream:
            status = os.fstat(stream.fileno())
            refuse_special(status)
            reading.check_bytes(status.st_size)
            pieces: list[bytes] = []
            n_bytes = 0
            # A file may grow, and one in /proc has no size.
            while piece := stream.read(max(status.st_size - n_bytes, 2**16)):
                pieces.append(piece)
                n_bytes += len(piece)
                reading.check_bytes(n_bytes)
                reading.check_time()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise reading.error(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _open(data: bytes, reading: _Reading) -> Image.Image:
    """Open a file whose header costs nothing that the limits forbid.

    Pillow's classes are used, and not Image.open: that warns at a limit of its own, and a filter of warnings belongs
    to the whole process.
    """
    format = find_format(data)
    if format is None:
        other = name_other(data)
        raise reading.error(
            f"is not a picture in a known format{f': it looks like {other}' if other else ''}. Known are {KNOWN}. "
            "Save it as PNG or JPEG"
        )
    plugin = _plugin(format)
    if plugin is None:
        why = HEIC if format == "HEIF" else f"It is {format}, which this Pillow was built without; install another"
        raise reading.error(f"cannot be read here. {why}. Or save it as PNG or JPEG")
    try:
        said = declared(data, format)
    except Refused as refused:
        raise reading.error(str(refused)) from None
    if said.width and said.height:
        reading.check_size(said.width, said.height, said.bytes_a_pixel)
        if said.passes * said.width * said.height > reading.limits.seconds * SCANNED:
            raise reading.error(
                f"has {said.passes} scans of {said.width} x {said.height} pixels, which take longer to read than "
                f"{reading.limits.seconds:g} s. Give a smaller picture"
            )
    stream = _Stream(data, reading)
    image: Image.Image = plugin(stream)
    reading.check_size(*image.size)
    own = Image.MAX_IMAGE_PIXELS  # the program's, at the double of which Image.open refuses a picture
    if own and image.width * image.height > 2 * own:
        raise reading.error(
            f"has {image.width} x {image.height} pixels; this program allows twice Pillow's Image.MAX_IMAGE_PIXELS, "
            f"which is {own:,}. Shrink it"
        )
    _refuse_slow(image, len(data), reading)
    stream.n_left = MAX_READS + len(data) // 256
    if format == "TIFF":
        image.is_animated = True  # type: ignore[attr-defined]  # or all EXIF data is read at the end
    if format == "JPEG":
        image.decodermaxblock = 2**14  # type: ignore[attr-defined]  # so that time is looked at often
    return image


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Read nothing: Pillow would read all EXIF data for it; see `orientation`."""


def _plugin(format: str) -> Callable[[io.BytesIO], Any] | None:
    """Return Pillow's class for a format, or None where this installation cannot read it."""
    module, name = PLUGINS[format].split(":")
    try:
        plugin = import_module(module)
    except ImportError:
        return None
    return getattr(plugin, name) if getattr(plugin, "SUPPORTED", True) else None


def _refuse_slow(image: Any, n_bytes: int, reading: _Reading) -> None:
    """Refuse what Pillow would decode value by value, in Python, for more than some seconds."""
    if not any(tile[0] in Image.DECODERS for tile in image.tile):
        return
    n_pixels = image.width * image.height
    if n_pixels > MAX_SLOW or n_bytes > 16 * n_pixels + 2**16:
        raise reading.error(
            f"is a {image.format} file of {image.width} x {image.height} pixels and {n_bytes:,} bytes whose pixels are "
            f"compressed, written as text or with a largest value other than 255. Pillow reads it value by value; at "
            f"most {MAX_SLOW:,} pixels of 16 bytes are allowed. Save it as PNG"
        )
    image.fp.n_left = 4 * MAX_SLOW


def _from_array(array: NDArray[np.uint8], reading: _Reading) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageError(
            f"The array is {array.dtype} {array.shape}; a picture must be uint8 (height, width, 3) and not empty."
        )
    reading.check_size(array.shape[1], array.shape[0])
    return np.ascontiguousarray(array)


def _decode(image: Image.Image, reading: _Reading, *, opened_here: bool) -> NDArray[np.uint8]:
    reading.check_size(*image.size)
    try:
        image.load()
        turned, mirrored = _turned(image, opened_here)
        pixels = np.rot90(_to_rgb(image, reading), turned)
        return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
    except ImageError:
        raise
    except Exception as error:  # as in _read
        raise _damaged(error, reading) from error


def _damaged(error: Exception, reading: _Reading) -> ImageError:
    if isinstance(error, MemoryError):
        return reading.error("needs more memory than there is. Give a smaller picture")
    return reading.error(f"is damaged or cut off: {str(error).rstrip('.') or type(error).__name__}")


def _turned(image: Image.Image, opened_here: bool) -> tuple[int, bool]:
    """Return how to turn an image upright, as in UPRIGHT."""
    if not opened_here:  # it may hold EXIF data that was never in a file
        try:
            return UPRIGHT.get(int(image.getexif().get(0x0112, 1)), (0, False))
        except Exception:  # a picture whose metadata is damaged can still be read
            return 0, False
    return UPRIGHT.get(orientation(image.info), (0, False)) if image.format != "TIFF" else (0, False)  # Pillow turns it


def _to_rgb(image: Image.Image, reading: _Reading) -> NDArray[np.uint8]:
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
    n_rows = max(1, min(STRIP, Image.MAX_IMAGE_PIXELS or STRIP) // width)  # Pillow warns of a larger strip
    for top in range(0, height, n_rows):
        reading.check_time()
        strip = image.crop((0, top, width, min(height, top + n_rows)))
        shows = None  # where the background does
        if strip.mode.startswith("I") or strip.mode == "F":
            values = np.nan_to_num(np.asarray(strip).astype(np.float64), posinf=2**16, neginf=0)
            if isinstance(clear := strip.info.get("transparency"), int):  # the grey that stands for transparent
                shows = values == clear
            strip = Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, (*reading.background, 255)), strip)
        part = pixels[top : top + n_rows]
        part[:] = np.asarray(strip.convert("RGB"))
        if shows is not None:
            part[shows] = reading.background
    return pixels
