"""The picture of a request: a file of a form, a data URL, base64, or an address on an allowed host."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

from .bodies import LARGE, Body
from .refusals import Refusal
from .remote import Fetcher


@dataclass(frozen=True)
class Picture:
    """The bytes of a picture's file, and their sha256, by which it is known again."""

    data: bytes
    digest: bytes

    @staticmethod
    def of(data: bytes) -> Picture:
        return Picture(data, hashlib.sha256(data).digest())


async def read_picture(source: Any, fetcher: Fetcher) -> Picture:
    """Return a picture.

    Args:
        source: bytes of a file, or a text: a data URL, base64, or an address that starts with http.
        fetcher: fetches from allowed hosts.

    Raises:
        Refusal: it is none of these, or its host is not allowed.
    """
    if isinstance(source, str):
        if source[:8].lower().startswith(("http://", "https://")):
            source = await fetcher.fetch(source)
        elif len(source) < LARGE:
            source = decode(source)
        else:
            source = await asyncio.to_thread(decode, source)
    if not isinstance(source, bytes):
        raise Refusal(400, f"The picture is a {_kind(source)}; it must be a data URL or base64.", "invalid_image")
    if not source:
        raise Refusal(400, "The picture is empty. Give another one.", "invalid_image")
    return Picture.of(source) if len(source) < LARGE else await asyncio.to_thread(Picture.of, source)


def decode(text: str) -> bytes:
    """Return the bytes of a data URL or of base64; raises Refusal."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Refusal(
                400, "A data URL of a picture begins with 'data:image/jpeg;base64,' or another type.", "invalid_image"
            )
    elif ":" in text[:32]:
        raise Refusal(
            400,
            "A picture is sent as a data URL, as base64, or as a file of a form. Other addresses are not read.",
            "invalid_image",
        )
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise Refusal(
            400, "The picture is no base64: a character is wrong, or it is cut off.", "invalid_image"
        ) from None


def picture_of(body: Body, name: str = "image") -> Any:
    """Return the source of a body's only picture, for `read_picture`; raises Refusal."""
    sources = [*body.files.values(), *([body.fields[name]] if name in body.fields else [])]
    if len(sources) != 1 or (body.files and name not in body.files):
        raise Refusal(400, f"The request has {len(sources)} pictures; give one, as {name!r}.", "invalid_image")
    return sources[0]


def _kind(value: Any) -> str:
    return {dict: "JSON object", list: "list", type(None): "null"}.get(type(value), "value that is no text")
