"""Connections: how many there may be, and how long one may be silent."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: 30\r\n\r\nThere are too many connections"
)


def limited(max_connections: int, silent_seconds: float) -> type[H11Protocol]:
    """Return a protocol for uvicorn that holds connections to limits.

    uvicorn waits without end for the head of a request, and for a client that does not read what it is sent.
    """

    class Limited(H11Protocol):  # type: ignore[misc]
        _waiting: asyncio.TimerHandle | None = None  # for the head of a request, or the rest of a refused body
        _stuck: asyncio.TimerHandle | None = None

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.access_log = False  # the guard writes one, without what a client wrote

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.write(FULL)
                transport.close()
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._waiting, self._stuck):
                if timer is not None:
                    timer.cancel()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(silent_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stuck is not None:
                self._stuck.cancel()

        def _watch(self) -> None:
            """Run the timer exactly while no request is being answered."""
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self._waiting is None:
                self._waiting = self.loop.call_later(silent_seconds, self.transport.abort)
            elif not idle and self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Limited
