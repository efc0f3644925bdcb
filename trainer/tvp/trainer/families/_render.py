"""Writes a chat template: a program of its own, because a stranger's template may loop for ever or fill the memory.

It reads JSON from its input, {"template", "chats", "tokens"}, and writes a list: for each chat its text, or null.
It imports nothing of TVP's. The environment is that of transformers' `chat_template_utils.py`, without what differs
from one time to the next: the date (`strftime_now`) and random choices.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SECONDS, BYTES = 5, 2**30


def limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows; the caller's time limit still holds
        return
    for what, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, BYTES)):
        resource.setrlimit(what, (most, most))


def render(template: str, chats: list[Any], tokens: dict[str, Any]) -> list[str | None]:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    del environment.globals["lipsum"], environment.filters["random"]
    found: list[str | None] = []
    for chat in chats:
        try:
            text = environment.from_string(template).render(
                messages=chat, tools=None, documents=None, add_generation_prompt=True, **tokens
            )
        except (jinja2.TemplateError, TypeError, AttributeError, LookupError, ValueError, ArithmeticError):
            text = None
        found.append(text)
    return found


if __name__ == "__main__":
    limit()
    json.dump(render(**json.load(sys.stdin)), sys.stdout)
