"""What an answer must be, where a caller says so: a JSON Schema, choices or a regular expression.

llguidance follows it while the answer is written (`_following.py`). Here is what can be said without it: one of the
three, of a bounded size, and no keyword of JSON Schema that llguidance would pass over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import AnswerError, RequestError, near

OPTIONS = ("schema", "choices", "regex")
MAX_TEXT = 65536  # characters of all that is asked for
MAX_DEPTH = 64  # of a schema; a parser would fail at about twice as much

# Keywords of JSON Schema that llguidance follows, by what their values hold.
ONE = ("items", "additionalItems", "additionalProperties")  # a schema
SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems")  # a list of schemas
BY_NAME = ("properties", "patternProperties", "$defs", "definitions")  # schemas by names
VALUES = (
    "$ref", "const", "enum", "type", "minItems", "maxItems", "required", "minProperties", "maxProperties", "minLength",
    "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
)  # fmt: skip
# Keywords that it does not.
OTHERS = (
    "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames",
    "dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef",
)  # fmt: skip
# Keywords that say nothing of what is valid.
NOTES = (
    "$schema", "$id", "id", "$anchor", "$comment", "title", "description", "default", "example", "examples",
    "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator",
)  # fmt: skip
KNOWN = (*ONE, *SEVERAL, *BY_NAME, *VALUES, *NOTES)
# Without \u, because a name such as "\u0061" would be a second "a" behind llguidance's back.
ESCAPES = 'nrbtf\\"'


@dataclass(frozen=True)
class Structure:
    """What an answer must be.

    Attributes:
        option: the option that says so, one of `OPTIONS`.
        text: the schema or the list of choices as JSON, or the regular expression.
    """

    option: str
    text: str


def structure_of(given: Mapping[str, Any]) -> Structure | None:
    """Return what options ask for, whose types were checked; None for a free answer.

    Raises:
        RequestError: several are given, it is too large, or a schema has what llguidance does not follow.
    """
    asked = [name for name in OPTIONS if name in given]
    if not asked:
        return None
    if len(asked) > 1:
        raise RequestError(f"{' and '.join(asked)} are given; an answer has one structure. Give one of them.")
    if given.get("stop"):
        raise RequestError(f"stop would cut the answer that {asked[0]} asks for. Leave one of them out.")
    option, value = asked[0], given[asked[0]]
    if option == "regex":
        text = str(value)
    else:
        if option == "schema":
            _check_schema(value)
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise RequestError(f"The schema is no JSON: {error}.") from error
    if len(text) > MAX_TEXT:
        raise RequestError(f"{option} takes {len(text):,} characters; at most {MAX_TEXT:,} are allowed. Shorten it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{option} contains half a character (a lone surrogate). Remove it.") from error
    return Structure(option, text)


def _check_schema(schema: Mapping[str, Any]) -> None:
    """Raise RequestError for the first keyword that would not be followed, by name and place."""
    for place, part in _parts(schema, "", 0):
        for name, value in part.items():
            if not isinstance(name, str):
                raise RequestError(f"The schema has the key {name!r}{_at(place)}; keys must be texts.")
            if name == "x-guidance" or (name not in KNOWN and not name.startswith("x-")):
                meant = "" if name in OTHERS else near(name, KNOWN)
                raise RequestError(
                    f"The schema has the keyword {name[:80]!r}{_at(place)}, which structured answers do not follow. "
                    f"Leave it out.{meant}"
                )
            if name == "minProperties" and isinstance(value, int) and value > 1:
                raise RequestError(
                    f"The schema has 'minProperties' = {value}{_at(place)}; at most 1 is followed, because a name may "
                    "come twice. List names in 'required'."
                )
            if name in ("const", "enum", "required") or name in BY_NAME[:1]:
                _check_literals(value if name not in BY_NAME else [*value], f"{place}/{name}")


def _parts(schema: Any, place: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a schema and all schemas in it, with their places."""
    if depth > MAX_DEPTH:
        raise RequestError(f"The schema is nested in more than {MAX_DEPTH} levels. Make it flatter.")
    if not isinstance(schema, Mapping):
        return  # true and false; llguidance refuses all else
    yield place, schema
    for name in ONE:
        yield from _parts(schema.get(name), f"{place}/{name}", depth + 1)
    for name in SEVERAL:
        found = schema.get(name)
        for number, part in enumerate(found if isinstance(found, list | tuple) else ()):
            yield from _parts(part, f"{place}/{name}/{number}", depth + 1)
    for name in BY_NAME:
        found = schema.get(name)
        if found is not None and not isinstance(found, Mapping):
            raise RequestError(f"The schema has '{name}'{_at(place)} that is no object.")
        for key, part in (found or {}).items():
            yield from _parts(part, f"{place}/{name}/{key}", depth + 1)


def _check_literals(value: Any, place: str, depth: int = 0) -> None:
    """Raise RequestError for a text in a value that cannot be written."""
    if depth > MAX_DEPTH:
        raise RequestError(f"The schema has a value{_at(place)} that is nested in more than {MAX_DEPTH} levels.")
    if isinstance(value, str):
        if any((ord(letter) < 32 and letter not in "\n\r\b\t\f") or letter == "\x7f" for letter in value):
            raise RequestError(
                f"The schema has a control character in {value[:80]!r}{_at(place)}, which is not written. Leave it out."
            )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_literals(key, place, depth + 1)
            _check_literals(item, place, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_literals(item, place, depth + 1)


def _at(place: str) -> str:
    return f" at {place[:200]}" if place else ""


def read_schema(file: Path) -> Mapping[str, Any]:
    """Read a JSON Schema; raises RequestError for a file that holds no JSON object."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{file} holds no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise RequestError(f"{file} holds a {type(found).__name__}; a JSON Schema is an object.")
    return found


def unfinished(reason: str, n_tokens: int) -> AnswerError:
    """Return the error of an answer that ended before it was what it must be.

    Args:
        reason: `length`, `time`, `cancelled`, or `stuck`, where no token of the model goes on.
        n_tokens: that were written.
    """
    told = {
        "length": f"The answer was not complete after {n_tokens} tokens, where the limit or the model's context ends. "
        "Raise max_new_tokens, or ask for less.",
        "time": f"The time limit passed after {n_tokens} tokens, before the answer was complete.",
        "cancelled": "The answer was cancelled before it was complete.",
        "stuck": f"The model has no token that goes on behind the first {n_tokens}: its vocabulary cannot write what "
        "is asked for, or llguidance reached a limit of its own. Ask for a simpler structure.",
    }
    return AnswerError(told[reason])
