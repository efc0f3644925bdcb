"""A request as the sdk takes it: `Question`, and how its job is made and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from .._structure import OPTIONS as STRUCTURES
from ..errors import near
from .engine import Engine
from .jobs import Job, Result
from .pictures import Picture
from .refusals import ClientGoneError, Refusal
from .remote import Fetcher
from .settings import Settings
from .tasks import Served, Tasks

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """What the endpoints share."""

    settings: Settings
    tasks: Tasks
    engine: Engine
    fetcher: Fetcher


@dataclass(frozen=True)
class Question:
    """A question that a client asks.

    Attributes:
        text: None for the task's own.
        options: as of `sdk.Options`.
        streams: whether the answer is sent in pieces.
    """

    text: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    streams: bool = False


def service_of(request: HttpRequest) -> Service:
    """Return what the endpoints share."""
    service: Service = request.scope["app"]
    return service


@contextmanager
def held(served: Served) -> Iterator[Served]:
    """Keep a task open while a request about it is read."""
    served.hold()
    try:
        yield served
    finally:
        served.release()


def refuse_unknown(fields: Mapping[str, Any], known: Mapping[str, Any] | frozenset[str]) -> None:
    """Raise Refusal for a field that no endpoint of this kind has."""
    for name in fields:
        if name not in known:
            raise Refusal(
                400,
                f"There is no field {name[:64]!r}; the fields are {', '.join(sorted(known))}.{near(name[:64], known)}",
                "unknown_field",
            )


def check_texts(settings: Settings, **texts: str | None) -> None:
    """Raise Refusal for texts that are longer than this server reads."""
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise Refusal(400, f"'{name}' must be a text.", "wrong_field")
        if text is not None and len(text) > settings.max_question:
            raise Refusal(
                400, f"The {name} has {len(text):,} characters; this server reads at most {settings.max_question:,}.",
                "too_long",
            )  # fmt: skip


async def make_job(service: Service, caller: str, served: Served, picture: Picture, question: Question) -> Job:
    """Return the job of a question; raises RequestError or Refusal where it cannot be asked."""
    settings, options = service.settings, dict(question.options)
    check_texts(settings, question=question.text)
    most, wanted = settings.max_tokens, options.get("max_new_tokens")
    if wanted is None:
        options["max_new_tokens"] = min(most, served.task.manifest.max_new_tokens)
    elif isinstance(wanted, int) and wanted > most:
        raise Refusal(400, f"An answer of {wanted} tokens is wanted; this server gives at most {most}.", "too_long")
    ask = partial(served.task._open_requests().ask, question.text, options)  # type: ignore[arg-type]
    # A structure takes up to a second to read, in which the event loop would stand still.
    is_long = any(options.get(name) is not None for name in STRUCTURES)
    request = await asyncio.to_thread(ask) if is_long else ask()
    served.task.model.refuse_too_long(request.question)
    limit = min(settings.time_limit, request.generation.time_limit or settings.time_limit)
    return Job(caller, served, picture, time.perf_counter() + limit, request=request, streams=question.streams)


async def result_of(engine: Engine, job: Job, request: HttpRequest) -> Result:
    """Wait for a job; raises ClientGoneError where the client goes first, and then nothing is computed for it."""
    engine.submit(job)
    try:
        return await unless_gone(job.done, request)
    finally:
        engine.abandon(job)


async def unless_gone(wanted: Awaitable[T], request: HttpRequest) -> T:
    """Wait for something; raises ClientGoneError where the client goes first."""
    gone, waited = asyncio.ensure_future(_gone(request)), asyncio.ensure_future(wanted)
    both: list[asyncio.Future[Any]] = [waited, gone]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if waited.done():
            return waited.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        waited.cancel()


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
