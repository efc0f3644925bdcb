"""The configuration of a run: one frozen dataclass, filled from the shipped TOML files, the user's and the flags."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from tvp.sdk.errors import DataError, RequestError, near

from . import tasks
from .augment import AUGMENTATIONS
from .choices import LensKind, Precision, UpdateRule
from .geometry import Fit, Geometry, PixelRange, Placement, usual_inner
from .task_files import is_task_file
from .typed import OWN, task_of

Method = Literal["vp", "evp", "tvp", "lens", "both"]
LearnFrom = Literal["auto", "answers", "pairs", "unpaired", "pixels"]
LensChoice = Literal["none", "auto", LensKind]
LensStart = Literal["identity", "normalise", "statistics", "auto"]
Keep = Literal["best", "last"]
AnswerLoss = Literal["text", "labels"]
Reference = Literal["unprompted", "clean"]
FitOrTask = Literal["task", Fit]
SHIPPED = files(__package__) / "configs"
MOST_BYTES = 2**20  # of the user's file; TOML's reader takes long for much text
RENAMED = {"layout": "placement"}  # fields as earlier versions wrote them -> their names today


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides which prompt comes out.

    Args:
        models: source models, each a folder, a hub id or `zoo:NAME`. Their losses are averaged.
        method: `vp`, `evp`, `tvp`, `lens` or `both`: which file of configs/methods the other fields start from. From
            files and flags, a task of one's own has `lens` by default where `pairs`, `pictures` or a camera are given,
            and else `both`.
        task: name of the task, or its file. From files and flags it is `custom` by default where `data` (but scenes),
            `pairs` or `pictures` are given.
        data: where its pictures are, see `tvp.trainer.data`. Default '': the task's own.
        pairs: two folders of pictures with the same names, in place of `data`: what the camera spoilt, and clean.
        pictures: folder of pictures from the device, without questions, in place of `data`.
        like: good pictures of other content, which the device's should be like: a folder, or the name of a source.
        learn_from: what the loss asks for. `answers`: the right answers. `pairs`: the features of the clean picture.
            `unpaired`: the moments of the features of other good pictures. `pixels`: the pixels of the clean picture.
            `auto` takes unpaired where `like` is given, else pairs where there are clean pictures, else answers.
        answer_loss: what makes an answer right: `text`, as in the paper, the words of the right answer against all
            other texts; `labels`, the right label against the question's others, which may spoil what is written
            freely. Without labels it is `text`.
        lens: the lens to learn, `colour`, `kernel` or `conv`; `none`; or `auto`, which tries all.
        lens_start: `identity`, `normalise` (each picture is first brought to one mean and spread), `statistics` (the
            mean and spread of the pictures is brought to those of the good ones), or `auto`, which tries all.
        lens_width: channels inside a `conv` lens.
        lens_depth: layers inside a `conv` lens.
        lens_update: the lens's own update rule.
        lens_lr: the lens's own learning rate.
        behind: prompt file with a lens, behind which the frame is learned; '' for none.
        frame: whether to learn a frame.
        camera: what its pictures are seen through, as `cameras.parse` reads it; `none` for clean pictures. Default '':
            the task's own camera.
        guide: the CLIP model of TSE, not loaded where `tse` is 0.
        canvas: side of the square that models are shown, px. From files and flags, where neither the task's file nor
            the user's sets it, the size that the models take: of a task that TVP knows at most 224, of several models
            the smallest.
        inner: side of the square inside the frame, px. From files and flags, where nothing sets it, it follows from
            the canvas: 164 of 224, as in the paper.
        placement: the frame lies `around` a smaller picture, or `over` the edges of the full one.
        fit: how a picture becomes a square: `crop` keeps the middle, `pad` keeps everything, `task` does what the
            task says, since the fit may decide what can be seen.
        pixel_range: `free`, or `image` for a frame of 8-bit pixels.
        rank: 0 learns every pixel; r learns a product of two matrices of rank r.
        fca: weight of Feature Consistency Alignment beside answers. 0.005 is the paper's on CIFAR-10.
        reference: what it compares with: the picture as it is, `unprompted`, as in the paper; or the `clean` picture,
            which only data from a camera or from pairs has. Pairs always compare with the clean picture.
        relative: divide its distance by the length of the reference, so that weights carry over between models.
        depths: depths of features that losses compare: 1, the output; n, with n - 1 layers before it; 0, all.
        balance: bring the gradients of several source models to one length before they are added, so that none rules.
        guard_model: a model of another design that must not become worse behind the lens, on validation pictures;
            `none` for none. Default '': a zoo model whose vision encoder takes no part, where there is a zoo.
        tse: weight of Task Semantics Enrichment. 0.001 is the paper's on CIFAR-10.
        contrast: TSE asks the guide to prefer the right caption to the others of the batch, instead of scoring the
            right one alone.
        augment: variations of training pictures, among those that the task allows: `crop`, `flip`, `colour`.
        update: the rule by which the frame changes, see `Update`: `normalized`, `adam` or `sign`.
        lr: learning rate: the length of a step over the whole frame for `normalized` (the paper's is 10), the step
            of one pixel for the others.
        batch: pictures in a step, of all processes together.
        accumulate: parts in which a step is computed, to save memory; the result is the same.
        questions: most questions asked about a picture in a step.
        steps: number of steps; 0 trains for `epochs`.
        epochs: passes through the data, where `steps` is 0.
        warm_up: steps in which the learning rate rises.
        n_train: scenes to train on; other data is used whole.
        n_validation: samples set aside for validation, whole pictures: at most a fifth of all, or where that is less
            than 64 and answers are learned from, up to 64 and at most a third. Of scenes, further ones are drawn.
        validate_every: steps between validations; 0 validates at the end only.
        patience: validations without a new best after which training stops, and keeps the best. 0 never stops early.
        keep: `best` keeps the prompt of the best validation, if held-out questions show that it helps, see
            `outcome.settled`; `last` keeps the last one, whatever it does.
        checkpoint_every: steps between checkpoints.
        precision: number format of frozen models, see `dtype_of`; `fp16` scales the loss.
        seed: seed of the scenes, of the validation split and of the order of the data.

    Raises:
        RequestError: a value is impossible, or two values do not go together.
    """

    models: tuple[str, ...]
    method: Method = "tvp"
    task: str = "bad-camera"
    data: str = ""
    pairs: tuple[str, ...] = ()
    pictures: str = ""
    like: str = ""
    learn_from: LearnFrom = "answers"
    answer_loss: AnswerLoss = "text"
    lens: LensChoice = "none"
    lens_start: LensStart = "identity"
    lens_width: int = 16
    lens_depth: int = 1
    lens_update: UpdateRule = "adam"
    lens_lr: float = 0.004
    behind: str = ""
    frame: bool = True
    camera: str = ""
    guide: str = "zoo:guide"
    canvas: int = 224
    inner: int = 164
    placement: Placement = "around"
    fit: FitOrTask = "task"
    pixel_range: PixelRange = "free"
    rank: int = 0
    fca: float = 0.005
    reference: Reference = "unprompted"
    relative: bool = False
    depths: int = 1
    balance: bool = False
    guard_model: str = ""
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
    keep: Keep = "best"
    checkpoint_every: int = 50
    precision: Precision = "fp32"
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.models:
            raise RequestError("Name at least one source model with --model.")
        for name in ("batch", "accumulate", "questions", "epochs", "checkpoint_every", "n_train", "n_validation"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in (
            "fca",
            "tse",
            "lr",
            "lens_lr",
            "depths",
            "steps",
            "warm_up",
            "rank",
            "validate_every",
            "patience",
            "seed",
        ):
            if not getattr(self, name) >= 0:
                raise RequestError(f"{name} is {getattr(self, name)}; it must not be negative.")
        for name, kind in CHOICES.items():
            if getattr(self, name) not in kind:
                raise RequestError(
                    f"The {name.replace('_', ' ')} {getattr(self, name)!r} is unknown; it is one of {', '.join(kind)}."
                )
        geometry = Geometry(self.canvas, self.inner if self.frame else self.canvas, placement=self.placement)
        if not self.frame and self.lens == "none":
            raise RequestError("There is nothing to learn: neither a frame nor a lens. Choose one with --lens.")
        if self.behind and (self.lens != "none" or not self.frame):
            raise RequestError(
                "Behind a lens that is learned already, a frame is learned. Set frame, and no other lens."
            )
        if self.lens in ("conv", "auto"):
            from .lens import LensDesign  # which imports torch

            LensDesign("conv", width=self.lens_width, depth=self.lens_depth)
        self._check_data()
        if self.guard_model in self.models:
            raise RequestError(f"The guard {self.guard_model} takes part in training. Name a model that does not.")
        if self.frame and geometry.edge == 0:
            raise RequestError(
                f"An inner size of {self.inner} px leaves no room for a frame on a canvas of {self.canvas} px. "
                "Make it smaller."
            )
        if self.accumulate > self.batch:
            raise RequestError(f"A batch of {self.batch} pictures has no {self.accumulate} parts. Lower accumulate.")
        if self.contrast and not self.tse:
            raise RequestError("The contrast between captions is part of TSE, whose weight is 0. Set tse too.")
        if self.patience and not self.validate_every:
            raise RequestError("Early stopping (patience) needs validations during training. Set validate_every.")
        allowed = tasks.through(tasks.get(self.task), self.camera).augment
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise RequestError(f"There is no augmentation {name!r}. There are {', '.join(AUGMENTATIONS)}.")
            if name not in allowed:
                raise RequestError(
                    f"The augmentation {name!r} may change the answers of the task {self.task!r}. "
                    f"Allowed there: {', '.join(allowed) or 'none'}."
                )

    def _check_data(self) -> None:
        given = [name for name in ("data", "pairs", "pictures") if getattr(self, name)]
        if len(given) > 1:
            raise RequestError(f"{' and '.join(given)} both say where the pictures are. Give one of them.")
        if self.pairs and self.camera not in ("", "none"):
            raise RequestError("pairs hold what their own camera spoilt. Leave camera out, or give good pictures.")
        if self.pairs and len(self.pairs) != 2:
            raise RequestError(f"pairs are two folders, what the camera spoilt and clean; these are {len(self.pairs)}.")
        if self.like and (self.pairs or self.learn_from in ("pairs", "pixels", "answers")):
            asked = "pairs" if self.pairs else self.learn_from
            raise RequestError(f"Learning from {asked} does not read other good pictures. Leave like out.")


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the texts of a Literal; it may hold other Literals."""
    return tuple(text for part in get_args(kind) for text in ((part,) if isinstance(part, str) else _choices(part)))


CHOICES: dict[str, tuple[str, ...]] = {
    name: _choices(kind)
    for name, kind in (
        ("method", Method),
        ("learn_from", LearnFrom),
        ("lens", LensChoice),
        ("lens_start", LensStart),
        ("lens_update", UpdateRule),
        ("keep", Keep),
        ("answer_loss", AnswerLoss),
        ("reference", Reference),
        ("placement", Placement),
        ("fit", FitOrTask),
        ("pixel_range", PixelRange),
        ("update", UpdateRule),
        ("precision", Precision),
    )
}


def make_config(
    given: dict[str, Any], own: Path | None = None, side_of: Callable[[str], int] | None = None
) -> TrainConfig:
    """Make a configuration. Flags override the user's file, that overrides the task's file, and that the method's.

    In the task's file, the table that is named like the method overrides the fields outside of tables.

    Args:
        given: fields by name, as flags set them.
        own: the user's TOML file, with the same names.
        side_of: returns the side of the pictures that a model takes, px. It is asked last, since it may need the
            network. Default: nobody is asked, and a canvas that nothing sets is the field's default.

    Raises:
        RequestError: there is no such task or method, or the fields do not go together.
        DataError: the file is not TOML, or sets a field that does not exist or that takes another type.
    """
    file = _read(own.name, _own_bytes(own)) if own is not None else {}
    mine = {**file, **given}
    for name in ("method", "task"):
        if name in file and name in given and given[name] != file[name]:
            raise RequestError(
                f"{own} is for the {name} {file[name]!r} and may set everything that belongs to it; --{name} "
                f"{given[name]} would change the name alone. Leave it out, or delete {name!r} from the file."
            )
    default = {f.name: f.default for f in fields(TrainConfig)}
    task, _ = task_of(mine)
    about = tasks.get(task)  # refuses a wrong name, with near matches
    places: dict[str, Any] = {}
    if not any(mine.get(name) for name in ("data", "pairs", "pictures")):
        places = {name: getattr(about, name) for name in ("pairs", "pictures", "like") if getattr(about, name)}
    is_own = task == OWN or is_task_file(task)
    sees_badly = bool(tasks.through(about, str(mine.get("camera", ""))).camera)
    # Pictures without questions have no answers for a frame; and of a known camera a lens gives back the most.
    if is_own and (sees_badly or any((mine | places).get(name) for name in ("pairs", "pictures"))):
        default["method"] = "lens"
    elif is_own:
        default["method"] = "both"
    method = str(mine.get("method", default["method"]))
    if method not in CHOICES["method"]:
        raise RequestError(f"There is no method {method!r}. There are {', '.join(CHOICES['method'])}.")
    layers = [SHIPPED / "methods" / f"{method}.toml", SHIPPED / "tasks" / f"{OWN if is_own else task}.toml"]
    merged = places
    for layer in layers:
        merged |= _read(layer.name, layer.read_bytes(), method)
    for level in (file, given):
        update = merged.get("update", default["update"])
        if level.get("update", update) != update and "lr" not in level:
            raise RequestError(
                f"The update {level['update']!r} needs a learning rate of its own (--lr). The one that is set belongs "
                f"to {update!r}, which measures steps differently."
            )
        # Epochs without steps must win over the steps that a lower file sets.
        merged |= {"steps": 0, **level} if "epochs" in level else level
    if "canvas" in merged:
        merged.setdefault("inner", usual_inner(merged["canvas"]))
    config = TrainConfig(**{"models": (), "task": task, **merged})  # an empty tuple is refused
    if side_of is None or "canvas" in merged:
        return config
    canvas = min(map(side_of, config.models))
    canvas = canvas if is_own else min(canvas, config.canvas)
    return replace(config, canvas=canvas, inner=merged.get("inner", usual_inner(canvas)))


def _own_bytes(own: Path) -> bytes:
    if not own.is_file():  # a pipe may never end
        raise DataError(f"There is no file {own}. `tvp train` writes one as config.toml.")
    try:
        with own.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{own} cannot be read: {error.strerror}.") from error
    if len(data) > MOST_BYTES:
        raise DataError(f"{own} has more than {MOST_BYTES:,} bytes, which no configuration needs. Name another file.")
    return data


def _read(name: str, data: bytes, method: str = "") -> dict[str, Any]:
    """Read the fields that a file sets.

    Args:
        name: of the file, for messages.
        data: its bytes.
        method: for a shipped file, which may have a table of fields for each method: the method whose table is read.
    """
    known = {f.name: f for f in fields(TrainConfig)}
    try:
        found = tomllib.loads(data.decode())
    except RecursionError as error:
        raise DataError(f"{name} is nested too deeply. A configuration has fields and lists of texts only.") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise DataError(f"{name} is not a TOML file: {error}") from error
    if method:
        # A field may be called as a method is, as `lens`; a table is meant for the method.
        tables = {name: found.pop(name) for name in CHOICES["method"] if isinstance(found.get(name), dict)}
        found |= tables.get(method, {})
    for old, new in RENAMED.items():
        if old in found and new in found:
            raise DataError(f"{name} sets both {old!r} and {new!r}, which are one field; keep {new!r}.")
        if old in found:
            found[new] = found.pop(old)
    for key, value in found.items():
        if key not in known:
            raise DataError(f"{name} sets {key!r}, which is no field of a configuration.{near(key, known)}")
        wanted: type = list if isinstance(known[key].default, tuple) or key == "models" else type(known[key].default)
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
    """Write the whole configuration as TOML, which `--config` reads."""
    # JSON writes texts, numbers, booleans and lists of texts as TOML does.
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in asdict(config).items())
