"""`tvp export`, also installed as `tvp-export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tvp.sdk.cli import several_labels
from tvp.trainer import tasks
from tvp.trainer.data import Data, Pictures, Scenes
from tvp.trainer.hub import refuse_misspelt
from tvp.trainer.options import allow_outside_option, offline_option
from tvp.trainer.progress import tidy_warnings, working

from .choices import DEVICES, MAX_LOSS, N_PICTURES, PRECISIONS

if TYPE_CHECKING:
    from tvp.trainer.prompt import Prompt


@click.command()
@click.option("-m", "--model", required=True, help="Model to export: a folder, a hub id or zoo:NAME.")
@click.option("-p", "--prompt", type=click.Path(path_type=Path), help="Prompt file. Default: none, the model alone.")
@click.option("--lens", type=click.Path(path_type=Path), help="Prompt file whose lens is put before the --frame.")
@click.option(
    "--frame", type=click.Path(path_type=Path), help="Prompt file of a frame that was learned without a lens."
)
@click.option(
    "-t",
    "--task",
    "task_name",
    help="Task of the bundle: a name, or a task file that tvp init wrote. An unknown name lists all tasks. Default: "
    "that of the prompt, or of --data.",
)
@click.option("--question", help="Question that the bundle asks. Default: that of the task, the prompt or the data.")
@click.option(
    "--label", "labels", multiple=True, callback=several_labels, help="Label of the bundle. Repeat it for several."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New folder for the bundle.")
@click.option(
    "--data",
    help="Data for the comparison: scenes, a folder or a .jsonl file. Default: that of the prompt, else drawn scenes.",
)
@allow_outside_option
@click.option("--cases", default=16, show_default=True, type=click.IntRange(1), help="Number of answers to compare.")
@click.option(
    "--reuse/--no-reuse", default=True, show_default=True, help="Share the base of an earlier bundle of the same model."
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Number format of the weights. Only fp32 answers exactly as PyTorch; the others are smaller.",
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="cpu",
    show_default=True,
    help="Device that will run the bundle. The graphs use operators that it supports.",
)
@click.option(
    "--max-loss",
    default=MAX_LOSS,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of the answers that may differ from PyTorch's in fp16, int8 and int4.",
)
@click.option(
    "--without-base",
    is_flag=True,
    help="Write the prompt alone, as a small lens bundle, which tasks that are exported already are loaded with.",
)
@click.option("--single-file", is_flag=True, help="Also write preprocessing and encoder as one image_encoder.onnx.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="File of tvp calibrate, for the scores of labels. Default: none.",
)
@click.option(
    "--moments",
    default=N_PICTURES,
    show_default=True,
    type=click.IntRange(0),
    help="Number of pictures that say what is usual, for unlikeness; 0 for none.",
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    help="Folder of these pictures, as the device takes them; they need no questions. Default: those of --data.",
)
@click.option("--dry-run", is_flag=True, help="List the files and their sizes, and write nothing.")
@offline_option
@click.option("--force", is_flag=True, help="Replace the bundle in the --output folder.")
def export(
    model: str,
    prompt: Path | None,
    lens: Path | None,
    frame: Path | None,
    task_name: str | None,
    question: str | None,
    labels: tuple[str, ...],
    output: Path,
    data: str | None,
    allow_outside: bool,
    cases: int,
    reuse: bool,
    precision: str,
    device: str,
    max_loss: float,
    without_base: bool,
    single_file: bool,
    calibration: Path | None,
    moments: int,
    pictures: Path | None,
    dry_run: bool,
    force: bool,
) -> None:
    """Export a frozen model, with or without a prompt, as a bundle that runs without PyTorch.

    Before the bundle is written, its answers are compared with those of the PyTorch model. If they differ, the command
    fails and writes nothing.

    Ask the bundle with tvp ask, and check it on another machine with tvp check.

    A lens and a frame that were learned apart are put together: --lens FILE --frame FILE. With --without-base, only the
    prompt is exported; tvp ask TASK --lens FOLDER puts it in the place of the task's own.
    """
    if without_base and prompt is None and lens is None and frame is None:
        raise click.UsageError("--without-base exports a prompt alone. Give one: --lens, --frame or --prompt.")
    of_a_base = task_name or question or labels or single_file or calibration
    if without_base and (of_a_base or precision != "fp32"):
        raise click.UsageError(
            "--task, --question, --label, --precision, --single-file and --calibration are about a base; "
            "--without-base has none."
        )
    if task_name:
        tasks.get(task_name)
    refuse_misspelt(model)
    tidy_warnings()
    with working("loading PyTorch"):  # these imports take seconds; a misspelt option should fail before them
        from tvp.trainer import families
        from tvp.trainer.calibration import Calibration

        from .bundle import N_STEPS
        from .bundle import export as run_export
        from .moments import check_number
        from .output import refuse_to_overwrite, restore
        from .plan import plan
        from .prompts import choose_prompt
        from .task import NoTaskError, about

    # What can be refused is refused before a model is loaded.
    check_number(moments)
    chosen = choose_prompt(prompt, lens, frame)
    restore(output)
    refuse_to_overwrite(output, force)
    families.refuse_unknown(model)
    usual = Pictures(pictures, allow_outside=allow_outside) if pictures else None
    n_scenes = max(cases, moments)
    if without_base and chosen is not None:
        source = None
        if data and not dry_run:
            source = tasks.open_data(data, tasks.get("custom"), "test", n_scenes, seed=7, allow_outside=allow_outside)
        moments = moments if data or pictures else 0  # drawn scenes are not the pictures of this camera
        _without_base(model, output, chosen, source, cases, usual or source, moments, dry_run, force)
        return
    try:
        with working("reading the data"):
            said = about(
                task_name,
                chosen,
                data,
                question,
                labels,
                n_scenes=n_scenes,
                allow_outside=allow_outside,
                read=not dry_run,
            )
    except NoTaskError as error:
        raise click.UsageError(str(error)) from error
    task = said.task
    for line in said.lines:
        click.echo(line)
    for line in said.warnings:
        click.echo(f"Warning: {line}", err=True)
    if not said.has_pictures and not pictures:
        moments = 0  # drawn scenes say nothing of this task's pictures
    offsets = Calibration.load(calibration) if calibration else None
    options: dict[str, Any] = {
        "prompt": chosen,
        "force": force,
        "reuse": reuse,
        "precision": precision,
        "device": device,
        "single_file": single_file,
        "n_moment_pictures": moments,
    }
    if dry_run:
        _show(plan(model, task, output, **options), output)
        return
    with working("exporting", N_STEPS):
        report = run_export(
            model,
            task,
            output,
            data=said.data,
            n_cases=cases,
            max_loss=max_loss,
            calibration=offsets,
            usual=usual or said.usual,
            **options,
        )
    if precision != "fp32":
        click.echo(f"{precision}: {report.loss:.1%} of the answers are not PyTorch's (allowed {max_loss:.1%})")
    click.echo(
        f"parity: {report.tokens_equal} of {report.n_cases} answers equal, logits within {report.logits:.1e}, "
        f"{report.pixels_within_a_level:.2%} of pixel values within one level"
    )
    click.echo(f"wrote {output}")


def _without_base(
    model: str,
    output: Path,
    prompt: Prompt,
    source: Data | None,
    n_pictures: int,
    usual: Data | None,
    n_usual: int,
    dry_run: bool,
    force: bool,
) -> None:
    from .moments import different_pictures
    from .plan import plan_lens
    from .without_base import N_STEPS, export_lens

    if dry_run:
        _show(plan_lens(output, prompt=prompt, force=force, n_moment_pictures=n_usual), output)
        return
    known = different_pictures(usual, n_usual) if usual else ()
    source = source or Scenes(n_pictures, seed=7)
    pictures = [source[i].picture for i in range(min(n_pictures, len(source)))]
    with working("exporting", N_STEPS):
        report = export_lens(model, output, pictures, prompt=prompt, force=force, usual=known)
    click.echo(f"parity: {report.pixels_within_a_level:.2%} of pixel values within one level")
    click.echo(f"wrote {output}")


def _show(rows: list[tuple[str, int, str]], output: Path) -> None:
    for name, size, note in rows:
        click.echo(f"{_size(size)}  {name}{note and f'  ({note})'}")
    click.echo(f"{_size(sum(size for _, size, _ in rows))}  in all, under {output}; nothing was written")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:>10.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:>10.1f} KiB"
