"""Calibration: what is subtracted from the scores of labels, for each question with its set of labels.

A task's manifest holds it as a list, and the trainer's files of calibrations hold the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ._fields import number, of_type, read_text, read_texts, whole

FEATURE = "calibration"  # named in a manifest's `requires`: a client that passes it over gives other answers
KEYS = ("question", "labels", "offsets", "n_pictures")


@dataclass(frozen=True)
class LabelOffsets:
    """What is subtracted from the scores of one set of labels as answers to one question.

    Attributes:
        question: the text.
        labels: the texts, each once.
        offsets: for each label what is usual of it over pictures without answers, on the scale of its scores.
        n_pictures: the number of these pictures.
    """

    question: str
    labels: tuple[str, ...]
    offsets: tuple[float, ...]
    n_pictures: int


Calibrated = tuple[LabelOffsets, ...]


def offsets_for(calibration: Calibrated, question: str, labels: Sequence[str]) -> NDArray[np.float64]:
    """Return what is subtracted from the scores of labels, in their order: zeros where nothing is known.

    Offsets are known for the very text of the question with the same set of labels: what is usual depends on both.
    """
    wanted = sorted(labels)
    for known in calibration:
        if known.question == question and sorted(known.labels) == wanted:
            offsets = dict(zip(known.labels, known.offsets, strict=True))
            return np.array([offsets[label] for label in labels])
    return np.zeros(len(labels))


def read_calibration(value: Any, where: str) -> Calibrated:
    """Read the list of a manifest or of a calibration's file; raises BundleError for any other value."""
    found: list[LabelOffsets] = []
    known: set[tuple[str, ...]] = set()
    for i, item in enumerate(of_type(value, where, list)):
        place = f"{where}[{i}]"
        content = of_type(item, place, dict)
        if missing := [key for key in KEYS if key not in content]:
            raise BundleError(f"{place} lacks {missing[0]!r}.")
        labels = read_texts(content["labels"], f"{place}.labels")
        offsets = tuple(number()(offset, f"{place}.offsets") for offset in of_type(content["offsets"], place, list))
        if not labels or "" in labels or len(set(labels)) != len(labels) or len(offsets) != len(labels):
            raise BundleError(f"{place} must have labels, each once and none empty, and one offset for each.")
        question = read_text(content["question"], f"{place}.question")
        if (key := (question, *sorted(labels))) in known:
            raise BundleError(f"{place} is about a question and labels that came before: {question[:80]!r}.")
        known.add(key)
        found.append(LabelOffsets(question, labels, offsets, whole(1)(content["n_pictures"], f"{place}.n_pictures")))
    return tuple(found)
