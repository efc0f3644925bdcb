"""Options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, TypeVar

import click

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


def allow_outside_option(command: F) -> F:
    """Add `--allow-outside` to a command that reads data; see `data.places`."""
    help = (
        "Read pictures outside of the data's folder too, where rows or links name them. Only for data that you trust."
    )
    return click.option("--allow-outside", is_flag=True, help=help)(command)
