"""The command `tvp init`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from tvp.sdk.cli import several_labels
from tvp.sdk.errors import ModelError

from . import cameras
from .eval_cli import camera_option
from .new_task import NewTask, find_task
from .options import allow_outside_option
from .progress import tidy_warnings
from .zoo import zoo_folder

EXAMPLE = "zoo:blip2"  # of the tiny models, the one that the tutorial takes


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-q", "--question", help="Question about every picture. Default: it is asked for.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=several_labels,
    help="Answer to choose from. Repeat it for all. Default: the names of the class folders, or the answers of the "
    "file where they are few.",
)
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="For a lens: folder of good pictures of other content, which those of FOLDER should be like.",
)
@click.option(
    "--clean",
    type=click.Path(path_type=Path),
    help="For a lens: folder of the same pictures as in FOLDER, with the same names, as a good camera took them.",
)
@click.option("--camera", default="", callback=camera_option, help=f"Spoil the pictures: {cameras.HELP}")
@click.option("--name", help="Name of the task. Default: that of the folder.")
@click.option("-m", "--model", help="Model for the commands that are printed: a folder, a hub id or zoo:NAME.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows and pictures out. Default: list them, and stop.")
@allow_outside_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Task file to write. Default: task.toml in FOLDER.",
)
def init(
    folder: Path,
    question: str | None,
    labels: tuple[str, ...],
    like: Path | None,
    clean: Path | None,
    camera: str,
    name: str | None,
    model: str | None,
    skip_bad: bool,
    allow_outside: bool,
    output: Path | None,
) -> None:
    """Turn a folder of pictures into a task: check them, write a task file, and print the commands that follow.

    FOLDER holds a folder of pictures for each answer, named like it; or a CSV or JSONL file with image, question and
    answer in each row. FOLDER may be that file itself.

    For a lens, which puts a camera's pictures right and needs no answers, FOLDER holds the camera's pictures, and
    --like or --clean names good ones.

    Nothing is overwritten.
    """
    tidy_warnings()
    lens = bool(like or clean)
    if like and clean:
        raise click.UsageError("--like is for other good pictures, and --clean for the same ones. Give one of them.")
    if lens and (question or labels or camera):
        raise click.UsageError("A lens is learned without a question. Leave --question, --label and --camera out.")

    def ask() -> str:
        if not sys.stdin.isatty():
            raise click.UsageError('Say what to ask about every picture: --question "What is in the photo?"')
        return str(click.prompt("What is the question about every picture?", err=True)).strip()

    task = find_task(
        folder, question or "", ask, labels, like, clean, camera, name or "", skip_bad, allow_outside, output
    )
    for text in task.said:
        click.echo(text)
    for text in task.findings.bad:
        click.echo(f"left out: {text}")
    for text in task.findings.notes:
        click.echo(f"note: {text}")
    for file in task.write():
        click.echo(f"wrote {file}")
    click.echo()
    for text in _next(task, model, skip_bad, allow_outside):
        click.echo(text)


def _next(task: NewTask, model: str | None, skip_bad: bool, allow_outside: bool) -> list[str]:
    """Return what follows, in words and commands."""
    chosen, lines = model or "", []
    if not chosen:
        try:
            zoo_folder()
            chosen = EXAMPLE
            lines = [
                f"{EXAMPLE} is a tiny model, to try things with: it knows shapes and small photos. -m names yours."
            ]
        except ModelError:
            chosen = "MODEL"
            lines = ["In place of MODEL, type your model: its folder or its hub id."]
    m = shlex.quote(chosen)
    t = shlex.quote(str(task.file))
    run = f"runs/{task.slug}"
    data = " --skip-bad" * (skip_bad and bool(task.findings.bad)) + " --allow-outside" * allow_outside
    prompt = f"{run}/prompt.safetensors"
    picture = shlex.quote(os.path.relpath(task.example))
    if task.is_lens:
        pictures = shlex.quote(os.path.relpath(task.pictures))
        return [
            "Next:",
            f"  tvp train -m {m} -t {t}{data} -o {run}",
            "learns the lens, and says how much closer held-out pictures come to good ones. Then:",
            f"  tvp export -m {m} --lens {prompt} --without-base --pictures {pictures} -o {run}-lens",
            f'  tvp ask TASK {picture} "…" --lens {run}-lens',
            "where TASK is a bundle that you have, and … a question.",
            *lines,
        ]
    return [
        "Next, how good is the model before it has learned anything?",
        f"  tvp eval -m {m} -t {t}{data}",
        "Learn a prompt, and measure it on pictures that training did not see:",
        f"  tvp train -m {m} -t {t}{data} -o {run}",
        f"  tvp eval -m {m} -t {t} -p {prompt}{data}",
        "If it helps, make a bundle of it, and ask:",
        f"  tvp export -m {m} -t {t} -p {prompt}{' --allow-outside' * allow_outside} -o {run}-task",
        f"  tvp ask {run}-task {picture}{' --rank' * bool(task.fields['labels'])}",
        *lines,
    ]
