"""The body of a request: JSON or a form, within limits, and never on a disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from .refusals import ClientGoneError, Refusal
from .settings import Settings

MOST_PIECES = 50_000  # values in JSON, each of which takes far more memory than its character
MOST_PARTS = 64  # of a form
MOST_HEADERS = 4096  # bytes, of one part
LARGE = 2**18  # bytes; a larger body is parsed beside the event loop


@dataclass(frozen=True)
class Body:
    """What a client sent.

    Attributes:
        fields: of the JSON object, or the texts of a form; a field that comes several times is a list.
        files: the files of a form, by the name of the field.
        is_form: whether it was a form, whose every value is a text.
    """

    fields: dict[str, Any]
    files: dict[str, bytes]
    is_form: bool


async def read_body(request: Request, settings: Settings) -> Body:
    """Read and parse a body.

    Raises:
        Refusal: it is too large, too slow, of another type, or damaged.
        ClientGoneError: the client went before it had sent all.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"application/json":
        parse: Callable[[bytes], Body] = parse_json
    elif kind == b"multipart/form-data":
        boundary = options.get(b"boundary", b"")

        def parse(data: bytes) -> Body:
            return parse_form(data, boundary)
    else:
        raise Refusal(415, "The body must be application/json or multipart/form-data.", "wrong_type")
    data = await _receive(request, settings)
    return parse(data) if len(data) < LARGE else await asyncio.to_thread(parse, data)


async def _receive(request: Request, settings: Settings) -> bytes:
    most = settings.max_body
    too_large = Refusal(413, f"The body is larger than {most:,} bytes. Send a smaller picture.", "too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    pieces, n = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for piece in request.stream():
                n += len(piece)
                if n > most:
                    raise too_large
                pieces.append(piece)
    except TimeoutError:
        raise Refusal(
            408, f"The body did not arrive within {settings.body_seconds:g} s. Send it faster.", "too_slow"
        ) from None
    except ClientDisconnect:
        raise ClientGoneError from None
    return b"".join(pieces)


def parse_json(data: bytes) -> Body:
    """Parse a JSON object; raises Refusal."""
    # Counted first: ten megabytes of "[],[],…" would be a gigabyte of lists.
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_PIECES:
        raise Refusal(400, f"The JSON has more than {MOST_PIECES:,} values.", "wrong_json")
    try:
        found = json.loads(data.decode(), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise Refusal(400, "The JSON is not in UTF-8.", "wrong_json") from None
    except RecursionError:
        raise Refusal(400, "The JSON is nested too deeply.", "wrong_json") from None
    except ValueError as error:
        where = f": {error}" if isinstance(error, json.JSONDecodeError) else ", or holds a number that is none"
        raise Refusal(400, f"The body is no JSON{where}.", "wrong_json") from None
    if not isinstance(found, dict):
        raise Refusal(400, "The JSON must be an object.", "wrong_json")
    return Body(found, {}, False)


def _no_number(name: str) -> None:
    raise ValueError(name)


def parse_form(data: bytes, boundary: bytes) -> Body:
    """Parse multipart/form-data; raises Refusal."""
    form = _Form(data)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(data)
        parser.finalize()
    except (FormParserError, ValueError):
        raise Refusal(400, "The form is damaged or cut off.", "wrong_form") from None
    if not form.is_whole:
        raise Refusal(400, "The form is damaged or cut off.", "wrong_form")
    return Body(form.fields, form.files, True)


class _Form:
    """The parts of a form while they are parsed, all of them in memory."""

    def __init__(self, data: bytes) -> None:
        self.fields: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.is_whole = False
        self._n_parts = self._n_headers = 0

    def callbacks(self) -> Any:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self._n_parts += 1
        if self._n_parts > MOST_PARTS:
            raise Refusal(400, f"The form has more than {MOST_PARTS} parts.", "wrong_form")
        self._data: list[bytes] = []
        self._header, self._value, self._disposition, self._n_headers = b"", b"", b"", 0

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += self._counted(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def part_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name, content = options.get(b"name", b"").decode(), b"".join(self._data)
        if not name:
            raise Refusal(400, "A part of the form has no name.", "wrong_form")
        if b"filename" in options:
            if name in self.files:
                raise Refusal(400, f"The form has several files {name!r}; this server takes one picture.", "wrong_form")
            self.files[name] = content
            return
        text = content.decode()
        if name not in self.fields:
            self.fields[name] = text
        elif isinstance(self.fields[name], list):
            self.fields[name].append(text)
        else:
            self.fields[name] = [self.fields[name], text]

    def end(self) -> None:
        self.is_whole = True

    def _counted(self, data: bytes) -> bytes:
        self._n_headers += len(data)
        if self._n_headers > MOST_HEADERS:
            raise Refusal(400, f"The head of a part of the form has more than {MOST_HEADERS} bytes.", "wrong_form")
        return data
