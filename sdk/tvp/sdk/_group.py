"""The group of all commands: each is imported only when it is called."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A group that imports a subcommand only when it is called.

    Args:
        lazy: name -> (module, attribute, its line in the group's help, the extra that it needs).
    """

    def __init__(self, *arguments: Any, lazy: Mapping[str, tuple[str, str, str, str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lazy = lazy

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self._lazy:
            return None
        module, attribute, *_ = self._lazy[name]
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise self._not_installed(name, error) from error
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run the subcommand: it may need a package, or be stopped, which is told in plain words."""
        try:
            return super().invoke(context)
        except ImportError as error:
            raise self._not_installed(str(context.invoked_subcommand), error) from error
        except KeyboardInterrupt as error:
            click.echo(err=True)  # the terminal shows ^C
            for text in getattr(error, "__notes__", ["Stopped. The same command begins anew."]):
                click.echo(text, err=True)
            raise SystemExit(128 + signal.SIGINT) from None

    def _not_installed(self, name: str, error: ImportError) -> Exception:
        """Return what an import that failed is told as: of a command without an extra, as it is."""
        extra = self._lazy[name][3] if name in self._lazy else ""
        if not extra:
            return error
        return click.ClickException(
            f"`tvp {name}` needs a package that is not installed: {error.name or error}. "
            f"In a checkout of TVP, run: pip install '.[{extra}]'"
        )

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about, _) in self._lazy.items()])
