"""`tvp eval`."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from tvp.sdk.errors import RequestError

from . import corruptions, tasks
from .config import CHOICES, make_config
from .data import Subset
from .files import write_whole
from .prompt import Geometry, Prompt

if TYPE_CHECKING:
    from .matrix import Exporter


def _conditions(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, int]]:
    """Names and severities of --corrupt, each once."""
    try:
        return list(dict.fromkeys(pair for value in values for pair in corruptions.parse(value)))
    except RequestError as error:
        raise click.BadParameter(str(error)) from error


@click.command(name="eval")
@click.option("-m", "--model", "models", multiple=True, required=True, help="Folder, hub id or zoo:NAME.")
@click.option("-p", "--prompt", "prompts", multiple=True, type=click.Path(path_type=Path), help="Prompt file.")
@click.option("--task", "task_name", default="bad-camera", show_default=True, help="Name of the task.")
@click.option("--data", default="", help="scenes, a folder or a .jsonl file; default: the task's own.")
@click.option(
    "--n",
    default=1024,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures to ask about, at most; drawn, where there are more.",
)
@click.option("--canvas", type=int, help="Side of the canvas without a prompt, px (default: that of the task's file).")
@click.option("--inner", type=int, help="Side of the picture in a black frame, px (default: that of the task's file).")
@click.option(
    "--corrupt",
    "corrupted",
    multiple=True,
    metavar="NAME[:SEVERITY]",
    callback=_conditions,
    help=f"Also ask about corrupted pictures: {', '.join(corruptions.CORRUPTIONS)} or all, at severity 1 to 5 "
    "(default: at each). Give it once for each.",
)
@click.option("--exported", is_flag=True, help="Also ask with each prompt as its 8-bit PNG and as an ONNX bundle.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Seed of scenes, drawn pictures and corruptions.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(CHOICES["precision"]),
    help="Of the frozen models; auto is bf16 on a GPU that has it.",
)
@click.option("--batch", default=256, show_default=True, type=click.IntRange(1), help="Rows read at once.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out and list them, instead of refusing the data.")
@click.option("--download", is_flag=True, help="Let torchvision fetch the task's data set into --data.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for matrix.json, matrix.md and the heat map matrix.png; or a .json file for the JSON alone.",
)
def evaluate(
    models: tuple[str, ...],
    prompts: tuple[Path, ...],
    task_name: str,
    data: str,
    n: int,
    canvas: int | None,
    inner: int | None,
    corrupted: list[tuple[str, int]],
    exported: bool,
    seed: int,
    device: str,
    precision: str,
    batch: int,
    skip_bad: bool,
    download: bool,
    output: Path | None,
) -> None:
    """Measure models on test data: the full picture, a black frame, and each prompt."""
    if exported and not prompts:
        raise click.UsageError("--exported measures prompts; name at least one with --prompt.")
    if output:
        _refuse_output(output)
    task = tasks.get(task_name)
    given = {name: side for name, side in (("canvas", canvas), ("inner", inner)) if side is not None}
    config = make_config({"models": models, "task": task_name, **given})
    geometry = Geometry(config.canvas, config.inner, task.fit)
    # Only now, since it takes seconds that a misspelt option should not.
    from . import families, matrix
    from .precision import dtype_of

    exporter = _exporter() if exported else None
    loaded = {str(path): Prompt.load(path) for path in prompts}
    shown = matrix.columns(loaded, geometry)
    # One size for what is compared: the prompts', and of several the largest.
    largest = max((prompt.geometry.canvas for prompt in loaded.values()), default=geometry.canvas)
    for model in models:
        families.refuse_unknown(model)  # before the first model is measured
    test = tasks.open_usable(data, task, "test", n, seed, skip_bad, download)
    # Drawn, since many sets lie sorted by their classes.
    chosen = sorted(np.random.default_rng(seed).permutation(len(test))[:n].tolist())
    rows = matrix.evaluate_matrix(
        list(dict.fromkeys(models)),
        partial(families.load, device=device, dtype=dtype_of(precision, device), canvas=largest),
        shown,
        Subset(test, chosen),
        task,
        corruptions=corrupted,
        seed=seed,
        batch=batch,
        exporter=exporter,
        quiet=not sys.stderr.isatty(),
        report=lambda row: click.echo(str(row)),
    )
    if output and output.suffix == ".json":
        write_whole(output, matrix.to_json(rows).encode())
    elif output:
        for path in matrix.write(output, rows, task.name):
            click.echo(f"wrote {path}")
    failed = [row for row in rows if row.note not in ("", matrix.NOT_EXPORTED)]
    if failed:
        raise click.ClickException(f"{len(failed)} of the bundles could not be made: {failed[0].note}")


def _exporter() -> Exporter:
    """The exporter's side of the matrix, by name, since the trainer does not import the exporter."""
    try:
        exporter: Exporter = importlib.import_module("tvp.export.evaluate").bundle_accuracy
    except ImportError as error:
        raise click.ClickException(
            f"--exported needs more than is installed ({error.name or error} is missing). "
            "In a checkout of TVP: pip install '.[export,cpu]'"
        ) from error
    return exporter


def _refuse_output(output: Path) -> None:
    """Say before hours of work that what they give could not be written."""
    if output.suffix == ".json":
        if not output.parent.is_dir():
            raise click.UsageError(f"There is no folder {output.parent} to write {output.name} to.")
        if output.is_dir():
            raise click.UsageError(f"{output} is a folder; a name that ends with .json is that of a file.")
    elif output.exists() and not output.is_dir():
        raise click.UsageError(f"{output} is a file; name a folder, or a file that ends with .json.")
