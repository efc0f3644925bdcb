"""Our own endpoints, where OpenAI's are clumsy: ask, rank, and what the model is shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from .._results import Answer, Ranked
from .._structure import OPTIONS as STRUCTURES
from ..formats import strict_json
from .bodies import Body, parse_json, read_body
from .events import stream
from .guard import caller_of
from .jobs import Job, Piece
from .pictures import picture_of, read_picture
from .questions import Question, check_texts, held, make_job, refuse_unknown, result_of, service_of
from .refusals import Refusal

NUMBERS = {
    "max_new_tokens": int, "temperature": float, "top_k": int, "top_p": float, "seed": int, "time_limit": float,
}  # fmt: skip
ASK = frozenset({"task", "image", "question", "stop", "stream", *NUMBERS, *STRUCTURES})
RANK = frozenset({"task", "image", "question", "labels"})
PREVIEW = frozenset({"image"})


async def ask(request: HttpRequest) -> Response:
    """POST /v1/ask."""
    service, caller = service_of(request), caller_of(request.scope)
    service.engine.refuse_full(caller.name)
    body = await read_body(request, service.settings)
    refuse_unknown(body.fields, ASK)
    options = {name: value for name in (*NUMBERS, "stop", *STRUCTURES) if (value := _value(body, name)) is not None}
    question = Question(_text(body, "question"), options, _streams(body))
    with held(service.tasks.find(_text(body, "task"))) as served:
        picture = await read_picture(picture_of(body), service.fetcher)
        job = await make_job(service, caller.name, served, picture, question)
        if question.streams:
            return await stream(service.engine, job, request, _piece, _last)
        answer = await result_of(service.engine, job, request)
        assert isinstance(answer, Answer)
        return _json(asdict(answer))


async def rank(request: HttpRequest) -> Response:
    """POST /v1/rank."""
    service, caller = service_of(request), caller_of(request.scope)
    service.engine.refuse_full(caller.name)
    body = await read_body(request, service.settings)
    refuse_unknown(body.fields, RANK)
    labels, question = _labels(body, service.settings.max_labels), _text(body, "question")
    check_texts(
        service.settings, question=question, **{f"label {n + 1}": label for n, label in enumerate(labels or ())}
    )
    with held(service.tasks.find(_text(body, "task"))) as served:
        picture = await read_picture(picture_of(body), service.fetcher)
        parsed = served.task._open_requests().rank(question, labels)
        until = time.perf_counter() + service.settings.time_limit
        job = Job(caller.name, served, picture, until, ranking=parsed)
        ranked = await result_of(service.engine, job, request)
        assert isinstance(ranked, list)
        return _json({"ranked": [asdict(row) for row in ranked if isinstance(row, Ranked)]})


async def preview(request: HttpRequest) -> Response:
    """POST /v1/tasks/{name}/preview."""
    service, caller = service_of(request), caller_of(request.scope)
    service.engine.refuse_full(caller.name)
    body = await read_body(request, service.settings)
    refuse_unknown(body.fields, PREVIEW)
    with held(service.tasks.find(request.path_params["name"])) as served:
        picture = await read_picture(picture_of(body), service.fetcher)
        job = Job(caller.name, served, picture, time.perf_counter() + service.settings.time_limit)
        return Response(await result_of(service.engine, job, request), media_type="image/png")


def _piece(piece: Piece) -> Mapping[str, Any] | None:
    return {"text": piece.text} if piece.text else None


def _last(answer: Answer) -> Iterator[Mapping[str, Any]]:
    yield {"answer": asdict(answer)}


def _json(value: Any) -> Response:
    return Response(strict_json.dumps(value), media_type="application/json")


def _text(body: Body, name: str) -> str | None:
    value = body.fields.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(400, f"'{name}' must be one text.", "wrong_field")
    return value


def _value(body: Body, name: str) -> Any:
    """Return an option; a form has numbers and a schema as texts. The sdk checks what it is."""
    value = body.fields.get(name)
    if body.is_form and name == "schema" and isinstance(value, str):
        return parse_json(value.encode()).fields
    if body.is_form and name == "choices" and isinstance(value, str):
        return [value]
    if not body.is_form or value is None or name not in NUMBERS:
        return value
    try:
        return NUMBERS[name](value)
    except (TypeError, ValueError):
        return value


def _streams(body: Body) -> bool:
    value = body.fields.get("stream")
    if body.is_form and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    if value is not None and not isinstance(value, bool):
        raise Refusal(400, "'stream' must be true or false.", "wrong_field")
    return bool(value)


def _labels(body: Body, n_most: int) -> list[str] | None:
    labels = body.fields.get("labels")
    if labels is None:
        return None
    labels = [labels] if body.is_form and isinstance(labels, str) else labels
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise Refusal(400, "'labels' must be a list of texts; in a form, it comes once for each label.", "wrong_field")
    if len(labels) > n_most:
        raise Refusal(400, f"There are {len(labels)} labels; this server ranks at most {n_most}.", "too_long")
    return labels
