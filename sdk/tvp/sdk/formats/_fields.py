"""The values that a manifest's fields may have.

A reader takes a JSON value and its place in the manifest, for messages. It returns the value of a dataclass's field,
or raises BundleError. `whole`, `number`, `one_of` and `optional` make readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ..errors import BundleError
from .integrity import FileEntry
from .layout import CaptionTemplates, PromptLayout

MAX_PLACES = 8  # of a question in a prompt; a template may repeat it
T = TypeVar("T")
Read = Callable[[Any, str], T]


def read_versioned(file: Path, what: str, most_bytes: int, newest: int, again: str) -> dict[str, Any]:
    """Read a JSON object that says its format.

    Args:
        file: the file.
        what: it is, for messages.
        most_bytes: of the file.
        newest: format that is read.
        again: what to do about a missing or damaged file.

    Raises:
        BundleError: it is missing, too large, damaged, or of a later format.
    """
    try:
        if not file.is_file() or file.stat().st_size > most_bytes:
            raise BundleError(f"The {what} {file} are missing or larger than {most_bytes >> 20} MiB. {again}")
        content = of_type(json.loads(file.read_bytes()), str(file), dict)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"The {what} {file} cannot be read: {error}.") from error
    version = content.get("format")
    if type(version) is not int or version > newest:
        raise BundleError(f"{file} is of format {version!r}, and this TVP reads up to {newest}. Update TVP.")
    return content


def read_text(value: Any, where: str) -> str:
    return of_type(value, where, str)


def read_texts(value: Any, where: str) -> tuple[str, ...]:
    values = of_type(value, where, list)
    if not all(isinstance(text, str) for text in values):
        raise BundleError(f"{where} must be a list of texts.")
    return tuple(values)


def read_facts(value: Any, where: str) -> dict[str, Any]:
    return of_type(value, where, dict)


def whole(least: int, below: int = 2**31) -> Read[int]:
    def read(value: Any, where: str) -> int:
        number = of_type(value, where, int)
        if not least <= number < below:
            raise BundleError(
                f"{where} is {str(number)[:40]}; it must be a whole number from {least} to below "
                f"2^{below.bit_length() - 1}."
            )
        return number

    return read


def number(least: float = -math.inf, most: float = math.inf) -> Read[float]:
    def read(value: Any, where: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise BundleError(f"{where} is {str(value)[:40]}; it must be a finite number.")
        if not least <= value <= most:
            raise BundleError(f"{where} is {value}; it must be from {least:g} to {most:g}.")
        return float(value)

    return read


def read_three(read: Read[T]) -> Read[tuple[T, ...]]:
    """Three values, of red, green and blue."""

    def read_all(value: Any, where: str) -> tuple[T, ...]:
        values = of_type(value, where, list)
        if len(values) != 3:
            raise BundleError(f"{where} must be a list of three values, of red, green and blue.")
        return tuple(read(one, where) for one in values)

    return read_all


def one_of(*allowed: T) -> Read[T]:
    def read(value: Any, where: str) -> T:
        if type(value) is not type(allowed[0]) or value not in allowed:
            raise BundleError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
        return value

    return read


def read_files(value: Any, where: str) -> dict[str, FileEntry]:
    entries = {}
    for name, entry in of_type(value, where, dict).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
            raise BundleError(f"{where} names the file {name!r}, which would lie outside of the bundle.")
        if not isinstance(entry, dict):
            raise BundleError(f"{where}: the entry of {name!r} must hold size and sha256.")
        size = whole(0, 2**63)(entry.get("size"), f"{where}.{name}.size")
        entries[name] = FileEntry(size, read_text(entry.get("sha256"), f"{where}.{name}.sha256"))
    return entries


def read_layout(value: Any, where: str) -> PromptLayout:
    content = of_type(value, where, dict)
    end = of_type(content.get("end"), f"{where}.end", list)
    if not end or not all(type(token) is int and 0 <= token < 2**31 for token in end):
        raise BundleError(f"{where}.end must list at least one token id.")
    prompt = read_text(content.get("prompt"), f"{where}.prompt")
    # The text before the question stays in a cache from one question to the next, so no question may stand in it.
    before, _, after = prompt.partition("{question}")
    if not 1 <= prompt.count("{question}") <= MAX_PLACES or before.count("{image}") > 1 or "{image}" in after:
        raise BundleError(f"{where}.prompt must hold {{question}} and at most one {{image}}, before it.")
    return PromptLayout(
        prompt,
        read_text(content.get("answer"), f"{where}.answer"),
        read_text(content.get("image_token"), f"{where}.image_token"),
        tuple(end),
        one_of(False, True)(content.get("apart"), f"{where}.apart"),
    )


def read_captions(value: Any, where: str) -> CaptionTemplates:
    content = of_type(value, where, dict)
    begun, asked = (read_text(content.get(name), f"{where}.{name}") for name in ("begun", "asked"))
    return CaptionTemplates(begun, asked)


def of_type(value: Any, where: str, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"{where} must be of type {kind.__name__}, not {type(value).__name__}.")
    return value


def optional(read: Read[T]) -> Read[T | None]:
    return lambda value, where: None if value is None else read(value, where)
