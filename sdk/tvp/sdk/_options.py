"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click


def several_labels(context: click.Context, option: click.Parameter, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse one label with a comma, which is several that were given as one; and a label that comes twice."""
    if len(labels) == 1 and "," in labels[0]:
        each = " ".join(f"--label {_quoted(part.strip())}" for part in labels[0].split(",") if part.strip())
        raise click.BadParameter(f"{labels[0]!r} is one label, with a comma in it. Repeat the option: {each}")
    for label in labels:
        if not label.strip():
            raise click.BadParameter("A label is empty. Give a text.")
        if labels.count(label) > 1:
            raise click.BadParameter(f"The label {label!r} is there twice. Give each label once.")
    return labels


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text


def _parts(context: click.Context, parameter: click.Parameter, value: str) -> str | dict[str, str]:
    """Return a name as it is, and `vision_encoder=tensorrt,decoder=cuda` as a mapping. `sdk.load` checks the names."""
    if "=" not in value:
        return value
    return {part.strip(): name.strip() for part, _, name in (item.partition("=") for item in value.split(","))}


PROVIDERS = click.option(
    "--providers",
    default="auto",
    show_default=True,
    callback=_parts,
    help="Where to run: auto, cpu, cuda or tensorrt; or by part: vision_encoder=tensorrt,decoder=cuda.",
)

LENS = click.option("--lens", help="Lens bundle whose prompt takes the place of the task's: a folder or a name.")


def structure(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what an answer must be; the command gets those that are given as `structure`."""

    @click.option(
        "--schema",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="File with a JSON Schema: the answer is JSON that it allows.",
    )
    @click.option("--choice", "choices", multiple=True, help="The answer is one of these texts. Repeat it for all.")
    @click.option("--regex", help="The answer is a text that this regular expression matches.")
    @wraps(command)
    def given(*arguments: Any, schema: Path | None, choices: tuple[str, ...], regex: str | None, **more: Any) -> Any:
        from ._structure import read_schema

        asked = {"schema": read_schema(schema) if schema else None, "choices": choices or None, "regex": regex}
        asked = {name: value for name, value in asked.items() if value is not None}
        return command(*arguments, structure=asked, **more)

    return given
