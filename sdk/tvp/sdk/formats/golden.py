"""Golden cases: what PyTorch answered at the export, as files that travel with a bundle.

`golden/cases.json` holds the cases, and each names a picture beside it. A case is of a kind: `answer` (tokens of a
greedy answer) or `ranking` (scores of labels).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BundleError
from .manifest import GOLDEN

FORMAT = 2
MAX_BYTES = 2**24  # of the file; a case that ranks a thousand labels has tens of thousands
TIE = 1e-4  # scores that are closer may come in either order: rounding turns such labels around


@dataclass(frozen=True)
class AnswerCase:
    """A greedy answer.

    Attributes:
        picture: name of the picture's file in the folder `golden`.
        question: what was asked.
        tokens: ids of the answer's tokens, the end token included where the model gave one.
        text: the answer.
        log_probabilities: of each token, natural logarithm.
        anew: whether the bundle itself answered, after an edit, and not PyTorch at the export.
    """

    kind: ClassVar[str] = "answer"

    picture: str
    question: str
    tokens: tuple[int, ...]
    text: str
    log_probabilities: tuple[float, ...]
    anew: bool = False

    def difference(
        self, tokens: Sequence[int], text: str, log_probabilities: Sequence[float], tolerance: float
    ) -> tuple[str, float]:
        """Compare an answer with this one.

        Args:
            tokens, text, log_probabilities: the answer that was given.
            tolerance: of a log-probability; `inf` compares tokens alone.

        Returns:
            What differs, in words ('' for nothing), and the largest difference of a log-probability.
        """
        if tuple(tokens) != self.tokens:
            return f"answered {text!r}, expected {self.text!r}", 0.0
        gap = float(np.abs(np.subtract(log_probabilities, self.log_probabilities, dtype=np.float64)).max())
        if not gap <= tolerance:
            return f"log-probabilities differ by {gap:.2e}, allowed is {tolerance:.0e}", gap
        return "", gap


@dataclass(frozen=True)
class RankingCase:
    """Scores of labels.

    Attributes:
        picture, question: as of `AnswerCase`.
        labels: what was ranked.
        scores: of each label, in the order of `labels`.
        text: the best label.
        anew: as of `AnswerCase`.
    """

    kind: ClassVar[str] = "ranking"

    picture: str
    question: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    text: str = ""
    anew: bool = False

    def difference(self, ranked: Sequence[tuple[str, float]], tolerance: float) -> tuple[str, float]:
        """Compare a ranking with this one.

        Args:
            ranked: (label, score), the best first.
            tolerance: of a score; `inf` compares the best label alone.

        Returns:
            What differs, in words ('' for nothing), and the largest difference of a score.
        """
        expected = dict(zip(self.labels, self.scores, strict=True))
        gap = float(np.max([abs(score - expected[label]) for label, score in ranked]))  # of NaN too, unlike max
        given = [expected[label] for label, _ in ranked]
        if not falls(given if math.isfinite(tolerance) else [given[0], max(given)]):
            order = ", ".join(repr(label) for label in sorted(expected, key=lambda label: -expected[label])[:5])
            return f"ranked {', '.join(repr(label) for label, _ in ranked[:5])}, expected {order}", gap
        if not gap <= tolerance:
            return f"scores differ by {gap:.2e}, allowed is {tolerance:.0e}", gap
        return "", gap


GoldenCase = AnswerCase | RankingCase


def falls(scores: Sequence[float]) -> bool:
    """Return whether scores fall; two that are within TIE of each other may stand in either order."""
    best_behind = -math.inf
    for score in reversed(scores):
        if score < best_behind - TIE:
            return False
        best_behind = max(best_behind, score)
    return True


def write_cases(folder: Path, cases: Sequence[GoldenCase], pictures: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write golden cases into a bundle.

    Args:
        folder: of the bundle.
        cases: any number, also none.
        pictures: uint8 (height, width, 3), by the name that a case gives it.
    """
    file = folder / GOLDEN
    file.parent.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(file.parent / name)
    rows: list[dict[str, Any]] = [{"kind": case.kind, **asdict(case)} for case in cases]
    for row in rows:
        if not row["anew"]:
            del row["anew"]
    content = {"format": FORMAT, "cases": rows}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_cases(folder: Path) -> list[GoldenCase]:
    """Read the golden cases of the bundle in a folder, at least one; raises BundleError for anything else."""
    file = folder / GOLDEN
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            raise BundleError(
                f"The golden cases {file} are missing or larger than {MAX_BYTES >> 20} MiB. Export the bundle again."
            )
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"The golden cases {file} cannot be read: {error}.") from error
    if isinstance(content, dict):
        version, content = content.get("format"), content.get("cases")
        if type(version) is not int or version > FORMAT:
            raise BundleError(f"{file} is of format {version!r}, and this TVP reads up to {FORMAT}. Update TVP.")
    if not isinstance(content, list) or not content:
        raise BundleError(f"The golden cases {file} are not a list of at least one case. Export the bundle again.")
    return [_case(value, f"{file}: case {number}") for number, value in enumerate(content)]


def _case(value: Any, where: str) -> GoldenCase:
    if not isinstance(value, dict):
        raise BundleError(f"{where} is not a JSON object. Export the bundle again.")
    kind = value.get("kind", "ranking" if "labels" in value else "answer")  # format 1 does not say it
    if kind not in (AnswerCase.kind, RankingCase.kind):
        raise BundleError(f"{where} is of the kind {kind!r}, which this TVP does not know. Update TVP.")
    if wrong := _wrong(value, kind):
        raise BundleError(f"{where} {wrong}. Export the bundle again.")
    picture, question, text = value["picture"], value["question"], value.get("text", "")
    anew = value.get("anew", False) is True
    if kind == RankingCase.kind:
        return RankingCase(picture, question, tuple(value["labels"]), tuple(value["scores"]), text, anew)
    return AnswerCase(picture, question, tuple(value["tokens"]), text, tuple(value["log_probabilities"]), anew)


def _wrong(case: dict[str, Any], kind: str) -> str:
    """What is wrong with a golden case, or '' where nothing is."""
    for key in ("picture", "question", "text"):
        if not isinstance(case.get(key, "" if (kind, key) == ("ranking", "text") else None), str):
            return f"has no text {key!r}"
    if case["picture"] in ("", "..") or Path(case["picture"]).name != case["picture"] or "\\" in case["picture"]:
        return f"names the picture {case['picture']!r}, which would lie outside of its folder"
    if kind == RankingCase.kind:
        labels, scores = case.get("labels"), case.get("scores")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            return "has no list of texts 'labels'"
        if not labels or len(set(labels)) != len(labels):
            return "has no labels, or one twice"
        if not isinstance(scores, list) or len(scores) != len(labels):
            return "has no list 'scores' of one number a label"
    else:
        tokens, scores = case.get("tokens"), case.get("log_probabilities")
        if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
            return "has no list of token ids 'tokens'"
        if not isinstance(scores, list) or len(scores) != len(tokens):
            return "has no list 'log_probabilities' of one number a token"
    if not all(type(score) in (int, float) and abs(score) < 1e6 for score in scores):
        return "has a log-probability that is not a number, or is out of range"
    return ""
