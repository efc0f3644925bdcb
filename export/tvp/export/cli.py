"""`tvp export`, also installed as `tvp-export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tvp.trainer import tasks

from .precision import DEVICES, MAX_LOSS, PRECISIONS


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
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="cpu",
    show_default=True,
    help="Where it is meant to run; TensorRT needs a vision encoder of standard operators.",
)
@click.option(
    "--max-loss",
    default=MAX_LOSS,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of the answers that may differ from PyTorch's, below fp32.",
)
@click.option(
    "--single-file", is_flag=True, help="Also write image_encoder.onnx: preprocessing and vision encoder in one graph."
)
@click.option("--dry-run", is_flag=True, help="Say what would be written and how large, and write nothing.")
@click.option("--force", is_flag=True, help="Replace the bundle at OUTPUT.")
def export(
    model: str,
    prompt: Path | None,
    task_name: str,
    output: Path,
    data: str | None,
    cases: int,
    reuse: bool,
    precision: str,
    device: str,
    max_loss: float,
    single_file: bool,
    dry_run: bool,
    force: bool,
) -> None:
    """Turn a frozen model and a prompt into a bundle that the sdk runs without PyTorch.

    The bundle is compared with the PyTorch model first; where they differ, nothing is written.
    """
    task = tasks.get(task_name)
    # Only now, since it takes seconds that a misspelt option should not.
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
    source = tasks.open_data(data, task, "test", cases, seed=7) if data else None
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
