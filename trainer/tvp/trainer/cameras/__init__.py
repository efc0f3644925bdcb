"""Cameras: what spoils a picture.

A camera is a composition of parts (`gain`, `noise`, `fog` …), each at a severity from 1 to 5 or at values of its own,
fixed or drawn for each picture. `parse` reads one from a text, and `str` writes it:

    parse("gain=0.32,cast=1/0.62/0.38,noise=0.04").shoot(picture, seed)
"""

from .camera import Camera, Part, form
from .kinds import KINDS, SEVERITIES, Kind
from .texts import CORRUPTIONS, HELP, NAMED, parse, parse_columns, parse_corruption

__all__ = [
    "CORRUPTIONS",
    "HELP",
    "KINDS",
    "NAMED",
    "SEVERITIES",
    "Camera",
    "Kind",
    "Part",
    "form",
    "parse",
    "parse_columns",
    "parse_corruption",
]
