"""POPE (arXiv 2305.10355) as published: JSON lines, and pictures of COCO's val2014."""

from __future__ import annotations

import re
from typing import Any

from tvp.sdk.errors import DataError

from .rows import Entry, Rows
from .sample import Question

LABELS = ("yes", "no")
_OBJECT = re.compile(r"is there (an? .+?)(?: in the \w+)?\s*\?", re.IGNORECASE)  # POPE also spells it 'imange'


class Pope(Rows):
    """A file of the set, such as coco_pope_random.json, with one JSON object a line.

    A row has image (the name of a COCO picture), text (the question), and label (yes or no); question_id is not
    read. Pictures are looked for in the folders val2014 and images beside the file, then beside the file itself. For
    the arguments and errors see `Rows`.
    """

    needs = "image, text, label (yes or no)"

    def _parse(self, where: str, row: dict[str, Any]) -> Entry:
        name = self._text(where, row, "image")
        text = self._text(where, row, "text")
        answer = self._text(where, row, "label")
        if answer not in LABELS:
            raise DataError(f"{where} has the label {answer!r}; it must be yes or no.")
        image = self._picture(where, name, "val2014", "images", "")
        return Entry(image, Question(text, answer, LABELS), _caption(text, answer))


def _caption(text: str, answer: str) -> str:
    """'a snowboard' or 'a scene without a snowboard', for 'Is there a snowboard in the image?'."""
    asked = _OBJECT.fullmatch(text)
    if asked is None:
        return "a scene"
    return asked[1] if answer == "yes" else f"a scene without {asked[1]}"
