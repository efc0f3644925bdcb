"""Pictures that are fetched from hosts which the operator has allowed by name.

A client names the address, so the server must not be led elsewhere: to the machine itself, its network, or the service
of a cloud that hands out credentials. A host is looked up once, every address that it has must be public, and the
connection goes to the address that was looked at. A redirect is looked at like a first address.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from .refusals import Refusal

MOST_REDIRECTS = 3
SECONDS = 10.0  # for all of a picture
AT_ONCE = 4
PORTS = {"http": 80, "https": 443}
EMBEDDED = [ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]


class Fetcher:
    """Fetches pictures.

    Args:
        allowed: hosts, each a name or `name:port`.
        most_bytes: of a picture.
    """

    def __init__(self, allowed: Iterable[str], most_bytes: int) -> None:
        self.allowed = frozenset(host.lower() for host in allowed)
        self.most_bytes = most_bytes
        self._threads = ThreadPoolExecutor(AT_ONCE, "tvp-fetch")

    async def fetch(self, url: str) -> bytes:
        """Return the bytes behind an address; raises Refusal."""
        self.check(url)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._fetch, url)

    def check(self, url: str) -> SplitResult:
        """Return the parts of an address whose host is allowed; raises Refusal for another."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)
        except ValueError:
            raise _refused("is none") from None
        if not self.allowed:
            raise Refusal(
                400, "This server fetches no pictures. Send the picture itself, as a data URL.", "remote_picture"
            )
        if parts.scheme not in PORTS or parts.username is not None or any(c <= " " or c >= "\x7f" for c in url):
            raise _refused("is none of http or https without a user's name")
        named = host if port == PORTS[parts.scheme] else f"{host}:{port}"
        if named not in self.allowed:
            raise _refused("is on a host that is not allowed")
        return parts

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, url: str) -> bytes:
        until = time.monotonic() + SECONDS
        try:
            for _ in range(MOST_REDIRECTS + 1):
                parts = self.check(url)
                found = self._get(parts, until)
                if isinstance(found, bytes):
                    return found
                url = urljoin(url, found)
        except (OSError, http.client.HTTPException):  # which address refused, and how, is not the client's to know
            raise _refused("did not answer, or its certificate is wrong") from None
        raise _refused(f"leads elsewhere more than {MOST_REDIRECTS} times")

    def _get(self, parts: SplitResult, until: float) -> bytes | str:
        """Return the picture, or the address that is named in its place."""
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        connection = _Connection(host, port, public_address(host, port), parts.scheme == "https", until)
        timer = threading.Timer(max(0.1, until - time.monotonic()), connection.cut)
        timer.start()
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            stack.callback(timer.cancel)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"accept": "image/*", "connection": "close"})
            response = stack.enter_context(connection.getresponse())
            if response.status in (301, 302, 303, 307, 308):
                return response.headers.get("location", "")
            if response.status != 200:
                raise _refused(f"answered with status {response.status}")
            pieces, n = [], 0
            while piece := response.read1(2**16):
                n += len(piece)
                if n > self.most_bytes:
                    raise _refused(f"holds more than {self.most_bytes:,} bytes")
                pieces.append(piece)
            if connection.is_cut:
                raise TimeoutError
            return b"".join(pieces)


def public_address(host: str, port: int) -> str:
    """Look a host up and return one of its addresses; raises Refusal where any of them is not public."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(is_public(address) for address in found):
        raise _refused("leads into a private network")
    return found[0]


def is_public(address: str) -> bool:
    """Return whether an address is one of the internet's; one that wraps another is none."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6 and (ip.ipv4_mapped is not None or any(ip in network for network in EMBEDDED)):
        return False
    return bool(ip.is_global) and not ip.is_multicast


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was looked at, under its host's name, which ends with the time."""

    def __init__(self, host: str, port: int, address: str, secure: bool, until: float) -> None:
        super().__init__(host, port)
        self._address, self._secure, self._until = address, secure, until
        self._socket: socket.socket | None = None
        self.is_cut = False

    def connect(self) -> None:
        left = max(0.1, self._until - time.monotonic())
        self._socket = socket.create_connection((self._address, self.port), left)
        if self._secure:
            self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=self.host)
        self.sock: Any = self._socket

    def close(self) -> None:
        super().close()
        if self._socket is not None:
            self._socket.close()  # which a response that is not read to its end would keep open

    def cut(self) -> None:
        """End it, whatever waits for it: a host may send a byte a second for ever."""
        self.is_cut = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _refused(why: str) -> Refusal:
    return Refusal(400, f"The address of the picture {why}. Send the picture itself, as a data URL.", "remote_picture")
