"""Writes the pages of the reference that say what the code says.

    python docs/reference/generate.py

command-line.md: every command and option, of the commands themselves. settings.md: the fields of a training's
configuration, and what the shipped files set, between the two marks. cameras.md: what a camera can have, between the
two marks. A test compares all with the code.
"""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BEGIN, END = "<!-- begin: generated -->", "<!-- end: generated -->"


def cli() -> click.Group:
    """The group of all commands, found as an installation finds it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    group: click.Group = importlib.import_module(scripts["tvp"].partition(":")[0]).cli
    return group


def command_line() -> str:
    """The page of all commands."""
    group = cli()
    context = click.Context(group, info_name="tvp")
    lines = [
        "# Command line",
        "",
        "`tvp COMMAND --help` prints the same on your machine. A command ends with 0 if all of it succeeded, with 1 "
        "for a failure, and with 2 for wrong usage.",
        "",
        "| command | does |",
        "| --- | --- |",
    ]
    names = group.list_commands(context)
    commands = [(name, group.get_command(context, name)) for name in names]
    rows = [(name, command) for name, command in commands if command is not None]
    lines += [f"| [`tvp {name}`](#tvp-{name}) | {_cell(command.get_short_help_str(200))} |" for name, command in rows]
    lines += ["", "`tvp-export` is the same as `tvp export`; `python -m tvp.trainer` is the same as `tvp train`.", ""]
    for name, command in rows:
        lines += _command(name, command, context)
    return "\n".join(lines).rstrip() + "\n"


def _command(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield from (f"## tvp {name}", "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ('```text title="Usage"', f"tvp {name} {usage}", "```", "")
    for paragraph in (command.help or "").split("\n\n"):
        yield from (" ".join(paragraph.split()), "")
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield from ("| option | value | default | |", "| --- | --- | --- | --- |")
        yield from (_option(option) for option in options)
        yield ""


def _option(option: click.Option) -> str:
    named = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    kind = option.type
    if option.is_flag:
        value = ""
    elif option.metavar:
        value = f"`{option.metavar}`"
    elif isinstance(kind, click.Choice):
        value = ", ".join(f"`{choice}`" for choice in kind.choices)
    else:
        value = {"integer": "whole number", "float": "number"}.get(kind.name.removesuffix(" range"), kind.name)
    help_text, default = option.help or "", ""
    if found := re.search(r"\s*\[(.*)\]$", help_text):  # the options of `tvp train` say it there
        help_text, default = help_text[: found.start()], found[1]
    elif isinstance(option.default, str | int | float) and not option.is_flag and option.default != "":
        default = str(option.default)
    if option.required:
        default = "**required**"
    if option.multiple:
        value += ", repeatable"
    return f"| {named} | {_cell(value)} | {_cell(default)} | {_cell(help_text)} |"


def settings() -> str:
    """The table of a training's fields, and the table of what the shipped files set."""
    from tvp.trainer.config import SHIPPED, TrainConfig

    train = cli().get_command(click.Context(cli()), "train")
    assert train is not None
    said = {option.name: option.help for option in train.params if isinstance(option, click.Option)}
    lines = ["| field | default | |", "| --- | --- | --- |"]
    for field in fields(TrainConfig):
        default = "**required**" if field.default is MISSING else f"`{_toml(field.default)}`"
        help_text = re.sub(r"\s*\[.*\]$", "", said.get(field.name) or "")
        lines.append(f"| `{field.name}` | {default} | {_cell(help_text)} |")
    for folder, title in (("methods", "method"), ("tasks", "task")):
        lines += ["", f"| {title} | its file sets |", "| --- | --- |"]
        for file in sorted((SHIPPED / folder).iterdir(), key=lambda path: path.name):
            if file.name.endswith(".toml"):
                found = tomllib.loads(file.read_text(encoding="utf-8"))
                lines.append(f"| `{file.name.removesuffix('.toml')}` | {_cell(_assignments(found))} |")
    return "\n".join(lines)


def cameras() -> str:
    """The table of all parts of cameras, and that of cameras with names."""
    from tvp.trainer.cameras import KINDS, NAMED, SEVERITIES, Part

    lines = ["| part | what it does | values | severities 1 to 5 |", "| --- | --- | --- | --- |"]
    for name, kind in KINDS.items():
        values = [f"{v.name} ({v.low:g} to {v.high:g}{_default(v.default)})" for v in kind.values]
        steps = {
            side: " · ".join(str(Part(name, severity=step).at(side, side)).partition("=")[2] for step in SEVERITIES)
            for side in sorted(kind.severities)
        }
        shown = [f"from {side} px: {text}" if side else text for side, text in steps.items()]
        lines.append(f"| `{name}` | {_cell(kind.about)} | {_cell('; '.join(values))} | {_cell('; '.join(shown))} |")
    lines += ["", "| name | camera |", "| --- | --- |"]
    return "\n".join(lines + [f"| `{name}` | `{camera}` |" for name, camera in NAMED.items()])


def _default(default: Any) -> str:
    if default is None:
        return ""
    return f"; default {'..'.join(f'{end:g}' for end in default) if isinstance(default, tuple) else f'{default:g}'}"


def _assignments(found: dict[str, Any]) -> str:
    own = ", ".join(f"`{key} = {_toml(value)}`" for key, value in found.items() if not isinstance(value, dict))
    tables = [f"for `{key}`: {_assignments(value)}" for key, value in found.items() if isinstance(value, dict)]
    return "; ".join([own or "nothing", *tables])


def _toml(value: Any) -> str:
    return json.dumps(value)  # which writes texts, numbers, booleans and lists of texts as TOML does


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def pages() -> dict[Path, str]:
    """What each generated page holds."""
    found = {HERE / "command-line.md": command_line()}
    for page, text in ((HERE / "settings.md", settings()), (HERE / "cameras.md", cameras())):
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        found[page] = f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
