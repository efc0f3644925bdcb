"""Endpoints for operators: health, metrics, and which tasks are served."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from .bodies import read_body
from .guard import caller_of
from .metrics import CONTENT_TYPE, Metrics
from .openapi import document
from .questions import refuse_unknown, service_of
from .refusals import Refusal
from .tasks import check_name, own_task


async def healthz(request: HttpRequest) -> Response:
    """GET /healthz: whether the process works; a supervisor restarts it where it does not."""
    is_alive = service_of(request).engine.is_alive
    return JSONResponse({"status": "ok" if is_alive else "failed"}, 200 if is_alive else 503)


async def readyz(request: HttpRequest) -> Response:
    """GET /readyz: whether questions should be sent here."""
    service = service_of(request)
    reasons = [
        reason
        for reason, is_so in (
            ("it ends", service.engine.is_draining),
            ("it has no task", not len(service.tasks)),
            ("it has failed", not service.engine.is_alive),
        )
        if is_so
    ]
    if reasons:
        return JSONResponse({"status": "not ready", "reason": reasons[0]}, 503)
    return JSONResponse({"status": "ready"})


async def metrics(request: HttpRequest) -> Response:
    """GET /metrics."""
    counters: Metrics = service_of(request).engine.metrics
    return Response(counters.text(), headers={"content-type": CONTENT_TYPE})


async def openapi(request: HttpRequest) -> Response:
    """GET /openapi.json."""
    return JSONResponse(document())


async def list_tasks(request: HttpRequest) -> Response:
    """GET /v1/tasks."""
    return JSONResponse({"tasks": [served.about() for served in service_of(request).tasks]})


async def load_task(request: HttpRequest) -> Response:
    """POST /v1/tasks: load a task, or swap it for what its folder holds now."""
    _refuse_others(request)
    service = service_of(request)
    body = await read_body(request, service.settings)
    refuse_unknown(body.fields, frozenset({"task", "name"}))
    source, name = own_task(body.fields.get("task")), body.fields.get("name")
    if name is not None and not isinstance(name, str):
        raise Refusal(400, "'name' must be a text.", "wrong_field")
    served = await service.tasks.load(None if name is None else check_name(name), source)
    return JSONResponse(served.about(), 201)


async def drop_task(request: HttpRequest) -> Response:
    """DELETE /v1/tasks/{name}: serve it no longer; questions that were accepted are answered."""
    _refuse_others(request)
    service_of(request).tasks.drop(request.path_params["name"])
    return Response(status_code=204)


def _refuse_others(request: HttpRequest) -> None:
    if not caller_of(request.scope).is_admin:
        raise Refusal(403, "An admin's key is needed: a line of the keys' file that ends with 'admin'.", "no_admin")
