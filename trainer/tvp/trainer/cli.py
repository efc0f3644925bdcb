"""`tvp train` and `tvp eval`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from . import families, tasks
from .evaluate import accuracy
from .prompt import Geometry, Prompt, write_whole
from .train import TrainConfig
from .train import train as run_training

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}


def _option(name: str, help: str, **more: Any) -> Callable[[F], F]:
    """An option whose default is the configuration's own."""
    return click.option(
        f"--{name.replace('_', '-')}", name, default=_DEFAULTS[name], show_default=True, help=help, **more
    )


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    required=True,
    help="Source model: a folder, a hub id or zoo:NAME. Several are trained on together.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@_option("task", "Name of the task.")
@_option("data", "scenes, a folder with train.parquet and test.parquet, or a .jsonl file; default: the task's.")
@_option("guide", "CLIP model of TSE: open_clip NAME@TAG, hf-hub:…, a folder, or zoo:guide.")
@_option("canvas", "Side of the canvas, px.")
@_option("inner", "Side of the shrunk picture in it, px.")
@_option("pixel_range", "Values of the frame.", type=click.Choice(["free", "image"]))
@_option("fca", "Weight of Feature Consistency Alignment.")
@_option("tse", "Weight of Task Semantics Enrichment; 0 needs no guide.")
@_option("update", "How the frame follows its gradient.", type=click.Choice(["normalized", "adam"]))
@_option("lr", "Learning rate: length of a step (normalized) or step of a pixel (adam).")
@_option("batch", "Pictures a step.")
@_option("questions", "Questions a picture, where the data has several.")
@_option("steps", "Steps; 0 is one epoch.")
@_option("warm_up", "Steps in which the rate rises.")
@_option("n_train", "Scenes to draw.")
@_option("n_validation", "Pictures split off for validation.")
@_option("validate_every", "Steps between validations; 0 for the end only.")
@_option("checkpoint_every", "Steps between checkpoints.")
@_option("seed", "Seed of data order, scenes and split.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--restart", is_flag=True, help="Start anew where the folder holds a checkpoint.")
def train(models: tuple[str, ...], output: Path, device: str, restart: bool, **options: Any) -> None:
    """Learn a prompt on frozen models. A run that was cut off goes on from its checkpoint."""
    config = TrainConfig(models=models, **options)
    quiet = None if sys.stderr.isatty() else True
    result = run_training(config, output, device=device, resume=not restart, quiet=quiet)
    click.echo(f"validation accuracy {result.validations[-1]['accuracy']:.1%}")
    click.echo(f"wrote {output / 'prompt.safetensors'}")


@click.command(name="eval")
@click.option("-m", "--model", "models", multiple=True, required=True, help="Folder, hub id or zoo:NAME.")
@click.option("-p", "--prompt", "prompts", multiple=True, type=click.Path(path_type=Path), help="Prompt file.")
@click.option("--task", "task_name", default="bad-camera", show_default=True, help="Name of the task.")
@click.option("--data", default="", help="scenes, a parquet folder or a .jsonl file; default: the task's own.")
@click.option("--n", default=1024, show_default=True, type=click.IntRange(1), help="Pictures to ask about, at most.")
@click.option("--canvas", default=224, show_default=True, help="Side of the canvas without a prompt, px.")
@click.option("--inner", default=164, show_default=True, help="Side of the picture in a black frame, px.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the scenes.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 …")
@click.option("--batch", default=256, show_default=True, type=click.IntRange(1), help="Rows read at once.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the table as JSON.")
def evaluate(
    models: tuple[str, ...],
    prompts: tuple[Path, ...],
    task_name: str,
    data: str,
    n: int,
    canvas: int,
    inner: int,
    seed: int,
    device: str,
    batch: int,
    output: Path | None,
) -> None:
    """Measure models on test data: the full picture, a black frame, and each prompt."""
    from .data import Subset

    if output and not output.parent.is_dir():
        raise click.UsageError(f"There is no folder {output.parent} to write {output.name} to.")
    task = tasks.get(task_name)
    loaded = {str(path): Prompt.load(path) for path in prompts}
    test = tasks.open_data(data, task, "test", n, seed)
    test = Subset(test, range(min(n, len(test))))
    geometries = list(dict.fromkeys(prompt.geometry for prompt in loaded.values())) or [
        Geometry(canvas, inner, task.fit)
    ]
    shown: dict[str, tuple[Geometry, Prompt | None]] = {}
    for geometry in geometries:
        shown[f"full picture, {geometry.canvas} px"] = Geometry(geometry.canvas, geometry.canvas, geometry.fit), None
        shown[f"black frame, {geometry.inner} in {geometry.canvas} px"] = geometry, None
    for name, prompt in loaded.items():
        shown[name] = prompt.geometry, prompt
    rows = []
    for model in models:
        family = families.load(model, device)
        for name, (place, chosen) in shown.items():
            if chosen is not None:
                chosen.frame = chosen.frame.to(family.device)
            result = accuracy(family, test, place, chosen, task, batch, quiet=not sys.stderr.isatty())
            rows.append(
                {
                    "model": model,
                    "shown": name,
                    "accuracy": result.accuracy,
                    "low": result.low,
                    "high": result.high,
                    "n": result.n,
                }
            )
            click.echo(f"{model:<24} {name:<32} {result}")
    if output:
        write_whole(output, (json.dumps(rows, indent=2) + "\n").encode())
