"""The option `--label`, which several commands have."""

from __future__ import annotations

import shlex

import click


def one_each(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels; a list in one of them, an empty one and one that comes twice are wrong usage.

    A label may hold a comma where there are several: they are no list then.
    """
    if len(values) == 1 and "," in values[0]:
        parts = [part.strip() for part in values[0].split(",") if part.strip()]
        asked = " ".join(f"--label {shlex.quote(part)}" for part in parts)
        raise click.BadParameter(f"{values[0]!r} is one label. Repeat the option for each label: {asked}")
    if not all(value.strip() for value in values):
        raise click.BadParameter("A label is empty. Give a text.")
    for value in values:
        if values.count(value) > 1:
            raise click.BadParameter(f"The label {value!r} is there twice. Give each label once.")
    return values
