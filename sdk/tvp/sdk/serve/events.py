"""An answer in pieces: server-sent events, with a sign of life where nothing is said for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from .._results import Answer
from ..formats import strict_json
from .engine import Engine
from .guard import note_bug
from .jobs import Job, Piece
from .questions import unless_gone
from .refusals import Refusal, refusal_of, told

PING = b": ping\n\n"


def event(value: Any) -> bytes:
    """Return one event; JSON has no line breaks that could end it early."""
    return b"data: " + strict_json.dumps(value).encode() + b"\n\n"


async def stream(
    engine: Engine,
    job: Job,
    request: HttpRequest,
    of_piece: Callable[[Piece], Any],
    of_answer: Callable[[Answer], Iterator[Any]],
    end: bytes = b"",
) -> Response:
    """Answer in events.

    Args:
        engine: answers.
        job: which streams.
        request: of the client.
        of_piece: returns what an event says of a piece; None for nothing, of a piece without text.
        of_answer: returns what the last events say of the whole answer.
        end: is sent behind the last event.

    Returns:
        The response, when the first piece is there or the first sign of life is due. An error before that has its own
        status; a later one is an event.
    """
    engine.submit(job)
    seconds = engine.settings.ping_seconds
    try:
        first = await unless_gone(_next(job, seconds), request)
    except BaseException:
        engine.abandon(job)
        raise

    async def events() -> AsyncIterator[bytes]:
        sent = 0
        found: Piece | Answer | None = first
        try:
            while not isinstance(found, Answer):
                if found is None:
                    yield PING
                elif (value := of_piece(found)) is not None:
                    sent += len(found.text)
                    yield event(value)
                found = await _next(job, seconds)
            if rest := found.text[sent:]:  # it waited for more, such as the rest of a stop text
                yield event(of_piece(Piece(rest, (), ())))
            for value in of_answer(found):
                yield event(value)
        except Exception as error:
            if not isinstance(error, Refusal):
                note_bug(error, "of a stream")
            yield event(told(refusal_of(error)))
        finally:
            engine.abandon(job)
        yield end

    return StreamingResponse(events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def _next(job: Job, seconds: float) -> Piece | Answer | None:
    """Return the next piece, then the answer; None where neither comes in time."""
    if job.pieces.empty() and not job.done.done():
        piece = asyncio.ensure_future(job.pieces.get())
        both: list[asyncio.Future[Any]] = [piece, job.done]
        try:
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if piece.done():
                return piece.result()
        finally:
            piece.cancel()
    if not job.pieces.empty():
        return job.pieces.get_nowait()
    if not job.done.done():
        return None
    answer = job.done.result()
    assert isinstance(answer, Answer)
    return answer
