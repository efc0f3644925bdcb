"""Opening a picture's file with Pillow, at a cost that its reader has limited."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from ._image_headers import Refused, declared, find_format, name_other, orientation, tiff_tags
from ._image_limits import Reading
from ._image_tiff import unread

MAX_SLOW = 4_000_000  # pixels of a file that Pillow decodes in Python, which takes some seconds
MAX_READS = 200_000  # that Pillow's Python code takes to read a header, or the pieces around pixels
SCANNED = 10**9  # pixels a second: no decoder goes over a picture faster
# The formats of cameras and phones, and Pillow's class for each. Pillow opens many more, some by starting programs.
PLUGINS = {
    "PNG": "PIL.PngImagePlugin:PngImageFile",
    "JPEG": "tvp.sdk._image_files:Jpeg",
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


class _Stream(io.BytesIO):
    """The bytes of a file, which end with an error where a reader takes too many pieces or too much time.

    Pillow reads headers, chunks and blocks in Python, one after the other, and feeds most decoders in pieces.
    """

    def __init__(self, data: bytes, reading: Reading) -> None:
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


def read_file(path: Path, reading: Reading) -> bytes:
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


def open_image(data: bytes, reading: Reading) -> Image.Image:
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
    image: Image.Image
    try:
        image = plugin(stream)
    except (SyntaxError, KeyError):  # Pillow's, for samples and for a compression that it does not know
        if format != "TIFF":
            raise
        raise reading.error(unread(tiff_tags(data), data[:2])) from None
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


class Jpeg(JpegImageFile):
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


def _refuse_slow(image: Any, n_bytes: int, reading: Reading) -> None:
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


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of a picture that `open_image` opened and whose pixels are loaded."""
    return 1 if image.format == "TIFF" else orientation(image.info)  # Pillow turns a TIFF itself
