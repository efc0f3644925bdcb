"""The process: it listens, follows signals, and ends when what it accepted is answered."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from .._runtime.providers import Providers
from ..errors import RequestError, TvpError
from .app import make_app
from .keys import Keys
from .protocol import limited
from .questions import Service
from .settings import Address, Settings
from .tasks import Tasks, read_list, split

log = logging.getLogger("tvp.serve")


def serve(
    tasks: Sequence[str],
    task_list: Path | None,
    address: Address,
    settings: Settings,
    keys: Keys,
    providers: Providers = "auto",
    check: bool = False,
    ready: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve tasks until SIGTERM or SIGINT.

    Args:
        tasks: each `TASK` or `NAME=TASK`.
        task_list: a file with more of these, which SIGHUP reads again.
        address: where to listen.
        settings: limits.
        keys: who may ask.
        providers: as of `sdk.load`.
        check: whether golden cases are replayed before a task is served.
        ready: is told where the server listens.

    Raises:
        TvpError: a task cannot be loaded, or the address cannot be used.
    """

    def wanted() -> list[tuple[str | None, str]]:
        return [*(split(task) for task in tasks), *([] if task_list is None else read_list(task_list))]

    loaded = Tasks(settings, providers, check)
    served = [loaded.open(name, source) for name, source in wanted()]
    names = [one.name for one in served]
    if not names:
        raise RequestError("There is no task to serve. Name one, or write one into the list.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(f"Two tasks are called {twice[0]!r}. Give one another name: NAME=TASK.")

    def started(service: Service) -> None:
        server.service = service
        host, port = listener.getsockname()[:2]
        scheme, shown = ("https" if address.certificate else "http"), f"[{host}]" if ":" in host else host
        ready(f"Serving {', '.join(names)} at {scheme}://{shown}:{port}")
        if hasattr(signal, "SIGHUP"):
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, lambda: renewals.add(loop.create_task(renew(service))))

    async def renew(service: Service) -> None:
        """Read keys, list and certificate again; what is wrong with them is logged, and they stay as they were."""
        try:
            if keys.file is not None:
                keys.read()
            if config.ssl is not None:
                config.ssl.load_cert_chain(address.certificate, address.private_key)
            await service.tasks.follow(wanted())
            log.info("renewed: %s", ", ".join(one.name for one in service.tasks))
        except (TvpError, OSError) as error:
            log.error("not all was renewed: %s", error)

    renewals: set[asyncio.Task[None]] = set()  # which the loop does not keep alive
    app = make_app(loaded, settings, keys, served, started)
    served.clear()  # or what is swapped for another would stay in memory
    config = make_config(app, settings, address)
    listener = listen(address)
    # uvicorn sends itself the signal again when it has ended: it would end this process with an error.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = _Server(config)
    with listener:
        server.run(sockets=[listener])


class _Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn's server: at a signal it takes no more, answers what it has, and ends."""

    service: Service | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.service is not None:
            self.service.engine.is_draining = True
        super().handle_exit(sig, frame)


def make_config(app: ASGIApp, settings: Settings, address: Address) -> uvicorn.Config:
    """Return how uvicorn runs an application; raises RequestError for a certificate that cannot be used."""
    config = uvicorn.Config(
        app,
        http=limited(settings.max_connections, settings.silent_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.time_limit) + 10,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.private_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise RequestError(f"The certificate or its private key cannot be used: {error}.") from error
    return config


def listen(address: Address) -> socket.socket:
    """Return a socket that listens; raises RequestError where the address is taken."""
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=128)
    except OSError as error:
        raise RequestError(
            f"The server cannot listen at {address.host}, port {address.port}: {error.strerror or error}."
        ) from error


def is_local(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
