"""`tvp train`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from .config import CHOICES, TrainConfig, make_config
from .team import Team

F = TypeVar("F", bound=Callable[..., Any])
_FIELDS = {f.name: f for f in fields(TrainConfig)}


def _option(name: str, help: str) -> Callable[[F], F]:
    """An option of a configuration's field; not given, the configuration files and the field's own default hold."""
    default = _FIELDS[name].default
    kind = click.Choice(CHOICES[name]) if name in CHOICES else type(default)
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help)
    shown = f"{help}  [{default}]" if default not in ("", None) else help
    return click.option(flag, name, default=None, type=kind, help=shown)


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    help="Source model: a folder, a hub id or zoo:NAME. Several are trained on together.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option(
    "-c",
    "--config",
    "own",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with any of the fields below; flags override it. A run leaves one as config.toml.",
)
@_option("method", "Where the fields below start from: vp, evp or tvp.")
@_option("task", "Name of the task.")
@_option("data", "scenes, a folder or a .jsonl file; default: the task's own.")
@_option("guide", "CLIP model of TSE: open_clip NAME@TAG, hf-hub:…, a folder, or zoo:guide.")
@_option("canvas", "Side of the canvas, px.")
@_option("inner", "Side of the square inside the frame, px.")
@_option("placement", "The frame lies around a shrunk picture, or over the full one.")
@_option("fit", "How a picture that is not square is fitted: the task's own way, crop or pad.")
@_option("pixel_range", "Values of the frame.")
@_option("rank", "Learn a frame of this rank; 0 learns every pixel.")
@_option("fca", "Weight of Feature Consistency Alignment.")
@_option("tse", "Weight of Task Semantics Enrichment; 0 needs no guide.")
@_option("contrast", "TSE compares the caption with the others of the batch.")
@click.option(
    "--augment", multiple=True, help="Vary training pictures: crop, flip or colour, where the task allows; repeatable."
)
@_option("update", "How the frame follows its gradient.")
@_option("lr", "Learning rate: length of a step (normalized) or step of a pixel (adam, sign).")
@_option("batch", "Pictures a step.")
@_option("accumulate", "Compute a step in this many parts, to save memory.")
@_option("questions", "Questions a picture, where the data has several.")
@_option("steps", "Steps; 0 is so many epochs.")
@_option("epochs", "Times through the data, where no steps are given.")
@_option("warm_up", "Steps in which the rate rises.")
@_option("n_train", "Scenes to train on.")
@_option("n_validation", "Pictures split off for validation.")
@_option("validate_every", "Steps between validations; 0 for the end only.")
@_option("patience", "Stop after so many validations without a new best; 0 never.")
@_option("checkpoint_every", "Steps between checkpoints.")
@_option("precision", "Of the frozen models: fp32, bf16, fp16, or auto.")
@_option("seed", "Seed of data order, scenes and split.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 …, or auto to spread large models.")
@click.option("--restart", is_flag=True, help="Start anew where the folder holds a checkpoint.")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too, under OUTPUT/tensorboard.")
@click.option("--compile", is_flag=True, help="Run the models' and the guide's vision encoders through torch.compile.")
@click.option("--offload", is_flag=True, help="Keep source models on the CPU but for the one whose turn it is.")
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out and list them, instead of refusing the data.")
@click.option("--download", is_flag=True, help="Let torchvision fetch the task's data set into --data.")
def train(
    models: tuple[str, ...],
    output: Path,
    own: Path | None,
    augment: tuple[str, ...],
    device: str,
    restart: bool,
    tensorboard: bool,
    compile: bool,
    offload: bool,
    skip_bad: bool,
    download: bool,
    **options: Any,
) -> None:
    """Learn a prompt on frozen models. A run that was cut off goes on from its checkpoint.

    Fields start from the shipped files of the method and of the task; [in brackets] is what holds where neither
    says anything.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: value for name, value in (("models", models), ("augment", augment)) if value}
    config = make_config(given, own)
    # Only now, since it takes seconds that a misspelt option should not.
    from .train import train as run_training

    result = run_training(
        config,
        output,
        device=device,
        resume=not restart,
        quiet=None if sys.stderr.isatty() else True,
        tensorboard=tensorboard,
        compile=compile,
        offload=offload,
        skip_bad=skip_bad,
        download=download,
    )
    if Team().leads:
        click.echo(f"validation accuracy {result.chosen['accuracy']:.1%}")
        click.echo(f"wrote {output / 'prompt.safetensors'}")
