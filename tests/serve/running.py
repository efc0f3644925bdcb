"""A server on loopback, in a thread of the tests' process, with the golden bundles of the newest format."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serve.extra import httpx, uvicorn
from tvp.sdk.serve.app import make_app
from tvp.sdk.serve.keys import Keys
from tvp.sdk.serve.questions import Service
from tvp.sdk.serve.server import listen, make_config
from tvp.sdk.serve.settings import Address, Settings
from tvp.sdk.serve.tasks import Served, Tasks

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "format-2"
LLAVA, T5 = str(GOLDENS / "llava_next.tvp"), str(GOLDENS / "instructblip-t5.tvp")
SCENE = (ROOT / "docs" / "images" / "scene.png").read_bytes()
PICTURES = [SCENE, *(file.read_bytes() for file in sorted((ROOT / "tests" / "goldens").glob("*.png")))]
QUESTION = "How many objects are there?"


@dataclass
class Running:
    """A server that runs.

    Attributes:
        port: where.
        client: of httpx, for that address.
        service: what the endpoints share.
    """

    port: int
    client: httpx.Client
    service: Service
    server: uvicorn.Server

    def ask(self, picture: bytes = SCENE, path: str = "/v1/ask", **fields: Any) -> httpx.Response:
        """Send a form."""
        return self.client.post(path, files={"image": ("x.png", picture)}, data=fields)

    def raw(self, data: bytes, seconds: float = 20) -> bytes:
        """Send bytes on a connection of their own; returns all that comes until it ends."""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as connection:
            connection.sendall(data)
            return read_all(connection)

    def in_loop(self, function: Any) -> None:
        """Run a function in the event loop's thread."""
        done = threading.Event()
        loop = self.service.engine._loop.get_loop()
        loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(20)


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side ends the connection."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionError:
        pass
    return data


@contextmanager
def running(
    settings: Settings | None = None, keys: Path | None = None, bundles: dict[str, str] | None = None
) -> Iterator[Running]:
    """Run a server; by default with both golden bundles, and without keys."""
    settings, found = settings or Settings(), Keys(keys)
    tasks = Tasks(settings)
    served: list[Served] = [
        tasks.open(name, source) for name, source in (bundles or {"llava": LLAVA, "t5": T5}).items()
    ]
    started: list[Service] = []
    app = make_app(tasks, settings, found, served, started.append)
    listener = listen(Address(port=0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(make_config(app, settings, Address()))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: started and server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield Running(port, client, started[0], server)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(happens: Any, seconds: float = 30) -> None:
    """Wait until something happens."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Gate:
    """Where the engine stands still.

    Attributes:
        entered: whether it stands there.
    """

    def __init__(self) -> None:
        self.entered, self._go = threading.Event(), threading.Event()

    def occupy(self, pool: Executor, server: Running) -> Future[httpx.Response]:
        """Ask a question that the engine holds in its hands: all others wait behind it."""
        asked = pool.submit(server.ask, task="t5", max_new_tokens=1)
        assert self.entered.wait(30)
        return asked

    def hold(self) -> None:
        self.entered.set()
        self._go.wait(30)

    def open(self) -> None:
        self._go.set()


@contextmanager
def standing_still(run: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Let the engine stand still before it computes, until its gate is opened."""
    engine, gate, real = run.service.engine, Gate(), run.service.engine._compute
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_compute", lambda jobs: (gate.hold(), real(jobs)))
        try:
            yield gate
        finally:
            gate.open()
            until(lambda: not len(engine.waiting))


def events_of(text: str) -> list[Any]:
    """The values of a stream's events, but for its end."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
