"""What every request passes: who asks, from where, and what is written down of it."""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .keys import Caller, Keys
from .metrics import Metrics
from .page import PATHS
from .refusals import ClientGoneError, Refusal, refusal_of, reply
from .settings import Settings

log = logging.getLogger("tvp.serve")
access = logging.getLogger("tvp.serve.access")

OPEN = PATHS | {"/healthz", "/readyz"}  # the page, and what a load balancer asks: without a key
HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware around the whole application.

    Its line in the access log has the caller's name and the endpoint, and nothing that a client wrote.
    """

    def __init__(self, app: ASGIApp, shared: object, settings: Settings, keys: Keys, metrics: Metrics) -> None:
        self.app, self.shared = app, shared  # which the endpoints find as `request.app`
        self.settings, self.keys, self.metrics = settings, keys, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        status, n_bytes, number = 0, 0, secrets.token_hex(8)

        async def send_guarded(message: Message) -> None:
            nonlocal status, n_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)  # a page brings a policy of its own
                headers["x-request-id"] = number
            else:
                n_bytes += len(message.get("body", b""))
            await send(message)

        address = (scope.get("client") or ("unknown", 0))[0]
        caller = Caller(address)
        try:
            headers = Headers(scope=scope)
            self._refuse_strange(headers, scope["scheme"])
            if scope["path"] not in OPEN:
                caller = self.keys.caller(headers.get("authorization"), address)
            scope["caller"], scope["app"] = caller, self.shared
            await self.app(scope, receive, send_guarded)
        except ClientGoneError:
            status = status or 499
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.status >= 500 and not isinstance(error, Refusal):
                note_bug(error, number)
            if not status:
                await reply(refusal)(scope, receive, send_guarded)
        finally:
            endpoint = scope.get("tvp_endpoint", "(none)")
            spent = time.perf_counter() - began
            self.metrics.requests.labels(endpoint, str(status)).inc()
            access.info(
                "%s %s %s %s %d %d bytes %.1f ms %s",
                address, "-" if caller.name == address else caller.name,
                scope["method"] if scope["method"] in METHODS else "(other)", endpoint, status, n_bytes, 1e3 * spent,
                number,
            )  # fmt: skip

    def _refuse_strange(self, headers: Headers, scheme: str) -> None:
        """Refuse what a browser sends for another site, and a body of which two parties may see two lengths."""
        if "transfer-encoding" in headers and "content-length" in headers:
            raise Refusal(400, "A request has a Content-Length or a Transfer-Encoding.", "two_lengths", closes=True)
        host = headers.get("host", "")
        if len(headers.getlist("host")) > 1:
            raise Refusal(400, "A request has one Host.", "wrong_host", closes=True)
        # Without this, a page on the internet could reach a server without keys by a name that leads to 127.0.0.1.
        if self.settings.hosts and _name_of(host) not in self.settings.hosts:
            raise Refusal(421, "This server is not called so. Use the address that it printed.", "wrong_host")
        origin = headers.get("origin")
        # Behind a proxy that speaks TLS, this server's own page is one of https, though it is asked over http.
        if origin is not None and origin not in (f"{scheme}://{host}", f"https://{host}"):
            raise Refusal(403, "Pages of other sites may not ask this server.", "other_origin")


METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")


def note_bug(error: BaseException, number: str) -> None:
    """Log where an error came from; not its message, which may hold a client's words."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("Request %s failed with %s:\n%s", number, type(error).__name__, frames)


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def caller_of(scope: Any) -> Caller:
    """Return who asks, as the guard found it."""
    caller: Caller = scope["caller"]
    return caller
