"""The command `tvp calibrate`."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click
import numpy as np

from tvp.sdk.cli import several_labels

from . import cameras, tasks
from .data import Data, Pictures, Question, Subset, ThroughCamera, split
from .data.sample import readable
from .eval_cli import camera_option
from .geometry import Geometry
from .hub import refuse_misspelt
from .options import measuring_options
from .progress import tidy_warnings, working
from .task_definition import TaskDefinition

log = logging.getLogger("tvp.trainer")


@click.command()
@click.option("-m", "--model", required=True, help="Model to calibrate: a folder, a hub id or zoo:NAME.")
@click.option(
    "-t",
    "--task",
    "task_name",
    required=True,
    help="Task with labels: a name, or a task file that tvp init wrote. An unknown name lists all tasks.",
)
@click.option("-p", "--prompt", type=click.Path(path_type=Path), help="Prompt file. Default: none, the full picture.")
@click.option("--data", default="", help="Training data: scenes, a folder or a .jsonl file. Default: the task's own.")
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    help="Folder of pictures without answers, as the camera takes them. They take the place of --data.",
)
@click.option("--question", help="With --pictures: the question to ask. Default: the task's.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=several_labels,
    help="With --pictures: a label. Repeat it. Default: the task's.",
)
@click.option(
    "--by",
    default="share",
    show_default=True,
    type=click.Choice(["share", "score"]),
    help="What usual is: the label's mean share among the labels, or its mean score, which costs more where the model "
    "is sure of its answers.",
)
@click.option("--camera", default="", callback=camera_option, help=f"Spoil the pictures: {cameras.HELP}")
@click.option("--n", default=512, show_default=True, type=click.IntRange(1), help="Most pictures to learn from.")
@click.option(
    "--held-out",
    default=512,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures on which to find out whether it helps, at most half of the data.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed for scenes and the choice of pictures."
)
@measuring_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON file for the calibration.")
def calibrate(
    model: str,
    task_name: str,
    prompt: Path | None,
    data: str,
    pictures: Path | None,
    question: str | None,
    labels: tuple[str, ...],
    by: Literal["share", "score"],
    camera: str,
    n: int,
    held_out: int,
    seed: int,
    device: str,
    precision: str,
    batch: int,
    skip_bad: bool,
    download: bool,
    allow_outside: bool,
    output: Path,
) -> None:
    """Learn what a model usually says of each label, to be subtracted from its scores.

    It learns from pictures, and never reads their answers. Other pictures tell whether it helps: where they have
    answers, by the accuracy before and after.

    Put the file into a bundle with tvp export --calibration.
    """
    if pictures is not None and (data or download):
        raise click.UsageError("--pictures takes the place of --data and --download. Leave one of them out.")
    if pictures is None and (question or labels):
        raise click.UsageError("--question and --label are for --pictures. Other data has its own.")
    if not output.absolute().parent.is_dir() or output.is_dir():
        raise click.UsageError(f"{output} cannot be written. Name a file in a folder that is there.")
    task = tasks.through(tasks.get(task_name), camera)
    task = replace(task, question=question or task.question, labels=labels or task.labels)
    refuse_misspelt(model)
    tidy_warnings()
    with working("loading PyTorch"):  # imported this late because it takes seconds
        from . import families
        from .asking import answerable
        from .calibration import applied, compare, learn, refuse_unfit
        from .evaluate import ask
        from .precision import dtype_of
        from .prompt import Prompt

    kind = families.refuse_unknown(model)
    loaded = Prompt.load(prompt) if prompt else None
    if pictures is None:
        everything = tasks.open_usable(data, task, "train", n + held_out, seed, skip_bad, download, allow_outside)
    else:
        everything = _pictures(pictures, task, skip_bad, allow_outside)
        if camera and task.camera is not None:  # the task's own camera has taken them already
            everything = ThroughCamera(everything, task.camera, seed)
    seen, held = _drawn(everything, n, held_out, seed)
    if len(held) < held_out and _is_typed("held_out"):
        log.warning(
            "--held-out is %d, and at most half of the data's %d pictures are held out: %d",
            held_out, len(everything), len(held),
        )  # fmt: skip
    refuse_unfit(seen, task.free and kind != "clip")
    canvas = loaded.geometry.canvas if loaded else None
    with working(f"loading {model}"):
        family = families.load(model, device=device, dtype=dtype_of(precision, device), canvas=canvas)
    geometry = loaded.geometry if loaded else Geometry(family.pixel_format.size, family.pixel_format.size, task.fit)
    seen, held = (answerable(part, [(model, family)], geometry.canvas, task.free, skip_bad) for part in (seen, held))
    loaded = loaded.to(family.device) if loaded else None
    quiet = not sys.stderr.isatty()
    calibration = learn(family, seen, geometry, loaded, task, by=by, model=model, batch=batch, quiet=quiet)
    n_known = len(calibration.offsets)
    click.echo(f"learned from {len(seen)} pictures: {n_known} question{'s' * (n_known != 1)} with labels")
    before = ask(family, held, geometry, loaded, task, batch, quiet)
    gain, lines = compare(before, applied(calibration.offsets, before), task.match)
    for line in lines:
        click.echo(line)
    replace(calibration, gain=gain, n_questions=len(before.questions) if gain else 0).save(output)
    click.echo(f"wrote {output}")


def _is_typed(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def _pictures(folder: Path, task: TaskDefinition, skip_bad: bool, allow_outside: bool) -> Data:
    if not task.question or not task.labels:
        raise click.UsageError(
            f"The task {task.name!r} has no question of its own, or no labels. Give them with --question and --label."
        )
    bad: list[str] = []
    questions = [Question(task.question, "", task.labels)]
    data: Data = Pictures(folder, bad if skip_bad else None, allow_outside=allow_outside, questions=questions)
    if skip_bad:
        data = readable(data, bad)
    if bad:
        log.warning("left %d bad pictures of %s out:\n  %s", len(bad), folder, "\n  ".join(bad))
    return data


def _drawn(data: Data, n: int, n_held: int, seed: int) -> tuple[Data, Data]:
    """Draw pictures to learn from, and others that are held out: at random, because many sets are sorted by class."""
    n_held = max(1, min(n_held, len(data) // 2))
    chosen = np.random.default_rng(seed).permutation(len(data))[: n + n_held]
    return split(Subset(data, sorted(chosen.tolist())), n_held, seed)
