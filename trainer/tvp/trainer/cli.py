"""The command `tvp train`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from . import tasks
from .cameras import HELP as CAMERA_HELP
from .config import CHOICES, TrainConfig, make_config
from .hub import is_fetched, refuse_misspelt
from .options import allow_outside_option, download_option, offline_option, skip_bad_option
from .progress import tidy_warnings, working
from .team import Team
from .typed import refuse_idle, task_of

F = TypeVar("F", bound=Callable[..., Any])
_FIELDS = {f.name: f for f in fields(TrainConfig)}


def _option(name: str, help: str) -> Callable[[F], F]:
    """Make an option for a field of the configuration; where it is not given, files and the field's default decide."""
    default = _FIELDS[name].default
    kind = click.Choice(CHOICES[name]) if name in CHOICES else type(default)
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help)
    shown = f"{help}  [{default}]" if default not in ("", None) and not help.endswith("]") else help
    return click.option(flag, name, default=None, type=kind, help=shown)


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    help="Source model to train on: a folder, a hub id or zoo:NAME. Repeat it to train on several together.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the prompt, logs and checkpoints. If it holds an unfinished run, that run continues.",
)
@click.option(
    "-c",
    "--config",
    "own",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file that sets any of the options below. Every run writes one, config.toml.",
)
@_option(
    "method",
    "What to learn: vp, a frame over the full picture; evp, a frame around a smaller picture; "
    "tvp, the same with the two losses that make a prompt transfer; lens, numbers that act on the picture itself; "
    "both, a lens and a frame over the full picture. Default: tvp for a task that TVP knows; for one of your own both, "
    "and lens where its pictures have a camera, clean ones beside them, or no answers.  [tvp]",
)
@click.option(
    "-t",
    "--task",
    "task",
    help="Task to learn: a name, or a task file that tvp init wrote. An unknown name lists all tasks. Default: custom, "
    "the task for data of your own, where data is named; else bad-camera, the demo's.",
)
@_option("data", "Training data: scenes, a folder or a .jsonl file. Default: the task's own.")
@click.option(
    "--pairs",
    nargs=2,
    type=click.Path(),
    metavar="SPOILT CLEAN",
    help="Two folders of pictures with the same names, to learn a lens from, without questions or answers.",
)
@_option("pictures", "Folder of pictures from the device, without questions.")
@_option("like", "Good pictures of other content, which the device's should be like: a folder, or scenes.")
@_option(
    "learn_from",
    "What to learn from: answers, pairs, unpaired (--pictures and --like), pixels, or auto: what the data has.",
)
@_option(
    "answer_loss",
    "Learn to write the right answer (text), or to choose it among labels (labels), as tvp ask --rank does.",
)
@_option("lens", "Lens to learn: colour, kernel, conv, none, or auto, which tries all.")
@_option(
    "lens_start",
    "Start of the lens: identity; normalise, which brings each picture to one mean and spread; statistics, which "
    "brings those of all pictures to the good ones'; or auto, which tries all.",
)
@_option("lens_width", "Channels inside a conv lens.")
@_option("lens_depth", "Layers of channels inside a conv lens.")
@_option("lens_update", "Rule that changes the lens, as of --update.")
@_option("lens_lr", "Learning rate of the lens.")
@_option("behind", "Prompt file with a lens, behind which a frame is learned.")
@_option("frame", "Learn a frame.")
@_option("camera", f"Spoil the pictures: {CAMERA_HELP}")
@_option("guide", "CLIP model that TSE asks: open_clip's NAME@TAG or hf-hub:ID, a folder, or zoo:guide.")
@_option("canvas", "Side of the square that models are shown, in pixels.  [what the task or the models take]")
@_option("inner", "Side of the square inside the frame, in pixels.  [in proportion to the canvas, 164 of 224]")
@_option("placement", "Put the frame around a smaller picture, or over the edges of the full one.")
@_option("fit", "Make pictures square: crop their middle, pad them with black, or do what the task says.")
@_option("pixel_range", "Frame values: free, or image to keep them in [0, 1], so that a PNG holds the whole prompt.")
@_option("rank", "Learn a smooth frame of this rank. 0 learns every pixel.")
@_option("fca", "Weight of Feature Consistency Alignment, which keeps features close to those without a prompt.")
@_option("reference", "What FCA compares with: the unprompted picture, or the clean one of a pair.")
@_option("relative", "Measure FCA's distance relative to the length of its reference.")
@_option("depths", "Depths of features that are compared: 1, the output; n, with n - 1 layers before it; 0, all.")
@_option("balance", "Bring the gradients of several source models to one length.")
@_option("guard_model", "Model that a lens must not make worse, or none. Default: a zoo model that takes no part.")
@_option("tse", "Weight of Task Semantics Enrichment, which makes the picture fit its caption. 0 needs no guide.")
@_option("contrast", "In TSE, compare each caption with the others of the batch.")
@click.option(
    "--augment",
    multiple=True,
    help="Vary training pictures: crop, flip or colour, if the task allows it. Repeat it for several.",
)
@_option("update", "Rule that changes the frame: steps of a fixed length (normalized), Adam, or the gradient's sign.")
@_option("lr", "Learning rate: the length of a whole step (normalized), or the step of one pixel (adam, sign).")
@_option("batch", "Pictures in a step.")
@_option("accumulate", "Compute each step in this many parts. Saves memory, changes no result.")
@_option("questions", "Most questions to ask about a picture in a step.")
@_option("steps", "Number of steps. 0 trains for --epochs instead.")
@_option("epochs", "Passes through the data. Used when --steps is 0.")
@_option("warm_up", "Steps in which the learning rate rises to --lr.")
@_option("n_train", "Number of scenes to draw for training. Other data is used whole.")
@_option(
    "n_validation", "Pictures set aside for validation: at most a fifth of the data; of a few with answers, a third."
)
@_option("validate_every", "Steps between validations. 0 validates at the end only.")
@_option("patience", "Stop after this many validations without a new best, and keep the best prompt. 0 never stops.")
@_option("keep", "Keep the best prompt that was seen, if it helps; or the last one, whatever it does.")
@_option("checkpoint_every", "Steps between checkpoints.")
@_option("precision", "Number format of the frozen models. auto takes bf16 on a GPU that has it, else fp32.")
@_option("seed", "Seed for scenes, the validation split and the order of the data.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where models run: cpu, cuda, cuda:1 …, or auto to spread large models over all GPUs.",
)
@click.option("--restart", is_flag=True, help="Start anew, and delete the folder's checkpoint.")
@click.option("--tensorboard", is_flag=True, help="Also log for TensorBoard, in OUTPUT/tensorboard.")
@click.option("--compile", is_flag=True, help="Compile the vision encoders. The start is slow, long runs are faster.")
@click.option("--offload", is_flag=True, help="Keep only one source model on the device at a time. Saves memory.")
@skip_bad_option
@download_option
@allow_outside_option
@offline_option
def train(
    models: tuple[str, ...],
    output: Path,
    own: Path | None,
    augment: tuple[str, ...],
    pairs: tuple[str, str] | None,
    device: str,
    restart: bool,
    tensorboard: bool,
    compile: bool,
    offload: bool,
    skip_bad: bool,
    download: bool,
    allow_outside: bool,
    **options: Any,
) -> None:
    """Learn a prompt on frozen models.

    The method and the task set most options; your --config file overrides them, and options given here override
    both. The value in [brackets] applies where nothing sets an option.

    A run that was interrupted continues from its last checkpoint: give the same command again.
    """
    given = {name: value for name, value in options.items() if value is not None}
    given |= {name: value for name, value in (("models", models), ("augment", augment), ("pairs", pairs)) if value}
    typed = {*models, str(options["guide"]), str(options["guard_model"])}
    config = make_config(given, own)  # which says what is wrong before anything is loaded
    refuse_idle(given, config, (config.data or tasks.get(config.task).source) == "scenes")
    tidy_warnings()
    if own is None and (why := task_of(given)[1]) and Team().leads:
        click.echo(why, err=True)
    for model in (*config.models, *([config.guard_model] if config.guard_model not in ("", "none") else [])):
        refuse_misspelt(model)
    with working("loading PyTorch"):  # imported this late because it takes seconds
        from . import families
        from .summary import sentences
        from .train import train as run_training

    config = make_config(given, own, lambda name: families.input_side(name, is_fetched(name, typed)))
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
        allow_outside=allow_outside,
        typed=typed,
    )
    if Team().leads:
        for sentence in sentences(result):
            click.echo(sentence)
        click.echo(f"wrote {output / 'prompt.safetensors'}")
