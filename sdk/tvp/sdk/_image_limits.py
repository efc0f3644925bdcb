"""What a picture may cost: `ImageLimits`, and how one picture that is being read is held to them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from numbers import Integral, Real

from .errors import ImageError, RequestError

MAX_RATIO = 100  # of the sides: a narrow strip would be enlarged to gigabytes before its middle is cut out
MEMORY = 10  # bytes a permitted pixel, and some for small pictures
SMALL = 2**25


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


@dataclass(eq=False, repr=False)
class Reading:
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
