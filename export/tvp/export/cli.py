"""`tvp export`, also installed as `tvp-export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tvp.trainer import tasks
from tvp.trainer.options import allow_outside_option, offline_option

from .precision import DEVICES, MAX_LOSS, PRECISIONS


@click.command()
@click.option("-m", "--model", required=True, help="Model to export: a folder, a hub id or zoo:NAME.")
@click.option("-p", "--prompt", type=click.Path(path_type=Path), help="Prompt file. Default: none, the model alone.")
@click.option("-t", "--task", "task_name", required=True, help="Task of the bundle. An unknown name lists all tasks.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New folder for the bundle.")
@click.option("--data", help="Data for the comparison: scenes, a folder or a .jsonl file. Default: drawn scenes.")
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
@click.option("--single-file", is_flag=True, help="Also write preprocessing and encoder as one image_encoder.onnx.")
@click.option("--dry-run", is_flag=True, help="List the files and their sizes, and write nothing.")
@offline_option
@click.option("--force", is_flag=True, help="Replace the bundle in the --output folder.")
def export(
    model: str,
    prompt: Path | None,
    task_name: str,
    output: Path,
    data: str | None,
    allow_outside: bool,
    cases: int,
    reuse: bool,
    precision: str,
    device: str,
    max_loss: float,
    single_file: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Export a frozen model, with or without a prompt, as a bundle that runs without PyTorch.

    Before the bundle is written, its answers are compared with those of the PyTorch model. If they differ, the command
    fails and writes nothing.

    Ask the bundle with tvp ask, and check it on another machine with tvp check.
    """
    task = tasks.get(task_name)
    # These imports take seconds. A misspelt option should fail before them.
    from .bundle import export as run_export
    from .plan import plan

    options: dict[str, Any] = {
        "prompt": prompt,
        "force": force,
        "reuse": reuse,
        "precision": precision,
        "device": device,
        "single_file": single_file,
    }
    if dry_run:
        rows = plan(model, task, output, **options)
        for name, size, note in rows:
            click.echo(f"{_size(size)}  {name}{note and f'  ({note})'}")
        click.echo(f"{_size(sum(size for _, size, _ in rows))}  in all, under {output}; nothing was written")
        return
    source = tasks.open_data(data, task, "test", cases, seed=7, allow_outside=allow_outside) if data else None
    report = run_export(model, task, output, data=source, n_cases=cases, max_loss=max_loss, **options)
    if precision != "fp32":
        click.echo(f"{precision}: {report.loss:.1%} of the answers are not PyTorch's (allowed {max_loss:.1%})")
    click.echo(
        f"parity: {report.tokens_equal} of {report.n_cases} answers equal, logits within {report.logits:.1e}, "
        f"{report.pixels_within_a_level:.2%} of pixel values within one level"
    )
    click.echo(f"wrote {output}")


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:>10.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:>10.1f} KiB"
