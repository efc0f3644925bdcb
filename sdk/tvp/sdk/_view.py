"""A picture that a task has seen: `View`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ._generation import Options
from ._models.model import Model, Reply, Request
from ._requests import Requests
from ._results import Answer, Ranked
from .errors import AnswerError, RequestError
from .formats.moments import Moments, root_mean_square


class View:
    """A picture as a loaded task sees it: encoded once, asked many times. `Task.see` makes one.

    Keys and values of the picture are kept, so a second question costs its own tokens only. Several threads may ask
    one view; they take turns.

    Attributes:
        unlikeness: how far the picture's features are from those that the bundle was made for: about 1 for pictures
            like those of the export behind the same prompt, 2 for one that is twice as far from their mean. A single
            picture may be a strange one; look at the mean over ten or more. No model runs for it. None where the
            bundle, or the lens in use, does not say which features are usual.
    """

    def __init__(
        self, model: Model, requests: Requests, seen: Any, seconds: float, moments: Moments | None = None
    ) -> None:
        self._model, self._requests, self._seen = model, requests, seen
        self._moments = moments
        self._away = None if moments is None else moments.away(model.features(seen))
        self.unlikeness = None if self._away is None else root_mean_square(self._away)
        self._seconds = seconds  # of encoding the picture, until an answer has counted them
        self._lock = threading.Lock()

    def ask(self, question: str | None = None, **options: Unpack[Options]) -> Answer:
        """Answer a question about this picture; see `Task.ask`."""
        return self.answer(self._requests.ask(question, options))

    def stream(self, question: str | None = None, **options: Unpack[Options]) -> Iterator[str]:
        """Answer in pieces of text as they come; see `Task.stream`.

        The view can be asked other things between two pieces.
        """
        return self.pieces(self._requests.ask(question, options))

    def rank(self, question: str | None = None, *, labels: Sequence[str] | None = None) -> list[Ranked]:
        """Score labels as answers to a question about this picture, the best first; see `Task.rank`."""
        return self.ranking(*self._requests.rank(question, labels))

    def decode(self, question: str | None, limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each token of a greedy answer with its logits.

        The parity gate reads this; everybody else calls `ask`. It does not lock the view.

        Args:
            question: None for the task's own.
            limit: longest answer, in tokens.

        Returns:
            Token ids with logits (n_vocab,). After the last one an end token, the limit or the context is reached.

        Raises:
            RequestError: the question cannot be asked, or the task is contrastive.
        """
        return self._model.decode(self._seen, self._requests.question(question), limit)

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that the view takes now. A question may make it larger."""
        return self._model.n_bytes(self._seen)

    # The same for requests that were parsed before; `Task` calls these.

    def answer(self, request: Request) -> Answer:
        began = time.perf_counter()
        with self._lock:
            reply = self._model.answer(self._seen, request, began)
        result = self.result(reply, began)
        if isinstance(result, AnswerError):
            raise result
        return result

    def pieces(self, request: Request) -> Iterator[str]:
        with self._lock:
            pieces = self._model.stream(self._seen, request, time.perf_counter())
        return self._in_this_process(pieces)

    def _in_this_process(self, pieces: Iterator[str]) -> Iterator[str]:
        self._requests.refuse_fork()
        for piece in pieces:
            yield piece
            self._requests.refuse_fork()

    def ranking(self, question: Any, labels: Any) -> list[Ranked]:
        with self._lock:
            return self._model.rank(self._seen, question, labels)

    def result(self, reply: Reply, began: float) -> Answer | AnswerError:
        """Return the answer, or why there is none. Its time includes the picture's where none has counted it yet."""
        if reply.error is not None:
            return reply.error
        spent = time.perf_counter() - began
        timing = {"see": self._seconds, "first_token": reply.first_token, "total": self._seconds + spent}
        self._seconds = 0.0
        return Answer(reply.text, reply.tokens, reply.log_probabilities, timing, reply.finish, self.unlikeness)


def unlikeness(views: Sequence[View]) -> float:
    """Return how far the mean of several pictures' features is from the usual mean.

    What differs from picture to picture cancels out, and what a camera does to all of them stays. So this notices
    changes that no single picture shows. It is 0 where pictures vary about the usual mean. Ten pictures that have
    nothing in common are about 0.3 away, and more if they show the same; one picture is its own `View.unlikeness`
    away. No model runs for it.

    Args:
        views: of one loaded task, with one lens in use. The order does not matter.

    Raises:
        RequestError: there are no views; they are of different tasks or lenses; or the bundle, or the lens in use, does
            not say which features are usual.
    """
    views = list(views)
    if not views:
        raise RequestError("There are no views. Give those of some pictures, see Task.see.")
    if any(view._model is not views[0]._model or view._moments is not views[0]._moments for view in views):
        raise RequestError(
            "The views are of different tasks, or of different lenses. Give views that one loaded task made with the "
            "same lens."
        )
    away = [view._away for view in views if view._away is not None]
    if not away:
        raise RequestError(
            "Neither the bundle nor the lens in use says which features are usual, so nothing is known of these "
            "pictures. Export it again; `tvp export --moments` says how many pictures are looked at."
        )
    return root_mean_square(np.mean(away, axis=0, dtype=np.float64))


def answer_together(views: Sequence[View], requests: Sequence[Request]) -> list[Answer | AnswerError]:
    """Answer one request about each view of the same model; nobody else may be asking these views."""
    began = time.perf_counter()
    replies = views[0]._model.answer_many([view._seen for view in views], requests, began)
    return [view.result(reply, began) for view, reply in zip(views, replies, strict=True)]
