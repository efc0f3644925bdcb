"""The `tvp` command. Sub-commands live in their packages and are imported only when they are called."""

from __future__ import annotations

import importlib
import io
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .errors import TvpError

# name -> (module, attribute, what the help says, the extra that it needs)
COMMANDS: dict[str, tuple[str, str, str, str]] = {
    "train": ("tvp.trainer.cli", "train", "Learn a prompt on frozen models.", "train"),
    "eval": ("tvp.trainer.eval_cli", "evaluate", "Measure models with and without prompts.", "train"),
    "convert": (
        "tvp.trainer.convert_cli",
        "convert",
        "Turn published key layouts into a folder that loads.",
        "train",
    ),
    "export": ("tvp.export.cli", "export", "Turn a model and a prompt into a task bundle.", "export,cpu"),
    "ask": ("tvp.sdk.cli", "ask", "Ask a task about a picture.", ""),
    "check": ("tvp.sdk.cli", "check", "Replay a bundle's golden cases on this machine.", ""),
    "inspect": ("tvp.sdk.cli", "inspect", "Show what a bundle is.", ""),
    "pack": ("tvp.sdk.cli", "pack", "Make one file of a bundle.", ""),
    "unpack": ("tvp.sdk.cli", "unpack", "Make a bundle's folder of its file.", ""),
    "bench": ("tvp.sdk.cli", "bench", "Time a task on this machine.", ""),
    "doctor": ("tvp.sdk.cli", "doctor", "Show what this installation can run.", ""),
}


class LazyGroup(click.Group):
    """A group that imports a sub-command when it is asked for, and not before."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _, extra = COMMANDS[name]
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            if not extra:
                raise
            raise click.ClickException(
                f"`tvp {name}` needs more than is installed ({error.name or error} is missing). "
                f"In a checkout of TVP: pip install '.[{extra}]'"
            ) from error
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about, _) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tvp-edge")
def cli() -> None:
    """Teach frozen vision-language models tasks with a frame of pixels, and run them on the edge."""


def main() -> None:
    """Entry point of `tvp`: 0 if all of it succeeded, 1 for a failure, 2 for wrong usage."""
    _run(cli, sys.argv[1:])


def train_main() -> None:
    """Entry point of `python -m tvp.trainer`, the same as `tvp train`."""
    _run(cli, ["train", *sys.argv[1:]])


def export_main() -> None:
    """Entry point of `tvp-export`, the same as `tvp export`."""
    _run(cli, ["export", *sys.argv[1:]])


def _run(command: Callable[..., Any], arguments: list[str]) -> None:
    # What is written is written whole or not at all; that holds where a service manager ends the program, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer may hold what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        command(arguments, prog_name="tvp", standalone_mode=True)
    except TvpError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _parts(context: click.Context, parameter: click.Parameter, value: str) -> str | dict[str, str]:
    """`auto` or a name as it is; `vision_encoder=tensorrt,decoder=cuda` as a mapping. `sdk.load` checks the names."""
    if "=" not in value:
        return value
    return {part.strip(): name.strip() for part, _, name in (item.partition("=") for item in value.split(","))}


PROVIDERS = click.option(
    "--providers",
    default="auto",
    show_default=True,
    callback=_parts,
    help="auto, cpu, cuda or tensorrt; or by part: vision_encoder=tensorrt,decoder=cuda.",
)


@click.command()
@click.argument("task")
@click.argument("image")
@click.argument("question", required=False)
@click.option("--rank", is_flag=True, help="Score every label instead of answering freely.")
@click.option("--label", "labels", multiple=True, help="A label to rank; give it once for each.")
@PROVIDERS
@click.option("--max-new-tokens", type=int, default=None, help="Longest answer, in tokens.")
@click.option("--stream", is_flag=True, help="Print the answer in pieces as they come.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with tokens, scores and timing.")
def ask(
    task: str,
    image: str,
    question: str | None,
    rank: bool,
    labels: tuple[str, ...],
    providers: str | dict[str, str],
    max_new_tokens: int | None,
    stream: bool,
    as_json: bool,
) -> None:
    """Ask TASK (a folder, a name or a .tvp file) about IMAGE."""
    from ._load import load

    if stream and (as_json or rank or labels):
        raise click.UsageError("--stream prints an answer's text as it comes; leave out --json, --rank and --label.")
    with load(task, providers=providers) as loaded:
        if rank or labels:
            ranked = loaded.rank(image, question, labels=labels or None)
            if as_json:
                click.echo(json.dumps([{"label": r.label, "score": r.score} for r in ranked]))
            else:
                for row in ranked:
                    click.echo(f"{row.score:9.4f}  {row.label}")
            return
        if stream:
            for piece in loaded.stream(image, question, max_new_tokens=max_new_tokens):
                click.echo(piece, nl=False)
            click.echo()
            return
        answer = loaded.ask(image, question, max_new_tokens=max_new_tokens)
        click.echo(
            json.dumps(
                {
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "log_probabilities": answer.log_probabilities,
                    "timing": dict(answer.timing),
                    "finish": answer.finish,
                }
            )
            if as_json
            else answer.text
        )


@click.command()
@click.argument("task")
@PROVIDERS
def check(task: str, providers: str | dict[str, str]) -> None:
    """Replay the golden cases of TASK (a folder or a name) on this machine."""
    from ._load import load

    with load(task, providers=providers) as loaded:
        report = loaded.check()
        places = loaded.providers
    equal = report["cases"] - report["different"]
    click.echo(
        f"{equal} of {report['cases']} golden cases equal; largest difference {report['largest_difference']:.1e}"
    )
    click.echo(_by_provider(places))


@click.command()
@click.argument("task")
def inspect(task: str) -> None:
    """Show what the bundle TASK (a folder or a name) is, without loading it."""
    from ._store import find
    from .formats.manifest import ContrastiveManifest, GenerativeManifest, read_base_manifest, read_task_manifest

    folder = find(task)
    manifest, base = read_task_manifest(folder / "manifest.json"), read_base_manifest(folder / "base" / "manifest.json")
    megabytes = sum(e.size for files in (manifest.files, base.files) for e in files.values()) / 1e6
    rows = {
        "task": manifest.name,
        "question": manifest.question or "(given with each picture)",
        "labels": ", ".join(manifest.labels) or "(open)",
        "model": manifest.provenance.model or "?",
        "family": base.family,
        "precision": base.precision,
        "base": manifest.base,
        "size": f"{megabytes:.1f} MB",
        "parity": json.dumps(asdict(manifest.parity)),
    }
    if isinstance(base, ContrastiveManifest):
        rows |= {"answers": f"labels only, by {base.scoring}", "texts": f"{base.n_positions} tokens at most"}
    elif isinstance(base, GenerativeManifest):
        context = f"{base.n_positions} tokens" if base.n_positions else "(no bound)"
        rows |= {"image tokens": str(base.n_image_tokens), "context": context}
    for name, value in rows.items():
        # Of a bundle that may be a stranger's: no line of its own, and nothing that steers the terminal.
        click.echo(f"{name:<13} {''.join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))}")


@click.command()
@click.argument("task")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def pack(task: str, file: Path) -> None:
    """Make FILE (usually NAME.tvp) of the bundle TASK (a folder or a name), which `tvp ask` and sdk.load take too."""
    from ._store import find
    from .formats.archive import pack as write

    write(find(task), file)
    click.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
def unpack(file: Path, folder: Path) -> None:
    """Make the bundle in FILE a FOLDER again."""
    from .formats.archive import unpack as write

    write(file, folder)
    click.echo(str(folder))


@click.command()
@click.argument("task")
@PROVIDERS
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Runs that the medians are of.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="Longest answer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, in seconds and MiB.")
def bench(task: str, providers: str | dict[str, str], runs: int, max_new_tokens: int, as_json: bool) -> None:
    """Time TASK (a folder, a name or a .tvp file) on this machine: load, picture, first token, further tokens."""
    from ._bench import bench as measure

    facts = measure(task, providers=providers, n_runs=runs, max_new_tokens=max_new_tokens)
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, about in (
        ("load", "load, with every digest checked"),
        ("see", "picture to embeddings"),
        ("first_token", "first token of a first question"),
        ("again", "first token of a second question"),
        ("token", "each further token"),
        ("ask", f"ask, {facts['n_new_tokens']} tokens" if facts["n_new_tokens"] else "ask"),
    ):
        if facts[name] is not None:
            click.echo(f"{about:<34}{1e3 * facts[name]:>10.2f} ms")
    if facts["tokens_per_second"]:
        click.echo(f"{'tokens a second':<34}{facts['tokens_per_second']:>10.1f}")
    if facts["peak_mib"]:
        click.echo(f"{'peak memory':<34}{facts['peak_mib']:>10.0f} MiB")
    click.echo(_by_provider(facts["providers"]))


def _by_provider(places: Mapping[str, str]) -> str:
    """What ran on what, in a line: parts that share a provider together."""
    names = dict.fromkeys(places.values())
    return "; ".join(f"{', '.join(part for part in places if places[part] == name)} on {name}" for name in names)


@click.command()
def doctor() -> None:
    """Show versions, providers, cores and tasks of this installation."""
    from ._doctor import doctor as diagnose

    for name, value in diagnose().items():
        click.echo(f"{name:<13} {value}")


if __name__ == "__main__":
    main()
