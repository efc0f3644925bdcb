"""Which rows can be asked: found out before the first step, so that none stops a run in its middle."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch

from tvp.sdk.errors import DataError, RequestError

from .data import Data, Question, Subset, report, row_of
from .evaluate import MAX_NEW_TOKENS
from .families import Family, GenerativeFamily
from .progress import bar

log = logging.getLogger("tvp.trainer")


def answerable(
    data: Data, models: Iterable[tuple[str, Family]], canvas: int, free: bool = False, skip_bad: bool = False
) -> Data:
    """Check that models can read every question with its answers.

    A question may hold a special token of a model, such as `<image>`, or be longer than a model reads. Data without
    rows is not checked: its questions are TVP's own. No picture is read.

    Args:
        data: the samples.
        models: each with its name, for messages; one is held at a time.
        canvas: side of the canvas, px.
        free: answers are written freely, even where there are labels. Default False.
        skip_bad: leave rows out that one of the models cannot read, and list them in a warning. Default False.

    Returns:
        The data, or what is left of it.

    Raises:
        DataError: a row cannot be asked, or none is left.
    """
    if not len(data) or row_of(data, 0) is None:
        return data
    bad: list[str] = []
    for name, family in models:
        data = _answerable(data, name, family, _n_image_tokens(family, canvas), free, bad if skip_bad else None)
        del family  # before the next one is loaded
    if bad:
        log.warning("left %d rows out that cannot be asked:\n  %s", len(bad), "\n  ".join(bad))
    return data


def _answerable(data: Data, name: str, family: Family, n_image: int, free: bool, skip_bad: list[str] | None) -> Data:
    known: dict[Question, str] = {}  # one question may be asked about thousands of pictures
    good = []
    for i in bar(range(len(data)), f"checking questions for {name}"):
        row = row_of(data, i)
        where, questions = (row.where, row.questions) if row else ("", ())
        for question in questions:
            if question not in known:
                known[question] = _fault(question, family, n_image, free)
        if faults := [known[question] for question in questions if known[question]]:
            report(DataError(f"{where}: {faults[0]} The model is {name}."), skip_bad)
        else:
            good.append(i)
    if not good:
        raise DataError(f"No row is left: all {len(data)} are bad.{' The last: ' + skip_bad[-1] if skip_bad else ''}")
    return data if len(good) == len(data) else Subset(data, good)


def _fault(question: Question, family: Family, n_image: int, free: bool) -> str:
    """Return why a question cannot be asked; '' if it can be."""
    n_written = MAX_NEW_TOKENS if free or not question.labels else 0
    # Where nobody knows the right answer, any label may be it; each is checked.
    answer = question.answer or next(iter(question.labels), "")
    try:
        family.check_question(question.text, answer, question.labels, n_image, n_written)
    except RequestError as error:
        return str(error)
    return ""


@torch.no_grad()
def _n_image_tokens(family: Family, canvas: int) -> int:
    """Return the number of image embeddings of a picture; 0 where the model has no limit to keep."""
    if not isinstance(family, GenerativeFamily) or family.n_positions is None:
        return 0
    black = torch.zeros(1, 3, canvas, canvas, device=family.device)
    return family.see(family.to_pixels(black), ["a"]).shape[1]
