"""Many questions about many pictures, several at a time: what `Task.ask_many` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

from ._generation import Options
from ._image import ImageLike
from ._models.model import Model, Request
from ._requests import Requests
from ._results import Answer
from ._runtime.stopping import StoppedError, stoppable
from ._view import View, answer_together
from .errors import ImageError, RequestError, TvpError


def ask_many(
    model: Model,
    parser: Requests,
    see: Callable[[Sequence[ImageLike]], list[View | ImageError]],
    rows: Sequence[Any],
    batch: int,
    errors: str,
    options: Options,
) -> list[Answer | TvpError | None]:
    """See `Task.ask_many`.

    Args:
        model: the opened base.
        parser: of the task.
        see: returns a view for each picture, or why it cannot be read.
        rows: pairs of a picture and a question, not checked yet.
        batch, errors, options: as of `Task.ask_many`, not checked yet.
    """
    if wrong := [row for row in rows if not (isinstance(row, (tuple, list)) and len(row) == 2)]:
        raise RequestError(f"ask_many takes (picture, question) pairs, not a {type(wrong[0]).__name__} alone.")
    if not isinstance(batch, Integral) or isinstance(batch, bool) or batch < 1:
        raise RequestError(f"batch is {batch!r}; it must be a whole number of at least 1.")
    if errors not in ("raise", "return"):
        raise RequestError(f"errors is {errors!r}; it must be 'raise' or 'return'.")
    batch = int(batch)  # numpy's would overflow
    generation = parser.generation(options)
    results: list[Answer | TvpError | None] = [None] * len(rows)

    def fail(what: str, number: int, error: TvpError) -> None:
        told = type(error)(f"{what} {number + 1} of {len(rows)}: {error}")
        if errors == "raise":
            raise told from error
        told.__cause__, results[number] = error, told

    parsed: dict[int, Request] = {}
    for number, (_, text) in enumerate(rows):
        try:
            question = parser.question(text)
            model.refuse_too_long(question)
        except RequestError as error:
            fail("question", number, error)
        else:
            parsed[number] = parser.request(question, generation)
    for start in range(0, len(rows), batch):
        cancel = generation.cancel
        if cancel is not None and cancel.is_set():
            return results[:start]
        chosen = [number for number in range(start, min(start + batch, len(rows))) if number in parsed]
        try:
            with stoppable(cancel, None):
                seen = see([rows[number][0] for number in chosen])
        except StoppedError:
            return results[:start]
        views: dict[int, View] = {}
        for number, view in zip(chosen, seen, strict=True):
            if isinstance(view, View):
                views[number] = view
            else:
                fail("picture", number, view)
        if views:
            answers = answer_together([*views.values()], [parsed[number] for number in views])
            for number, answer in zip(views, answers, strict=True):
                if isinstance(answer, Answer):
                    results[number] = answer
                else:
                    fail("answer", number, answer)
    return results
