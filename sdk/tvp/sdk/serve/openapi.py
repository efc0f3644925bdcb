"""What the endpoints take and give, as an OpenAPI document. A test holds it to the routes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

TEXT, NUMBER, WHOLE, FLAG = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT}
IMAGE = {**TEXT, "description": "A data URL, base64, or an address on a host that the server allows."}
FILE = {**TEXT, "format": "binary", "description": "The picture's file."}
OPTIONS = {
    "max_new_tokens": WHOLE, "temperature": NUMBER, "top_k": WHOLE, "top_p": NUMBER, "seed": WHOLE,
    "stop": {"oneOf": [TEXT, TEXTS]}, "time_limit": NUMBER, "stream": FLAG,
    "schema": {"type": "object", "description": "A JSON Schema, which the answer follows."}, "choices": TEXTS,
    "regex": TEXT,
}  # fmt: skip
TIMING = {"type": "object", "additionalProperties": NUMBER, "description": "Seconds of each step."}
ANSWER = {
    "text": TEXT, "tokens": {"type": "array", "items": WHOLE}, "log_probabilities": {"type": "array", "items": NUMBER},
    "timing": TIMING, "finish": TEXT, "unlikeness": {"type": ["number", "null"]},
}  # fmt: skip
TASK = {
    "name": TEXT, "task": TEXT, "kind": {"enum": ["causal", "seq2seq", "contrastive"]}, "question": {},
    "labels": TEXTS, "max_new_tokens": WHOLE, "prompt": TEXTS, "model": {}, "precision": TEXT, "knows_unlikeness": FLAG,
}  # fmt: skip
MESSAGE = {
    "role": {"const": "user"},
    "content": {"description": "One text at most, and one `image_url` unless the picture is a file of the form."},
}
CHAT = {
    "model": TEXT, "max_tokens": WHOLE, "max_completion_tokens": WHOLE, "temperature": NUMBER,
    "top_p": NUMBER, "seed": WHOLE, "stop": {"oneOf": [TEXT, TEXTS]}, "stream": FLAG, "logprobs": FLAG,
    "stream_options": {"type": "object", "properties": {"include_usage": FLAG}},
    "response_format": {"type": "object", "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}},
}  # fmt: skip
ERROR = {
    "error": {"type": "object", "properties": {"message": TEXT, "type": TEXT, "param": {}, "code": {}}},
}
ERRORS = {
    400: "wrong request", 401: "no key", 404: "no such task", 408: "the body came too slowly", 413: "too large",
    422: "the answer ended before it had its structure",
    429: "too many questions wait; see Retry-After", 503: "no answer in time, or the server ends",
}  # fmt: skip


def document() -> dict[str, Any]:
    """Return the document."""
    chat = _object({**CHAT, "messages": {"type": "array", "items": _object(MESSAGE), "maxItems": 1}}, "messages")
    asked = {"task": TEXT, "question": TEXT}
    completion = {
        "id": TEXT,
        "object": TEXT,
        "created": WHOLE,
        "model": TEXT,
        "choices": {"type": "array"},
        "usage": {},
    }
    models = {"object": TEXT, "data": {"type": "array", "items": _object({"id": TEXT})}}
    paths = {
        "/v1/chat/completions": {
            "post": _does(
                "Answer a question about one picture, as OpenAI's endpoint does.",
                {**_json(chat), **_form({"request": {**TEXT, "description": "The JSON."}, "image": FILE})},
                {**_json(_object(completion)), "text/event-stream": {}},
            )
        },
        "/v1/models": {"get": _does("List the tasks as OpenAI's models.", None, _json(_object(models)))},
        "/v1/models/{name}": {"get": _does("Describe a task as OpenAI's model.", None, _json(_object({"id": TEXT})))},
        "/v1/ask": {
            "post": _does(
                "Answer a question about one picture.",
                _either({**asked, **OPTIONS}),
                {**_json(_object(ANSWER)), "text/event-stream": {}},
            )
        },
        "/v1/rank": {
            "post": _does(
                "Score labels as answers, the best first.",
                _either({**asked, "labels": TEXTS}),
                _json(_object({"ranked": {"type": "array", "items": _object({"label": TEXT, "score": NUMBER})}})),
            )
        },
        "/v1/tasks": {
            "get": _does(
                "Describe the tasks.", None, _json(_object({"tasks": {"type": "array", "items": _object(TASK)}}))
            ),
            "post": _does(
                "Load a task from the server's folder of tasks, or swap it. Needs an admin's key.",
                _json(_object({"task": TEXT, "name": TEXT}, "task")),
                _json(_object(TASK)),
                201,
            ),
        },
        "/v1/tasks/{name}": {"delete": _does("Drop a task. Needs an admin's key.", None, {}, 204)},
        "/v1/tasks/{name}/preview": {
            "post": _does("Return what the model is shown of a picture.", _either({}), {"image/png": {}})
        },
        "/healthz": {"get": _does("Whether the process works. Needs no key.", None, _json(_object({"status": TEXT})))},
        "/readyz": {"get": _does("Whether it takes questions. Needs no key.", None, _json(_object({"status": TEXT})))},
        "/metrics": {"get": _does("Numbers for Prometheus.", None, {"text/plain": {}})},
        "/openapi.json": {"get": _does("This document.", None, _json({"type": "object"}))},
    }
    for path, methods in paths.items():
        if "{name}" in path:
            for operation in methods.values():
                operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": TEXT}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "tvp serve", "version": _version()},
        "security": [{"key": []}, {}],
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": paths,
    }


def _does(about: str, takes: dict[str, Any] | None, gives: dict[str, Any], status: int = 200) -> dict[str, Any]:
    errors = {str(code): {"description": why, "content": _json(_object(ERROR))} for code, why in ERRORS.items()}
    operation: dict[str, Any] = {
        "summary": about,
        "responses": {str(status): {"description": "done", "content": gives}, **errors},
    }
    if takes is not None:
        operation["requestBody"] = {"required": True, "content": takes}
    return operation


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": [*required]} if required else {})}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _form(properties: dict[str, Any]) -> dict[str, Any]:
    return {"multipart/form-data": {"schema": _object(properties, "image")}}


def _either(properties: dict[str, Any]) -> dict[str, Any]:
    return {**_json(_object({**properties, "image": IMAGE}, "image")), **_form({**properties, "image": FILE})}


def _version() -> str:
    try:
        return version("tvp-edge")
    except PackageNotFoundError:  # a folder on the path that was never installed
        return "0"
