"""What is wrong, or looks wrong, with somebody's pictures: what `tvp init` says of them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvp.sdk import read_image
from tvp.sdk.errors import ImageError

from .data import Row
from .metrics import loosely
from .progress import bar

FEW, FEWEST = 10, 20  # pictures of an answer, and of a task, below which a prompt learns little
MOST_SHOWN = 5
# Names that say nothing: numbers, codes, and words that only count.
_ODD = re.compile(
    r"(class|label|category|folder|group|type|new folder|untitled)?[\s_-]*\d+|n\d{8}|[a-z]|.*\.\w{2,4}", re.I
)


@dataclass
class Findings:
    """What was found.

    Attributes:
        bad: rows and pictures that cannot be used.
        notes: what can be used, and may not be meant.
        n_pictures: pictures that can be read.
        unreadable: files of pictures that cannot.
    """

    bad: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_pictures: int = 0
    unreadable: set[str] = field(default_factory=set)


def look_at(rows: Sequence[Row]) -> Findings:
    """Read every picture once, and compare what is said about pictures that are the same.

    Args:
        rows: all rows of the data.
    """
    found = Findings()
    files = list(dict.fromkeys(row.picture for row in rows))
    digests: dict[str, str] = {}
    for file in bar(files, "looking at the pictures"):
        try:
            picture = read_image(Path(file))
        except ImageError as error:
            found.bad.append(str(error))
            found.unreadable.add(file)
        else:
            digests[file] = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()
    found.n_pictures = len(digests)
    same: dict[str, list[str]] = {}
    for file, digest in digests.items():
        same.setdefault(digest, []).append(file)
    _compare(found, rows, digests, same)
    return found


def _compare(found: Findings, rows: Sequence[Row], digests: dict[str, str], same: dict[str, list[str]]) -> None:
    """Say which pictures are there twice, and with answers that differ."""
    said: dict[tuple[str, str], dict[str, str]] = {}  # (picture, question) -> answer -> where
    for row in rows:
        for question in row.questions:
            if row.picture in digests:
                said.setdefault((digests[row.picture], question.text), {}).setdefault(question.answer, row.where)
    differ = [answers for answers in said.values() if len(answers) > 1]
    shown = ["; ".join(f"{where} is {answer!r}" for answer, where in answers.items()) for answers in differ]
    if differ:
        found.notes.append(
            f"{_pictures(len(differ))} with two answers to one question: {_some(shown)}. One of them is wrong, and the "
            "prompt would learn both."
        )
    wrong = {digest for (digest, _), answers in said.items() if len(answers) > 1}
    if agree := [files for digest, files in same.items() if len(files) > 1 and digest not in wrong]:
        found.notes.append(
            f"{_pictures(len(agree))} under several names, such as {', '.join(agree[0][:2])}. Where one is for "
            "the test and the other is not, the test says too much."
        )


def notes_on_answers(rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
    """Return what looks odd about the answers of a task.

    Args:
        rows: all rows.
        labels: the task's; none for a task that is answered in free text.
    """
    counts = Counter(question.answer for row in rows for question in row.questions)
    notes = []
    rare = [f"{label!r} {counts[label]}" for label in labels if counts[label] < FEW]
    if rare:
        notes.append(
            f"few pictures: {_some(rare, 8)}. Below {FEW} of an answer, a prompt learns little, and a test says little."
        )
    if odd := [label for label in labels if _ODD.fullmatch(label)]:
        notes.append(
            f"names that say little: {_some([repr(name) for name in odd], 8)}. The model reads them: it answers with a "
            "name, so a word or two that say what is to be seen work best. Rename the folders, or the answers."
        )
    folded: dict[str, list[str]] = {}
    for answer in counts:
        folded.setdefault(loosely(answer), []).append(answer)
    if alike := [answers for answers in folded.values() if len(answers) > 1]:
        notes.append(
            f"answers that differ in case, spaces or a point only: {', '.join(map(repr, alike[0]))}. Write them alike."
        )
    if len(rows) < FEWEST:
        notes.append(f"{_pictures(len(rows))}: a prompt learns little from so few. Give {FEWEST} or more.")
    return notes


def _some(texts: Sequence[str], n: int = MOST_SHOWN) -> str:
    return ", ".join(texts[:n]) + (f" and {len(texts) - n} more" if len(texts) > n else "")


def _pictures(n: int) -> str:
    return f"{n} picture{'s' * (n != 1)}"
