"""Where pictures and questions come from.

A kind of source a file: drawn scenes, parquet folders, JSONL of your own, class folders, what torchvision loads,
Hateful Memes, POPE. `open_data` tells which of them a name or a folder is.
"""

from .drawn import Scenes
from .folders import ClassFolder
from .jsonl import Jsonl
from .memes import HatefulMemes
from .parquet import Parquet
from .pope import Pope
from .sample import Data, Question, Sample, Subset, split
from .sources import open_data
from .vision import IMAGENETTE, Vision

__all__ = [
    "IMAGENETTE",
    "ClassFolder",
    "Data",
    "HatefulMemes",
    "Jsonl",
    "Parquet",
    "Pope",
    "Question",
    "Sample",
    "Scenes",
    "Subset",
    "Vision",
    "open_data",
    "split",
]
