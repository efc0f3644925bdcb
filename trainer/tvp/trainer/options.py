"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import click

from .choices import Precision
from .hub import VARIABLES

F = TypeVar("F", bound=Callable[..., Any])


def offline_option(command: F) -> F:
    """Add `--offline` to a command. It acts as the hub's own variable does, so that every library obeys."""

    @contextmanager
    def set_variable() -> Any:
        before = os.environ.get(VARIABLES[0])
        os.environ[VARIABLES[0]] = "1"
        try:
            yield
        finally:
            os.environ.pop(VARIABLES[0])
            os.environ.update({} if before is None else {VARIABLES[0]: before})

    def act(context: click.Context, option: click.Parameter, value: bool) -> None:
        if value:
            context.with_resource(set_variable())

    help = "Fetch nothing: every model is a folder, or in the hub's cache. HF_HUB_OFFLINE=1 does the same."
    return click.option("--offline", is_flag=True, expose_value=False, callback=act, help=help)(command)


def measuring_options(command: F) -> F:
    """Add the options of a command that asks models about data: device, precision, batch, and how data is read."""
    for option in reversed(
        (
            click.option("--device", default="cpu", show_default=True, help="Where models run: cpu, cuda, cuda:1 …"),
            click.option(
                "--precision",
                default="fp32",
                show_default=True,
                type=click.Choice(get_args(Precision)),
                help="Number format of the models. auto takes bf16 on a GPU that has it, else fp32.",
            ),
            click.option(
                "--batch",
                default=256,
                show_default=True,
                type=click.IntRange(1),
                help="Questions that the language model reads at once. Lower it to save memory.",
            ),
            skip_bad_option,
            download_option,
            offline_option,
            allow_outside_option,
        )
    ):
        command = option(command)
    return command


def skip_bad_option(command: F) -> F:
    """Add `--skip-bad` to a command that reads data."""
    help = "Leave bad rows out of the data and list them. Default: stop at one."
    return click.option("--skip-bad", is_flag=True, help=help)(command)


def download_option(command: F) -> F:
    """Add `--download` to a command that reads a task's data."""
    help = "Download the task's data set into the folder of --data."
    return click.option("--download", is_flag=True, help=help)(command)


def allow_outside_option(command: F) -> F:
    """Add `--allow-outside` to a command that reads data; see `data.places`."""
    help = (
        "Read pictures outside of the data's folder too, where rows or links name them. Only for data that you trust."
    )
    return click.option("--allow-outside", is_flag=True, help=help)(command)
