"""Hateful Memes (arXiv 2005.04790) as published: JSON lines, and a folder of pictures."""

from __future__ import annotations

import re
from typing import Any

from tvp.sdk.errors import DataError

from .rows import Entry, Rows
from .sample import Question

LABELS = ("no", "yes")  # by the number in the file
CAPTIONS = ("a harmless meme", "a hateful meme")
# The test is the first of these that is there: labels of the test set were published late.
NAME = re.compile(r"(train|dev|test)(_seen|_unseen)?\.jsonl")  # of any file of the set
FILES = {"train": ("train.jsonl",), "test": ("test_seen.jsonl", "dev_seen.jsonl")}


class HatefulMemes(Rows):
    """A file of the set, such as train.jsonl, with one JSON object a line.

    A row has img (a path, from the file's folder), label (0 or 1), and text, which is written on the meme. Other
    keys, such as id, are not read. For the arguments and errors see `Rows`.
    """

    needs = "img, label (0 or 1), text"

    def _parse(self, where: str, row: dict[str, Any]) -> Entry:
        image = self._text(where, row, "img")
        text = self._text(where, row, "text")
        if "label" not in row:
            raise DataError(
                f"{where} has no label. The first release kept the labels of its test secret. "
                "Use a file that has them, such as test_seen.jsonl or dev_seen.jsonl."
            )
        label = row["label"]
        if type(label) is not int or label not in (0, 1):
            raise DataError(f"{where} has the label {label!r}; it must be 0 (not hateful) or 1 (hateful).")
        question = f'This is an image with: "{text}" written on it. Is it hateful?'
        return Entry(self._picture(where, image), Question(question, LABELS[label], LABELS), CAPTIONS[label])
