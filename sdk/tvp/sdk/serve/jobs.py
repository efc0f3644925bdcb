"""What waits and is computed: `Job`, and what comes of it."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from .._generation import Answering
from .._models.model import Request
from .._results import Answer, Ranked
from .pictures import Picture
from .refusals import Refusal
from .tasks import Served


@dataclass(frozen=True)
class Piece:
    """A part of an answer that is being written: its text, and tokens with their log-probabilities."""

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]


Result = Answer | list[Ranked] | bytes


@dataclass(eq=False)
class Job:
    """One question about a picture, or a preview of it.

    Attributes:
        caller: name of who asks.
        served: the task.
        picture: the picture.
        until: the moment of `time.perf_counter()` at which its time is over.
        request: the parsed question, where an answer is wanted.
        ranking: the parsed question and labels, where these are ranked. Without either, a preview is wanted.
        streams: whether pieces are wanted.
        done: the result.
        pieces: of a stream.
        cancel: is set when nobody waits any longer.
        began: the moment at which it began to wait.
    """

    caller: str
    served: Served
    picture: Picture
    until: float
    request: Request | None = None
    ranking: tuple[Any, Any] | None = None
    streams: bool = False
    done: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    pieces: asyncio.Queue[Piece] = field(default_factory=asyncio.Queue)
    cancel: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.perf_counter)
    _told: int = 0  # number of tokens that were told
    settled: bool = False  # of the thread that computes: the result is on its way

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    @property
    def key(self) -> tuple[int, bytes]:
        """By which its view is found."""
        return self.served.number, self.picture.digest

    def joins(self, other: Job) -> bool:
        """Return whether both can be answered together: by one model, whatever the task."""
        return (
            self.request is not None and other.request is not None and self.served.task.model is other.served.task.model
        )

    # In the thread that computes.

    def tell(self, answering: Answering) -> None:
        """Send what has become final of an answer."""
        if not self.streams:
            return
        text = answering.text.more(answering.tokens, last=bool(answering.finish))
        if text or answering.finish:
            since, self._told = self._told, len(answering.tokens)
            piece = Piece(text, tuple(answering.tokens[since:]), tuple(answering.scores[since:]))
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    def settle(self, result: Result | Exception) -> None:
        """Send the result."""
        if not self.settled:
            self.settled = True
            self._loop.call_soon_threadsafe(self._settle, result)

    def _settle(self, result: Result | Exception) -> None:
        if self.done.done():
            return
        if isinstance(result, Exception):
            self.done.set_exception(result)
            self.done.exception()  # the client may be gone, and nobody looks
        else:
            self.done.set_result(result)


def overdue(job: Job) -> Refusal:
    """Return the refusal for a question whose time was over before it had an answer."""
    waited = time.perf_counter() - job.began
    return Refusal(503, f"There was no answer within {waited:.1f} s. Try again later.", "out_of_time", 1)
