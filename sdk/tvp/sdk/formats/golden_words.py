"""Golden words: how a bundle scored many words of its vocabulary at the export, about a picture that is resized.

Golden cases ask about a few words. Here labels are made of words from the whole vocabulary, so that many embeddings
and every matrix have a part in their scores. `golden/words.json` holds them, and names a picture beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BundleError
from ._fields import number, of_type, read_text, read_texts, read_versioned

FORMAT = 2
PICTURE, FILE = "words.png", "golden/words.json"  # the picture lies beside the file
MAX_BYTES = 2**20  # of the file; a real one has some ten thousand


@dataclass(frozen=True)
class GoldenWords:
    """Scores of labels that are made of words from the vocabulary.

    Attributes:
        question: what was asked.
        labels: texts of some words each.
        scores: of each label, as `rank` gives them: PyTorch's in fp32, else the bundle's own.
        within: how far a score may be from them on any machine. In fp32 it is the parity gate's bound. Below, it is how
            far the lower precision itself has moved the scores.
    """

    question: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    within: float

    def gap(self, scores: Mapping[str, float]) -> float:
        """Return the largest difference of a label's score; NaN if one is."""
        return float(np.max([abs(scores[label] - own) for label, own in zip(self.labels, self.scores, strict=True)]))


def write_golden_words(folder: Path, picture: NDArray[np.uint8], words: GoldenWords) -> None:
    """Write golden words into a bundle, and the picture, uint8 (height, width, 3), that was asked about."""
    file = folder / FILE
    Image.fromarray(picture).save(file.parent / PICTURE)
    text = json.dumps({"format": FORMAT, **asdict(words)}, indent=1, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_golden_words(folder: Path) -> GoldenWords | None:
    """Read the golden words of a bundle; None where it was exported before there were any.

    Raises:
        BundleError: the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    content = read_versioned(file, "golden words", MAX_BYTES, FORMAT, "Export the bundle again.")
    labels = read_texts(content.get("labels"), f"{file}: labels")
    scores = [number()(score, f"{file}: scores") for score in of_type(content.get("scores"), f"{file}: scores", list)]
    if not labels or len(set(labels)) != len(labels) or len(scores) != len(labels):
        raise BundleError(f"{file} has no labels, one twice, or not as many scores. Export the bundle again.")
    question = read_text(content.get("question"), f"{file}: question")
    return GoldenWords(question, labels, tuple(scores), number(0.0)(content.get("within"), f"{file}: within"))
