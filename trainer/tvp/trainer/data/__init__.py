"""Where pictures and questions come from.

Each source has a file: drawn scenes, parquet folders, JSONL files, class folders, torchvision's data sets, Hateful
Memes and POPE. `open_data` finds out which of them a name or a folder is.
"""

from .drawn import Scenes
from .folders import ClassFolder
from .jsonl import Jsonl
from .memes import HatefulMemes
from .parquet import Parquet
from .pictures import Pairs, Pictures, has_pictures
from .pope import Pope
from .sample import Data, Question, Row, Sample, Subset, picture_of, questions_of, readable, report, row_of, split
from .sources import open_data
from .through import ThroughCamera
from .vision import IMAGENETTE, Vision

__all__ = [
    "IMAGENETTE",
    "ClassFolder",
    "Data",
    "HatefulMemes",
    "Jsonl",
    "Pairs",
    "Parquet",
    "Pictures",
    "Pope",
    "Question",
    "Row",
    "Sample",
    "Scenes",
    "Subset",
    "ThroughCamera",
    "Vision",
    "has_pictures",
    "open_data",
    "picture_of",
    "questions_of",
    "readable",
    "report",
    "row_of",
    "split",
]
