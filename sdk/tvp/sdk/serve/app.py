"""The application: endpoints, and what they share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from . import completions, operations, own
from .engine import Engine
from .guard import Guard
from .keys import Keys
from .metrics import Metrics
from .page import page
from .questions import Service
from .remote import Fetcher
from .settings import Settings
from .tasks import Served, Tasks

ROUTES = (
    ("POST", "/v1/chat/completions", completions.complete),
    ("GET", "/v1/models", completions.models),
    ("GET", "/v1/models/{name}", completions.model),
    ("POST", "/v1/ask", own.ask),
    ("POST", "/v1/rank", own.rank),
    ("GET", "/v1/tasks", operations.list_tasks),
    ("POST", "/v1/tasks", operations.load_task),
    ("DELETE", "/v1/tasks/{name}", operations.drop_task),
    ("POST", "/v1/tasks/{name}/preview", own.preview),
    ("GET", "/healthz", operations.healthz),
    ("GET", "/readyz", operations.readyz),
    ("GET", "/metrics", operations.metrics),
    ("GET", "/openapi.json", operations.openapi),
)
PAGE = (("GET", "/", page), ("GET", "/web/{name}", page))


def make_app(
    tasks: Tasks,
    settings: Settings,
    keys: Keys,
    served: Sequence[Served] = (),
    started: Callable[[Service], None] = lambda service: None,
) -> ASGIApp:
    """Return the application.

    Args:
        tasks: that are served; none is loaded yet.
        settings: limits.
        keys: who may ask.
        served: opened tasks to begin with.
        started: is called in the event loop when it begins.
    """
    counters = Metrics()
    engine = Engine(settings, keys, counters)
    service = Service(settings, tasks, engine, Fetcher(settings.allowed_hosts, settings.max_body))
    tasks.on_drop = engine.forget
    counters.show("tvp_tasks", "Tasks that are served.", lambda: len(tasks))
    for one in served:
        tasks.add(one)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        engine.start()
        started(service)
        yield
        tasks.close()
        service.fetcher.close()
        await engine.stop()

    router = Router([_route(*row) for row in (*ROUTES, *PAGE)], redirect_slashes=False, lifespan=lifespan)
    return Guard(router, service, settings, keys, counters)


def _route(method: str, path: str, endpoint: Callable[[HttpRequest], Awaitable[Response]]) -> Route:
    async def noted(request: HttpRequest) -> Response:
        request.scope["tvp_endpoint"] = path  # for the log and the metrics, in place of what a client wrote
        return await endpoint(request)

    return Route(path, noted, methods=[method])
