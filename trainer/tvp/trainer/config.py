"""What decides a prompt: one frozen dataclass, filled from shipped and own TOML files and from flags."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from tvp.sdk.errors import DataError, RequestError, near

from . import tasks
from .augment import AUGMENTATIONS
from .precision import Precision
from .prompt import Geometry, PixelRange, Placement
from .update import UpdateRule

Method = Literal["vp", "evp", "tvp"]
FitOrTask = Literal["task", "crop", "pad"]
SHIPPED = files(__package__) / "configs"
RENAMED = {"layout": "placement"}  # fields as earlier versions wrote them -> their names today


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what prompt comes out.

    models: source models, by folder, hub id or `zoo:NAME`; their losses are averaged.
    method: `vp`, `evp` or `tvp`: which shipped file the other fields start from; see configs/methods.
    task: name of the task; data: where its pictures are ('': the task's own; see `tvp.trainer.data`).
    guide: the CLIP model of TSE; needed where tse is not 0.
    canvas, inner: sides in px. placement: the frame lies `around` a shrunk picture or `over` the edges of the
        full one. fit: how a picture that is not square is fitted, `crop` or `pad`; `task` leaves it to the task,
        where it may decide what can be seen. pixel_range: `free` or `image`.
    rank: 0 learns every pixel, r a product of rank r.
    fca, tse: weights of the two losses (the paper's CIFAR-10 run: 0.005 and 0.001).
    contrast: TSE asks the guide to prefer the right caption to the others, instead of the right one alone.
    augment: how training pictures are varied, of those that the task allows: `crop`, `flip`, `colour`.
    update, lr: the rule and its rate: `normalized` (lr is the length of a step over the whole frame; the
        paper uses 10), `adam` or `sign` (lr is per pixel).
    batch: pictures a step, all processes together. accumulate: in how many parts a step is computed, where
        memory is short; it changes no result. questions: questions a picture, where the data has several.
    steps: number of steps; 0 means `epochs` of the data. warm_up: steps in which the rate rises.
    n_train: scenes to train on. n_validation: samples split off from training data, at most a fifth of all, but
        whole pictures; more scenes are drawn for them.
    validate_every: steps between validations, 0 for only at the end. patience: validations without a new
        best after which to stop; the prompt is then the best one. 0: never, and the prompt is the last one.
    checkpoint_every: steps between checkpoints.
    precision: `fp32`, or `bf16` or `fp16` (with loss scaling) where the arithmetic of frozen models may be
        coarser; `auto` is bf16 on a GPU that has it and fp32 elsewhere.
    """

    models: tuple[str, ...]
    method: Method = "tvp"
    task: str = "bad-camera"
    data: str = ""
    guide: str = "zoo:guide"
    canvas: int = 224
    inner: int = 164
    placement: Placement = "around"
    fit: FitOrTask = "task"
    pixel_range: PixelRange = "free"
    rank: int = 0
    fca: float = 0.005
    tse: float = 0.001
    contrast: bool = False
    augment: tuple[str, ...] = ()
    update: UpdateRule = "normalized"
    lr: float = 10.0
    batch: int = 16
    accumulate: int = 1
    questions: int = 4
    steps: int = 0
    epochs: int = 1
    warm_up: int = 0
    n_train: int = 4096
    n_validation: int = 256
    validate_every: int = 0
    patience: int = 0
    checkpoint_every: int = 50
    precision: Precision = "fp32"
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.models:
            raise RequestError("Name at least one source model with --model.")
        for name in ("batch", "accumulate", "questions", "epochs", "checkpoint_every", "n_train", "n_validation"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("fca", "tse", "lr", "steps", "warm_up", "rank", "validate_every", "patience", "seed"):
            if not getattr(self, name) >= 0:
                raise RequestError(f"{name} is {getattr(self, name)}; it must not be negative.")
        for name, kind in CHOICES.items():
            if getattr(self, name) not in kind:
                raise RequestError(
                    f"The {name.replace('_', ' ')} {getattr(self, name)!r} is unknown; it is one of {', '.join(kind)}."
                )
        geometry = Geometry(self.canvas, self.inner, placement=self.placement)
        if geometry.edge == 0:
            raise RequestError(f"An inner size of {self.inner} px leaves no frame to train on {self.canvas} px.")
        if self.accumulate > self.batch:
            raise RequestError(f"A batch of {self.batch} pictures has no {self.accumulate} parts.")
        if self.contrast and not self.tse:
            raise RequestError("A contrast between captions is part of TSE, whose weight is 0; set tse as well.")
        if self.patience and not self.validate_every:
            raise RequestError("Early stopping (patience) needs validations on the way; set validate_every.")
        allowed = tasks.get(self.task).augment
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise RequestError(f"There is no augmentation {name!r}; there are {', '.join(AUGMENTATIONS)}.")
            if name not in allowed:
                raise RequestError(
                    f"The augmentation {name!r} may change the answers of the task {self.task!r}, which allows "
                    f"{', '.join(allowed) or 'none'}."
                )


CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(kind)
    for name, kind in (
        ("method", Method),
        ("placement", Placement),
        ("fit", FitOrTask),
        ("pixel_range", PixelRange),
        ("update", UpdateRule),
        ("precision", Precision),
    )
}


def make_config(given: dict[str, Any], own: Path | None = None) -> TrainConfig:
    """Put a configuration together: what is given, before the user's file, the task's and the method's.

    What the task's file says of the method in a table of its name comes before what it says of all methods.
    given: fields by name, as flags give them. own: a TOML file with the same names.
    """
    file = _read(own.name, own.read_bytes()) if own is not None else {}
    mine = {**file, **given}
    for name in ("method", "task"):
        if name in file and name in given and given[name] != file[name]:
            raise RequestError(
                f"{own} is about the {name} {file[name]!r} and may say all that goes with it; --{name} "
                f"{given[name]} would change the name alone. Leave it out, or take the line {name!r} out of the file."
            )
    default = {f.name: f.default for f in fields(TrainConfig)}
    task, method = (str(mine.get(name, default[name])) for name in ("task", "method"))
    tasks.get(task)  # a wrong name is told as such, with near matches
    if method not in CHOICES["method"]:
        raise RequestError(f"There is no method {method!r}; there are {', '.join(CHOICES['method'])}.")
    layers = [SHIPPED / "methods" / f"{method}.toml", SHIPPED / "tasks" / f"{task}.toml"]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= _read(layer.name, layer.read_bytes(), method)
    for level in (file, given):
        update = merged.get("update", default["update"])
        if level.get("update", update) != update and "lr" not in level:
            raise RequestError(
                f"The update {level['update']!r} needs a learning rate of its own (--lr): the one that is set goes "
                f"with {update!r}, whose steps are measured otherwise."
            )
        # Epochs are what is asked for where steps are not, and steps of a file below would hold before them.
        merged |= {"steps": 0, **level} if "epochs" in level else level
    return TrainConfig(**{"models": (), **merged})  # which refuses to have none


def _read(name: str, data: bytes, method: str = "") -> dict[str, Any]:
    """The fields that a file sets; a shipped one may have a table for what a method takes otherwise than the others."""
    known = {f.name: f for f in fields(TrainConfig)}
    try:
        found = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{name} is not a TOML file: {error}") from error
    if method:
        tables = {other: found.pop(other, {}) for other in CHOICES["method"]}
        found |= tables[method]
    for old, new in RENAMED.items():
        if old in found and new in found:
            raise DataError(f"{name} sets both {old!r} and {new!r}, which are one field; keep {new!r}.")
        if old in found:
            found[new] = found.pop(old)
    for key, value in found.items():
        if key not in known:
            raise DataError(f"{name} sets {key!r}, which is no field of a configuration.{near(key, known)}")
        wanted: type = list if key in ("models", "augment") else type(known[key].default)
        if wanted is float and type(value) is int:
            found[key] = float(value)
        elif type(value) is not wanted or (isinstance(value, list) and not all(isinstance(v, str) for v in value)):
            raise DataError(f"{name} sets {key} to {value!r}; it takes a {_SPELT[wanted]}.")
        if isinstance(value, list):
            found[key] = tuple(value)
    return found


_SPELT: dict[type, str] = {
    list: "list of texts",
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
}


def to_toml(config: TrainConfig) -> str:
    """The whole configuration as a TOML file that `--config` reads."""
    # JSON writes texts, numbers, booleans and lists of texts as TOML does.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in asdict(config).items())
