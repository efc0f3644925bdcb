"""`tvp export`, also installed as `tvp-export`."""

from __future__ import annotations

from pathlib import Path

import click

from tvp.trainer import tasks

from .bundle import export as run_export


@click.command()
@click.option("-m", "--model", required=True, help="A folder, a hub id or zoo:NAME.")
@click.option("-p", "--prompt", type=click.Path(path_type=Path), help="Prompt file; without one, the plain model.")
@click.option("-t", "--task", "task_name", required=True, help="Name of the task.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle.")
@click.option("--data", help="Pictures for parity and golden cases: scenes, a parquet folder or a .jsonl file.")
@click.option(
    "--cases", default=16, show_default=True, type=click.IntRange(1), help="Cases that the parity gate compares."
)
@click.option("--reuse/--no-reuse", default=True, help="Share the base of another bundle of the same model.")
@click.option("--force", is_flag=True, help="Replace the bundle at OUTPUT.")
def export(
    model: str,
    prompt: Path | None,
    task_name: str,
    output: Path,
    data: str | None,
    cases: int,
    reuse: bool,
    force: bool,
) -> None:
    """Turn a frozen model and a prompt into a bundle that the sdk runs without PyTorch.

    The bundle is compared with the PyTorch model first; where they differ, nothing is written.
    """
    task = tasks.get(task_name)
    source = tasks.open_data(data, task, "test", cases, seed=7) if data else None
    report = run_export(model, task, output, prompt=prompt, data=source, n_cases=cases, force=force, reuse=reuse)
    click.echo(
        f"parity: {report.tokens_equal} of {report.n_cases} answers equal, logits within {report.logits:.1e}, "
        f"{report.pixels_within_a_level:.2%} of pixel values within one level"
    )
    click.echo(f"wrote {output}")
