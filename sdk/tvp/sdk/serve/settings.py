"""What a server allows: `Settings`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from .._image_limits import ImageLimits
from ..errors import RequestError

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """The limits of a server. Each is a number above 0 unless it says otherwise.

    Attributes:
        n_waiting: questions that may wait; more are refused with 429.
        batch: questions that are answered together.
        time_limit: seconds for a question, the time that it waits included.
        max_tokens: the longest answer that a client may ask for.
        max_body: bytes of a request's body.
        max_pixels: of a picture.
        max_question: characters of a question or a label.
        max_labels: labels that one request may rank.
        max_connections: at the same time.
        max_view_bytes: memory for pictures that were seen; 0 remembers none.
        body_seconds: for a body to arrive.
        silent_seconds: for the head of a request to arrive, and for a client to take what was sent to it.
        ping_seconds: between two signs of life in a stream that has nothing to say.
        allowed_hosts: hosts that pictures may be fetched from, each a name or `name:port`.
        hosts: names that the `Host` of a request may have; empty for any.
    """

    n_waiting: int = 64
    batch: int = 8
    time_limit: float = 60.0
    max_tokens: int = 1024
    max_body: int = 16 * MIB
    max_pixels: int = 40_000_000
    max_question: int = 2000
    max_labels: int = 1000
    max_connections: int = 256
    max_view_bytes: int = 256 * MIB
    body_seconds: float = 20.0
    silent_seconds: float = 10.0
    ping_seconds: float = 15.0
    allowed_hosts: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "max_view_bytes" else 1 if isinstance(field.default, int) else 0.001
            if not isinstance(value, tuple) and not value >= least:
                raise RequestError(f"{field.name} is {value!r}; it must be a number of at least {least}.")

    @property
    def image_limits(self) -> ImageLimits:
        """What a picture may cost."""
        return ImageLimits(pixels=self.max_pixels, bytes=self.max_body, seconds=min(10.0, self.time_limit))


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host, port: port 0 takes a free one.
        certificate, private_key: PEM files for TLS; None for plain HTTP.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None
