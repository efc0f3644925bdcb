"""The option `--label`, which several commands have."""

from __future__ import annotations

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
