"""TIFF files whose values Pillow reads otherwise than they are meant, and those that it does not read.

What Pillow makes of every kind was compared with TIFF 6.0, see tests/sdk/test_image_tiff.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._image_limits import Reading

BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, PLANAR, INKS = 258, 259, 262, 266, 284, 332
EXTRA, FORMAT, SUBSAMPLING = 338, 339, 530
FORMATS = {1: "whole numbers", 2: "signed numbers", 3: "floating-point numbers", 6: "complex numbers"}
COLOURS = {
    0: "grey, white is 0",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "transparency mask",
    5: "CMYK",
    6: "YCbCr",
    8: "Lab",
    9: "Lab",
    10: "Lab",
    32803: "colour filter",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}


def load_tiff(image: Any, reading: Reading) -> None:
    """Load a TIFF that Pillow opened, or that somebody loaded before.

    Raises:
        ImageError: Pillow gives wrong values of its kind, or none.
    """
    tags = image.tag_v2
    bits, extra = _values(tags, BITS, 1), _values(tags, EXTRA)
    colour, form, inks = (_values(tags, tag, 1)[0] for tag in (PHOTOMETRIC, FORMAT, INKS))
    raw = not getattr(image, "use_load_libtiff", False)
    wrong = form == 2 or (form == 1 and max(bits) > 16)
    wrong |= colour == 5 and inks != 1
    wrong |= colour == 6 and bool(extra or (raw and _values(tags, SUBSAMPLING, 1) not in ((1,), (1, 1))))
    if _values(tags, PLANAR, 1)[0] == 2 and len(bits) > 1:
        wrong |= colour == 8 or ((colour < 2 or colour == 3) and any(extra))
        wrong |= raw and not (colour in (2, 5) and max(bits) == 8 and extra in ((), (2,)))
    if form == 3 and not raw and tags.prefix == b"MM":
        # libtiff gives the machine's own byte order, and Pillow expects the file's.
        wrong |= not image.tile
        image.tile = [tile._replace(args=(tile.args[0].replace("32BF", "32NF"), *tile.args[1:])) for tile in image.tile]
    try:
        if not wrong:
            image.load()
    except ValueError as error:
        wrong = "unknown raw mode" in str(error)
        if not wrong:
            raise
    if wrong:
        raise reading.error(unread(tags, tags.prefix))


def unread(tags: Mapping[int, Any], order: bytes) -> str:
    """Return the rest of a sentence that says which kind of TIFF is not read.

    Args:
        tags: first values, or all of them, by their numbers.
        order: the file's first two bytes.
    """
    bits = sorted(set(_values(tags, BITS, 1)))
    said = [
        COLOURS.get(kind := _values(tags, PHOTOMETRIC, 0)[0], f"photometric interpretation {kind}"),
        *(["samples in planes"] if _values(tags, PLANAR, 1)[0] == 2 else []),
        *(["with extra samples"] if _values(tags, EXTRA) else []),
        *(["lowest bits first"] if _values(tags, FILL_ORDER, 1)[0] == 2 else []),
        *(["subsampled"] if _values(tags, SUBSAMPLING, 1) not in ((1,), (1, 1)) else []),
        f"compression {_values(tags, COMPRESSION, 1)[0]}",
        "little-endian" if order == b"II" else "big-endian",
    ]
    return (
        f"is a TIFF of {FORMATS.get(_values(tags, FORMAT, 1)[0], 'other values')} of {', '.join(map(str, bits))} bits "
        f"({', '.join(said)}), which is not read. Save it as PNG, or as TIFF of 8 or 16 bits without a sign"
    )


def white_of(image: Any) -> float:
    """Return the value that is white in a loaded grey TIFF of 12 or 16 bits."""
    return float(2 ** _values(image.tag_v2, BITS, 1)[0] - 1)


def is_inverted(image: Any) -> bool:
    """Return whether 0 is white in a loaded grey TIFF; Pillow itself inverts those of up to 8 bits."""
    return bool(_values(image.tag_v2, PHOTOMETRIC, 0)[0] == 0)


def _values(tags: Mapping[int, Any], tag: int, *default: int) -> tuple[Any, ...]:
    found = tags.get(tag, default)
    return found if isinstance(found, tuple) else (found,)
