"""The command `tvp eval`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from tvp.sdk.errors import DataError, RequestError

from . import cameras, tasks
from .config import make_config
from .data import Data, Subset, picture_of, questions_of, row_of
from .files import write_whole
from .geometry import Geometry, usual_inner
from .hub import refuse_misspelt
from .options import measuring_options
from .progress import tidy_warnings, working
from .task_definition import TaskDefinition
from .typed import OWN

if TYPE_CHECKING:
    from .families import Family
    from .matrix import Exporter
    from .prompt import Prompt


NO_TASK = (
    "Say what to measure: your own pictures with --data, a task file of tvp init or a task's name with --task, or a "
    "prompt with --prompt, which knows its task. The demo's task is --task bad-camera."
)


def _conditions(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, int]]:
    """Read the values of --corrupt as names and severities, without repetition."""
    try:
        return list(dict.fromkeys(pair for value in values for pair in cameras.parse_corruption(value)))
    except RequestError as error:
        raise click.BadParameter(str(error)) from error


def camera_option(context: click.Context, option: click.Parameter, value: str) -> str:
    """Refuse a camera that does not exist as wrong usage."""
    try:
        tasks.through(tasks.get("custom"), value)
    except RequestError as error:
        raise click.BadParameter(str(error)) from error
    return value


@click.command(name="eval")
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    required=True,
    help="Model to measure: a folder, a hub id or zoo:NAME. Repeat it for several.",
)
@click.option(
    "-p",
    "--prompt",
    "prompts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Prompt file to measure. Repeat it for several. Without one, only pictures without a prompt are measured.",
)
@click.option(
    "-t",
    "--task",
    "task_name",
    help="Task to measure: a name, or a task file that tvp init wrote. An unknown name lists all tasks. Default: "
    "custom, the task for data of your own, where --data is given; else the one that the prompts were learned for.",
)
@click.option("--data", default="", help="Test data: scenes, a folder or a .jsonl file. Default: the task's own.")
@click.option("--camera", default="", callback=camera_option, help=f"Spoil the pictures: {cameras.HELP}")
@click.option(
    "--n",
    default=1024,
    show_default=True,
    type=click.IntRange(1),
    help="Most pictures to ask about. From larger data this many are drawn at random.",
)
@click.option(
    "--canvas",
    type=int,
    help="Side of the canvas if there is no prompt, in pixels. Default: what the task or the models take.",
)
@click.option(
    "--inner",
    type=int,
    help="Side of the picture in a black frame if there is no prompt, in pixels. Default: the task's, or in proportion "
    "to the canvas, 164 of 224.",
)
@click.option(
    "--corrupt",
    "corrupted",
    multiple=True,
    metavar="NAME[:SEVERITY]",
    callback=_conditions,
    help=f"Also measure on pictures that are spoilt further, each at a severity from 1 to 5: "
    f"{', '.join(cameras.KINDS)}; or all, which is {', '.join(cameras.CORRUPTIONS)}. Default: all five severities. "
    "Repeat it for several.",
)
@click.option(
    "--calibrate",
    "n_calibrate",
    type=click.IntRange(1),
    metavar="N",
    help="Also measure each column with calibrated scores of labels, learned from N training pictures without their "
    "answers. 512 is a good number. See tvp calibrate.",
)
@click.option(
    "--calibrate-on",
    default="",
    help="With --calibrate: where these pictures are. Default: the training split of --data.",
)
@click.option("--exported", is_flag=True, help="Also measure each prompt in 8 bits and as an ONNX bundle.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Seed for scenes, for the choice of pictures and for cameras.",
)
@measuring_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the results: matrix.json, matrix.md and a heat map, matrix.png. A name that ends with .json is a "
    "file for the JSON alone.",
)
def evaluate(
    models: tuple[str, ...],
    prompts: tuple[Path, ...],
    task_name: str | None,
    data: str,
    camera: str,
    n: int,
    canvas: int | None,
    inner: int | None,
    corrupted: list[tuple[str, int]],
    n_calibrate: int | None,
    calibrate_on: str,
    exported: bool,
    seed: int,
    device: str,
    precision: str,
    batch: int,
    skip_bad: bool,
    download: bool,
    allow_outside: bool,
    output: Path | None,
) -> None:
    """Measure how often models answer test questions right.

    Each model sees the full picture, the picture in a black frame, and the picture with each prompt.
    """
    if exported and not prompts:
        raise click.UsageError("--exported measures prompts. Name at least one with --prompt.")
    if calibrate_on and not n_calibrate:
        raise click.UsageError("--calibrate-on says where the pictures of --calibrate are. Give both.")
    if output:
        _refuse_output(output)
    if prompts and (canvas or inner):
        raise click.UsageError("--canvas and --inner are for an evaluation without a prompt. A prompt has its own.")
    if not task_name and not prompts and (not data or data == "scenes"):
        raise click.UsageError(NO_TASK)
    named = tasks.get(task_name) if task_name else None  # a wrong name is told before anything is loaded
    for model in models:
        refuse_misspelt(model)
    tidy_warnings()
    with working("loading PyTorch"):  # imported this late because it takes seconds
        from . import families, matrix, metrics
        from .asking import answerable
        from .precision import dtype_of
        from .prompt import Prompt

    exporter = _exporter() if exported else None
    loaded = {str(path): Prompt.load(path) for path in prompts}
    task = tasks.through(named or _task_of(data, loaded), camera)
    geometry = _without_prompt(models, task_name or OWN, task, canvas, inner) if not loaded else Geometry()
    shown = matrix.columns(loaded, geometry)
    # All columns are compared at one size: that of the largest prompt.
    largest = max((prompt.geometry.canvas for prompt in loaded.values()), default=geometry.canvas)
    for model in models:
        families.refuse_unknown(model)  # all names are checked before the first model is measured
    with working("reading the data"):
        test = tasks.open_usable(data, task, "test", n, seed, skip_bad, download, allow_outside)
    if not questions_of(test, 0):
        raise DataError(f"{data} has no questions to ask. An evaluation needs rows with questions and answers.")
    chosen = _drawn(test, n, seed)
    learned: Data | None = None
    metrics.questions_to_measure(task.metric, chosen)  # unfit labels are told before models are loaded
    if n_calibrate:
        train = tasks.open_usable(
            calibrate_on or data, task, "train", n_calibrate, seed, skip_bad, download, allow_outside
        )
        learned = _drawn(train, n_calibrate, seed)
        _refuse_shared(learned, chosen)
    names = list(dict.fromkeys(models))
    dtype = dtype_of(precision, device)
    load = _one_at_a_time(partial(families.load, device=device, dtype=dtype, canvas=largest))
    # All models are asked the same questions, so each must be able to read them before the first is measured. That one
    # is checked last: it is still loaded when it is measured.
    in_turn = [*names[1:], names[0]]
    if learned is not None:
        learned = answerable(learned, ((name, load(name)) for name in in_turn), largest, task.free, skip_bad)
    asked = answerable(chosen, ((name, load(name)) for name in in_turn), largest, task.free, skip_bad)
    rows = matrix.evaluate_matrix(
        names,
        load,
        shown,
        asked,
        task,
        corruptions=corrupted,
        seed=seed,
        batch=batch,
        exporter=exporter,
        calibrate_on=learned,
        quiet=not sys.stderr.isatty(),
        report=lambda row: click.echo(str(row)),
    )
    if output and output.suffix == ".json":
        write_whole(output, matrix.to_json(rows).encode())
    elif output:
        for path in matrix.write(output, rows, f"{task.name}, through {camera}" if camera else task.name):
            click.echo(f"wrote {path}")
    failed = [row for row in rows if row.note.startswith(f"{matrix.NOT_EXPORTED}:")]
    if failed:
        raise click.ClickException(f"{len(failed)} of the bundles could not be made: {failed[0].note}")


def _task_of(data: str, prompts: Mapping[str, Prompt]) -> TaskDefinition:
    """Return the task that is measured where none was named, and say which it is."""
    from .record import TaskRecord

    records = {name: TaskRecord.read(prompt.facts) for name, prompt in prompts.items()}
    if data and data != "scenes":
        known = [record for record in records.values() if record and record.is_own]
        asked = {(record.question, record.labels) for record in known}
        if len(known) == len(records) and len(asked) == 1 and any(*asked):
            click.echo(
                f"No task was named, so this is the one that the prompt was learned for: {known[0].name}.", err=True
            )
            return replace(known[0].definition(), camera=None)  # the pictures that were named may be spoilt already
        click.echo(f"No task was named with --data, so this is a task of your own: {OWN}.", err=True)
        return tasks.get(OWN)
    learned = {}
    for name, prompt in prompts.items():
        of_frame = prompt.facts.get("frame")  # of a lens and a frame that were put together, the frame has a task
        facts = of_frame if isinstance(of_frame, dict) else prompt.facts
        record = records[name]
        seen = f", through {record.camera}" if record and record.camera else ""
        learned[name] = f"{facts.get('task') or 'not known'}{seen}"
    if len(set(learned.values())) > 1 or "not known" in learned.values():
        shown = ", ".join(f"{name}: {task}" for name, task in learned.items())
        raise click.UsageError(f"The prompts do not say one task to measure ({shown}). Name it with --task.")
    name, first = facts["task"], next(iter(records.values()))
    task = first.definition() if first else tasks.get(name)
    if not task.source and not task.file:
        raise click.UsageError(
            f"The prompt was learned for the task {name!r}, which has no data of its own. Add --data."
        )
    click.echo(
        f"No task was named, so this is the one that the prompt was learned for: {learned.popitem()[1]}.", err=True
    )
    return task


def _without_prompt(
    models: tuple[str, ...], name: str, task: TaskDefinition, canvas: int | None, inner: int | None
) -> Geometry:
    """Return how pictures lie on the canvas where no prompt says it: as in training, but for the canvas.

    Of several models that take pictures of several sizes, it is the largest: a smaller one would cost detail.
    """
    from . import families

    given = {name: side for name, side in (("canvas", canvas), ("inner", inner)) if side is not None}
    sides: list[int] = []

    def side_of(model: str) -> int:
        sides.append(families.input_side(model))
        return sides[-1]

    config = make_config({"models": models, "task": name, **given}, side_of=side_of)
    largest = max(sides, default=config.canvas) if name == OWN or task.file else config.canvas
    return Geometry(largest, config.inner if largest == config.canvas else inner or usual_inner(largest), task.fit)


def _one_at_a_time(load: Callable[[str], Family]) -> Callable[[str], Family]:
    """Return a function that loads a model by its name, keeps it for the next call, and drops it before another."""
    kept: dict[str, Family] = {}

    def load_or_keep(name: str) -> Family:
        if name not in kept:
            kept.clear()
            with working(f"loading {name}"):
                kept[name] = load(name)
        return kept[name]

    return load_or_keep


def _drawn(data: Data, n: int, seed: int) -> Data:
    """Draw at most n samples at random, because many sets are sorted by class."""
    return Subset(data, sorted(np.random.default_rng(seed).permutation(len(data))[:n].tolist()))


def _refuse_shared(learned: Data, test: Data) -> None:
    """Refuse to calibrate on test pictures. Data without rows, as drawn scenes, has splits that share none."""
    if not all(len(data) and row_of(data, 0) for data in (learned, test)):
        return
    tested = {picture_of(test, i) for i in range(len(test))}
    shared = [name for name in (picture_of(learned, i) for i in range(len(learned))) if name in tested]
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(learned)} pictures to calibrate on are test pictures, the first {shared[0]}. "
            "Name training pictures with --calibrate-on; a JSONL file has no splits."
        )


def _exporter() -> Exporter:
    """Import the exporter's part of the measurement by name, because the trainer must not depend on the exporter."""
    try:
        exporter: Exporter = importlib.import_module("tvp.export.evaluate").asked_bundle
    except ImportError as error:
        raise click.ClickException(
            f"--exported needs a package that is not installed: {error.name or error}. "
            "In a checkout of TVP run: pip install '.[export,cpu]'"
        ) from error
    return exporter


def _refuse_output(output: Path) -> None:
    """Refuse a place that cannot be written to, before hours of work are spent."""
    if output.suffix == ".json":
        if not output.parent.is_dir():
            raise click.UsageError(f"{output.name} cannot be written, because there is no folder {output.parent}.")
        if output.is_dir():
            raise click.UsageError(f"{output} is a folder, but a name that ends with .json must be a file.")
    elif output.exists() and not output.is_dir():
        raise click.UsageError(f"{output} is a file. Name a folder, or a file that ends with .json.")
