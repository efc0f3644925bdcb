"""The `tvp` command. Each subcommand lives in its package and is imported only when it is called."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ._group import LazyGroup
from ._options import LENS, PROVIDERS, structure
from ._options import several_labels as several_labels
from ._terminal import escape_streams, escaped
from .errors import TvpError
from .formats import strict_json
from .formats.disk import told

# name -> (module, attribute, its line in `tvp --help`, the extra that it needs)
COMMANDS: dict[str, tuple[str, str, str, str]] = {
    "init": ("tvp.trainer.init_cli", "init", "Turn a folder of pictures into a task.", "train"),
    "train": ("tvp.trainer.cli", "train", "Learn a prompt on frozen models.", "train"),
    "eval": ("tvp.trainer.eval_cli", "evaluate", "Measure models with and without prompts.", "train"),
    "camera": ("tvp.trainer.camera_cli", "camera", "Show pictures through bad cameras on a contact sheet.", "train"),
    "calibrate": ("tvp.trainer.calibrate_cli", "calibrate", "Even out a model's lean to some labels.", "train"),
    "convert": ("tvp.trainer.convert_cli", "convert", "Turn a model's published files into a folder.", "train"),
    "export": ("tvp.export.cli", "export", "Turn a model and a prompt into a task bundle.", "export,cpu"),
    "ask": ("tvp.sdk.cli", "ask", "Ask a question about a picture.", ""),
    "batch": ("tvp.sdk.batch.command", "batch", "Ask about many pictures.", "batch"),
    "serve": ("tvp.sdk.serve.command", "serve", "Serve tasks over HTTP.", "serve"),
    "check": ("tvp.sdk.cli", "check", "Replay a bundle's golden cases on this machine.", ""),
    "inspect": ("tvp.sdk.cli", "inspect", "Describe a bundle without loading it.", ""),
    "edit": ("tvp.sdk._edit", "command", "Change a bundle's question and labels.", ""),
    "pack": ("tvp.sdk.cli", "pack", "Pack a bundle into one .tvp file.", ""),
    "unpack": ("tvp.sdk.cli", "unpack", "Unpack a .tvp file into a folder.", ""),
    "bench": ("tvp.sdk.cli", "bench", "Time a task on this machine.", ""),
    "doctor": ("tvp.sdk.cli", "doctor", "Show what this installation can run.", ""),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tvp-edge")
def cli() -> None:
    """Teach a frozen vision-language model a task with a visual prompt, and run it on the edge.

    `tvp COMMAND --help` explains a command. Tasks and caches are in $TVP_HOME, by default ~/.tvp.
    """


def main() -> None:
    """Entry point of `tvp`. It exits with 0 for success, 1 for a failure and 2 for wrong usage."""
    _run(cli, sys.argv[1:])


def train_main() -> None:
    """Entry point of `python -m tvp.trainer`, the same as `tvp train`."""
    _run(cli, ["train", *sys.argv[1:]])


def export_main() -> None:
    """Entry point of `tvp-export`, the same as `tvp export`."""
    _run(cli, ["export", *sys.argv[1:]])


def _run(command: Callable[..., Any], arguments: list[str]) -> None:
    # A service manager ends a program by SIGTERM. As SystemExit, it lets half-written files be cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    escape_streams()
    try:
        command(arguments, prog_name="tvp", standalone_mode=True)
    except TvpError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk, or a folder that cannot be written
        click.echo(f"Error: {told(error)}", err=True)
        sys.exit(1)


@click.command()
@click.argument("task")
@click.argument("image")
@click.argument("question", required=False)
@click.option("--rank", is_flag=True, help="Score the task's labels instead of writing an answer.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=several_labels,
    help="Score this label, not the task's own. Repeat it for several.",
)
@LENS
@PROVIDERS
@click.option("--max-new-tokens", type=int, default=None, help="Longest answer, in tokens. Default: the task's.")
@structure
@click.option("--stream", is_flag=True, help="Print the answer piece by piece while it is written.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON with tokens, scores, times in seconds and unlikeness."
)
@click.option(
    "--save-prompted",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write what the model was shown, lens and frame included, as a PNG file.",
)
def ask(
    task: str,
    image: str,
    question: str | None,
    rank: bool,
    labels: tuple[str, ...],
    lens: str | None,
    providers: str | dict[str, str],
    max_new_tokens: int | None,
    structure: dict[str, Any],
    stream: bool,
    as_json: bool,
    save_prompted: Path | None,
) -> None:
    """Ask a question about a picture and print the answer.

    TASK is a bundle: a folder, a name under $TVP_HOME/tasks or a .tvp file. IMAGE is a picture file. Leave QUESTION
    out to ask the task's own question.

    Example: tvp ask runs/camera scene.png "How many objects are there?"
    """
    from ._load import load
    from ._runtime.stopping import stop_on_signals

    if stream and (as_json or rank or labels):
        raise click.UsageError("--stream prints text only. Leave it out, or leave out --json, --rank and --label.")
    if structure and (rank or labels):
        raise click.UsageError(
            "--rank and --label score labels. Leave them out, or leave out --schema, --choice and --regex."
        )
    stop_on_signals()
    with load(task, providers=providers, lens=lens) as loaded:
        if save_prompted is not None:
            _write_png(loaded.prompted(image), save_prompted)
        if rank or labels:
            ranked = loaded.rank(image, question, labels=labels or None)
            if as_json:
                click.echo(strict_json.dumps([{"label": r.label, "score": r.score} for r in ranked]))
            else:
                for row in ranked:
                    click.echo(f"{row.score:9.4f}  {row.label}")
            return
        if stream:
            for piece in loaded.stream(image, question, max_new_tokens=max_new_tokens, **structure):
                click.echo(piece, nl=False)
            click.echo()
            return
        answer = loaded.ask(image, question, max_new_tokens=max_new_tokens, **structure)
        if question is None and not structure and loaded.labels and answer.text not in loaded.labels:
            click.echo("This is none of the task's labels, among which --rank chooses.", err=True)
        click.echo(
            strict_json.dumps(
                {
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "log_probabilities": answer.log_probabilities,
                    "timing": dict(answer.timing),
                    "finish": answer.finish,
                    "unlikeness": answer.unlikeness,
                }
            )
            if as_json
            else answer.text
        )


def _write_png(picture: Any, file: Path) -> None:
    """Write a picture, uint8 (height, width, 3), whole or not at all."""
    import os

    from PIL import Image

    from .formats.temporary import temporary_file

    with temporary_file(file) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
        temporary.chmod(0o644)
        os.replace(temporary, file)


@click.command()
@click.argument("task")
@LENS
@PROVIDERS
def check(task: str, lens: str | None, providers: str | dict[str, str]) -> None:
    """Replay a bundle's golden cases on this machine.

    A golden case is a question with the answer that PyTorch gave at the export. If answers differ here, the command
    lists the differences and fails. Below fp32, the share that the export allowed may differ.

    Golden cases are asked with the task's own prompt. Of a lens bundle, the pixel values of its golden picture are
    compared too.

    TASK is a bundle: a folder, a name under $TVP_HOME/tasks or a .tvp file.
    """
    from ._load import load
    from ._runtime.stopping import stop_on_signals

    stop_on_signals()
    with load(task, providers=providers, lens=lens) as loaded:
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
    """Describe a bundle without loading it: its task, its model, its size and its parity with PyTorch.

    TASK is a bundle: a folder, a name under $TVP_HOME/tasks or a .tvp file. Or it is a lens bundle: a folder.
    """
    from ._store import read_lens, read_manifests
    from .formats.manifest import ContrastiveManifest, GenerativeManifest

    if (lens := read_lens(Path(task))) is not None:
        _show(
            {
                "lens": lens.name,
                "prompt": " and ".join(lens.prompt),
                "made for": lens.provenance.model or "?",
                "pixels": str(lens.pixels),
                "size": f"{sum(entry.size for entry in lens.files.values()) / 1e3:.1f} kB",
                "parity": f"{lens.parity.pixels_within_a_level:.2%} of pixel values within one level of PyTorch's, "
                f"in {lens.parity.n_cases} pictures",
                "unlikeness": _unlikeness(lens.n_moment_pictures),
            }
        )
        return
    manifest, base = read_manifests(task)
    megabytes = sum(e.size for files in (manifest.files, base.files) for e in files.values()) / 1e6
    rows = {
        "task": manifest.name,
        "question": manifest.question or "(none of its own)",
        "labels": ", ".join(manifest.labels) or "(none of its own)",
        "prompt": " and ".join(manifest.prompt) or ("(none)" if manifest.pixels else "?"),
        "pixels": str(manifest.pixels or "?"),
        "model": manifest.provenance.model or "?",
        "family": base.family,
        "precision": base.precision,
        "base": manifest.base,
        "size": f"{megabytes:.1f} MB",
        "parity": strict_json.dumps(asdict(manifest.parity)),
        "calibration": f"of {len(manifest.calibration)} question(s) with labels" if manifest.calibration else "(none)",
        "unlikeness": _unlikeness(manifest.n_moment_pictures),
    }
    if isinstance(base, ContrastiveManifest):
        rows |= {"answers": f"labels only, by {base.scoring}", "texts": f"{base.n_positions} tokens at most"}
    elif isinstance(base, GenerativeManifest):
        context = f"{base.n_positions} tokens" if base.n_positions else "(no bound)"
        rows |= {"image tokens": str(base.n_image_tokens), "context": context}
    _show(rows)


def _unlikeness(n_pictures: int) -> str:
    return f"by {n_pictures} pictures of the export" if n_pictures else "(not known)"


def _show(rows: Mapping[str, str]) -> None:
    for name, value in rows.items():
        value = escaped(str(value)).replace("\n", "\\n")  # the bundle may be a stranger's: no value begins a line
        click.echo(f"{name:<13} {value}")


@click.command()
@click.argument("task")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def pack(task: str, file: Path) -> None:
    """Pack a bundle into one file, which every command and sdk.load take in place of the folder.

    TASK is a bundle: a folder or a name under $TVP_HOME/tasks. FILE, usually NAME.tvp, must not exist.
    """
    from ._store import find
    from .formats.archive import pack as write

    write(find(task), file)
    click.echo(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path))
def unpack(file: Path, folder: Path) -> None:
    """Unpack a .tvp file into a folder.

    FILE is a .tvp file that `tvp pack` made. FOLDER must not exist.
    """
    from .formats.archive import unpack as write

    write(file, folder)
    click.echo(str(folder))


@click.command()
@click.argument("task")
@PROVIDERS
@click.option(
    "--runs", type=click.IntRange(1), default=5, show_default=True, help="Number of timed runs; medians are printed."
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=16, show_default=True, help="Longest answer, in tokens."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times in seconds, memory in MiB.")
def bench(task: str, providers: str | dict[str, str], runs: int, max_new_tokens: int, as_json: bool) -> None:
    """Time a task on this machine: loading it, encoding a picture, the first token and each further token.

    The task's first golden case is asked once to warm up and then --runs times.

    TASK is a bundle: a folder, a name under $TVP_HOME/tasks or a .tvp file.
    """
    from ._bench import bench as measure
    from ._runtime.stopping import stop_on_signals

    stop_on_signals()
    facts = measure(task, providers=providers, n_runs=runs, max_new_tokens=max_new_tokens)
    if as_json:
        click.echo(strict_json.dumps(facts))
        return
    for name, about in (
        ("load", "load, every digest checked"),
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
    """Return one line that lists the parts that each provider runs."""
    names = dict.fromkeys(places.values())
    return "; ".join(f"{', '.join(part for part in places if places[part] == name)} on {name}" for name in names)


@click.command()
def doctor() -> None:
    """Show what this installation can run.

    Prints versions, cores, memory, onnxruntime's providers and devices, the provider that `auto` would choose for each
    part of a bundle, the cache and the known tasks.
    """
    from ._doctor import doctor as diagnose

    for name, value in diagnose().items():
        click.echo(f"{name:<13} {value}")


if __name__ == "__main__":
    main()
