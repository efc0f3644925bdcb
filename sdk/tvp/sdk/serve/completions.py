"""OpenAI's endpoints: chat completions about one picture, and models."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from .._results import Answer
from ..formats import strict_json
from .bodies import Body, parse_json, read_body
from .events import stream
from .guard import caller_of
from .jobs import Job, Piece
from .pictures import read_picture
from .questions import Question, held, make_job, refuse_unknown, result_of, service_of
from .refusals import Refusal
from .tasks import Served

# field -> the sdk's option
OPTIONS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
}
READ = frozenset({"model", "messages", "stream", "stream_options", "logprobs", "response_format", *OPTIONS})
# Fields that change nothing here as long as they have one of these values; None stands for any.
NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "n": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "top_logprobs": (0,),
    "tools": ([],), "tool_choice": ("none", "auto"), "modalities": (["text"],), "parallel_tool_calls": None,
    "user": None, "metadata": None, "store": (False,), "service_tier": None, "safety_identifier": None,
    "prompt_cache_key": None,
}  # fmt: skip
KNOWN = READ | frozenset(NEUTRAL)
FINISH = {"length": "length", "time": "length"}  # any other is `stop`


async def complete(request: HttpRequest) -> Response:
    """POST /v1/chat/completions."""
    service, caller = service_of(request), caller_of(request.scope)
    service.engine.refuse_full(caller.name)
    fields, file = _fields(await read_body(request, service.settings))
    refuse_unknown(fields, KNOWN)
    source, question = _read(fields, file)
    with held(service.tasks.find(fields.get("model"))) as served:
        wants_scores = _flag(fields, "logprobs")
        if wants_scores and served.task.kind == "contrastive":
            raise Refusal(
                400, "This task chooses among labels and writes no tokens: leave 'logprobs' out.", "no_tokens"
            )
        job = await make_job(service, caller.name, served, await read_picture(source, service.fetcher), question)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
        writer = _Writer(served, job, head, wants_scores)
        if question.streams:
            usage = fields.get("stream_options") or {}
            writer.with_usage = isinstance(usage, dict) and usage.get("include_usage") is True
            return await stream(service.engine, job, request, writer.piece, writer.last, b"data: [DONE]\n\n")
        answer = await result_of(service.engine, job, request)
        assert isinstance(answer, Answer)
        return Response(strict_json.dumps(writer.whole(answer)), media_type="application/json")


async def models(request: HttpRequest) -> Response:
    """GET /v1/models."""
    return JSONResponse({"object": "list", "data": [_model(served) for served in service_of(request).tasks]})


async def model(request: HttpRequest) -> Response:
    """GET /v1/models/{name}."""
    return JSONResponse(_model(service_of(request).tasks.find(request.path_params["name"])))


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.loaded, "owned_by": "tvp"}


def _fields(body: Body) -> tuple[dict[str, Any], bytes | None]:
    """Return the fields of a request, and the picture where it came as a file of a form."""
    if not body.is_form:
        return body.fields, None
    text = body.fields.get("request")
    if set(body.fields) != {"request"} or set(body.files) != {"image"} or not isinstance(text, str):
        raise Refusal(
            400, "A form has two parts: 'request' with the JSON of the request, and the file 'image'.", "wrong_form"
        )
    return parse_json(text.encode()).fields, body.files["image"]


def _read(fields: dict[str, Any], file: bytes | None) -> tuple[Any, Question]:
    """Return the picture and the question of a request; raises Refusal for what this model cannot do."""
    for name, values in NEUTRAL.items():
        value = fields.get(name)
        if value is not None and values is not None and value not in values:
            raise Refusal(400, f"This server cannot do {name!r} = {_short(value)}. Leave it out.", "not_possible")
    texts, pictures = _message(fields.get("messages"))
    if file is not None:
        pictures.append(file)
    if len(pictures) != 1:
        raise Refusal(
            400, f"The request has {len(pictures)} pictures; this model answers about exactly one.", "not_possible"
        )
    if len(texts) > 1:
        raise Refusal(400, f"The message has {len(texts)} texts; this model reads one question.", "not_possible")
    options = {OPTIONS[name]: fields[name] for name in OPTIONS if fields.get(name) is not None}
    if (schema := _schema(fields.get("response_format"))) is not None:
        options["schema"] = schema
    return pictures[0], Question(texts[0] if texts else None, options, _flag(fields, "stream"))


def _schema(wanted: Any) -> dict[str, Any] | None:
    """Return the JSON Schema of a `response_format`; None for text."""
    kind = wanted.get("type") if isinstance(wanted, dict) else None if wanted is not None else "text"
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    inner = wanted.get("json_schema") if kind == "json_schema" else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise Refusal(
            400, "'response_format' must be of the type 'text', 'json_object', or 'json_schema' with "
            "{'json_schema': {'name': '…', 'schema': {…}}}.", "wrong_field",
        )  # fmt: skip
    return schema


def _message(messages: Any) -> tuple[list[str], list[Any]]:
    """Return the texts and the pictures of the only message."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refusal(400, "'messages' must be a list of messages.", "wrong_field")
    roles = [message.get("role") for message in messages]
    if roles != ["user"]:
        raise Refusal(
            400, f"There are {len(roles)} messages, from {_short(roles)}; this model answers one message of the role "
            "'user': it has no conversation and no system message.", "not_possible",
        )  # fmt: skip
    content = messages[0].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Refusal(400, "The message's 'content' must be a text or a list of parts.", "wrong_field")
    texts: list[str] = []
    pictures: list[Any] = []
    for part in parts:
        kind, value = part.get("type"), part.get(str(part.get("type")))
        if kind == "text" and isinstance(value, str):
            texts.append(value)
        elif kind == "image_url" and isinstance(value, dict) and isinstance(value.get("url"), str):
            pictures.append(value["url"])
        else:
            raise Refusal(
                400, f"A part of the message is of the type {_short(kind)}; parts are 'text', with a text, and "
                "'image_url', with {'url': '…'}.", "wrong_field",
            )  # fmt: skip
    return texts, pictures


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(400, f"'{name}' is {_short(value)}; it must be true or false.", "wrong_field")
    return bool(value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


class _Writer:
    """Writes an answer as OpenAI's objects."""

    def __init__(self, served: Served, job: Job, head: dict[str, Any], wants_scores: bool) -> None:
        self._head, self._wants_scores = head, wants_scores
        self.with_usage, self._begun = False, False
        # Taken now: when the last event is written, the task may have been dropped and closed.
        assert job.request is not None
        self._n_prompt = served.task.model.n_prompt(job.request.question)
        self._tokenizer: Any = getattr(served.task.model, "tokenizer", None)

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return a completion."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        scores = self._scores(answer.tokens, answer.log_probabilities)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "logprobs": scores, "finish_reason": _finish(answer)}],
            "usage": self._usage(answer),
            "tvp": facts(answer),
        }

    def piece(self, piece: Piece) -> dict[str, Any] | None:
        """Return a chunk with a piece of text."""
        if not piece.text and not self._wants_scores:
            return None
        delta = {"content": piece.text} if self._begun else {"role": "assistant", "content": piece.text}
        self._begun = True
        return self._chunk(delta, self._scores(piece.tokens, piece.log_probabilities), None)

    def last(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield the chunk with the reason of the end, and that with the usage, where it is wanted."""
        yield {**self._chunk({}, None, _finish(answer)), "tvp": facts(answer)}
        if self.with_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(answer)}

    def _chunk(self, delta: dict[str, Any], scores: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": scores, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _usage(self, answer: Answer) -> dict[str, int]:
        n_prompt, n_new = self._n_prompt, len(answer.tokens)
        return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}

    def _scores(self, tokens: Sequence[int], log_probabilities: Sequence[float]) -> dict[str, Any] | None:
        if not self._wants_scores:
            return None
        rows = []
        for token, score in zip(tokens, log_probabilities, strict=True):
            text = self._tokenizer.decode([token], skip_special_tokens=False)
            rows.append({"token": text, "logprob": score, "bytes": list(text.encode()), "top_logprobs": []})
        return {"content": rows, "refusal": None}


def _finish(answer: Answer) -> str:
    return FINISH.get(answer.finish, "stop")


def facts(answer: Answer) -> dict[str, Any]:
    """Return what OpenAI's objects have no place for."""
    return {"finish": answer.finish, "timing": dict(answer.timing), "unlikeness": answer.unlikeness}
