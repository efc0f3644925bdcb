"""What a run needs before its first step: source models, guide and data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tvp.sdk.errors import DataError, RequestError

from . import families, tasks
from .alignment import Alignment, measure
from .asking import answerable
from .batches import Batch, read_batches
from .config import TrainConfig
from .data import Data, questions_of, row_of, split
from .families import Family
from .hub import is_fetched
from .losses import Guide, refuse_unknown_guide
from .precision import dtype_of
from .progress import say, working
from .prompt import Geometry, lens_of
from .signals import SIGNALS, open_data, open_like, refuse_few, signal_of
from .task_definition import TaskDefinition
from .team import Team
from .zoo import PREFIX

log = logging.getLogger("tvp.trainer")

FEW = 64  # validation questions that a small set with answers gives, where they are no more than a third of it
WARNING = (
    "%s. A lens cannot move pictures back, and learns less from such pairs. Align them first, or give the good ones as "
    "--like and the others as --pictures."
)


@dataclass(frozen=True)
class Prepared:
    """What a run is made of.

    Attributes:
        config: as it was given, without losses for which the data has nothing; where no question is asked, its batch
            is at most the number of training pictures.
        learn_from: `answers`, `pairs`, `unpaired` or `pixels`.
        why: what decided that.
        sources: the frozen models that the prompt is trained on.
        guide: the CLIP model of TSE; None where its weight is 0.
        data: all training data, of which `train` and `validation` are parts without a picture in common.
        like: the same parts of other good pictures, for training and for validation; None where none are read.
        alignment: how well pairs lie on each other; None without pairs.
        home: the device of the frame and the guide. Of models that are spread over devices, where the first starts.
        offload: source models wait on the CPU until it is their turn.
    """

    config: TrainConfig
    learn_from: str
    why: str
    task: TaskDefinition
    sources: Sequence[Family]
    guide: Guide | None
    data: Data
    train: Data
    validation: Data
    like: tuple[Data, Data] | None
    alignment: Alignment | None
    home: torch.device
    offload: bool

    @property
    def geometry(self) -> Geometry:
        return geometry_of(self.config, self.task)

    @property
    def n_batches(self) -> int:
        """Batches in one epoch; what does not fill a batch is left out."""
        return len(self.train) // self.config.batch

    @property
    def n_steps(self) -> int:
        return self.config.steps or self.n_batches * self.config.epochs

    def batches(self, first: int, n_steps: int, team: Team) -> Iterator[Batch]:
        """Read this process's share of the batches of steps `first` to `n_steps`; see `read_batches`."""
        n_questions = self.config.questions if self.learn_from == "answers" else 0
        like = self.like[0] if self.like else None
        return read_batches(self.config, self.train, self.geometry, first, n_steps, team, n_questions, like)

    def identity(self) -> dict[str, Any]:
        """What the run is made of, by content: a name alone may stand for other weights or rows tomorrow."""
        config = self.config
        total = hashlib.sha256()
        for data in (self.data, *(self.like or ())):
            for i in range(0, len(data), max(1, len(data) // 16)):  # some samples; large data is read only once
                sample = data[i]
                total.update(repr((i, sample.picture.shape, sample.questions, sample.caption)).encode())
                total.update(sample.picture.tobytes())
                if sample.clean is not None:
                    total.update(sample.clean.tobytes())
        return {
            "config": asdict(config),
            "sources": {name: families.digest(name) for name in config.models},
            "asked": {
                name: repr((getattr(source, "layout", ""), source.pixel_format))
                for name, source in zip(config.models, self.sources, strict=True)
            },
            "guide": {config.guide: families.digest(config.guide)} if self.guide else {},
            "data": {"n": len(self.data), "fingerprint": total.hexdigest()},
        }


def geometry_of(config: TrainConfig, task: TaskDefinition) -> Geometry:
    """Return how a run's pictures lie on the canvas."""
    fit = task.fit if config.fit == "task" else config.fit
    if not config.frame:
        return Geometry(config.canvas, config.canvas, fit)
    return Geometry(config.canvas, config.inner, fit, config.placement)


def prepare(
    config: TrainConfig,
    team: Team,
    sources: Sequence[Family] | None = None,
    data: Data | None = None,
    like_data: Data | None = None,
    *,
    device: str = "cpu",
    compile: bool = False,
    offload: bool = False,
    skip_bad: bool = False,
    download: bool = False,
    allow_outside: bool = False,
    typed: Collection[str] | None = None,
    accept: Callable[[TrainConfig], None] = lambda config: None,
) -> Prepared:
    """Open the data and load the models.

    Args:
        accept: is given the configuration, fitted to the data, before models are loaded, and may refuse it.

    The other arguments are those of `train`.
    """
    task = tasks.through(tasks.get(config.task), config.camera)
    device = str(team.device or device)
    # Whatever can be refused is refused before data is read, and that before models are: both may take long.
    if device != "auto":
        families.moved(torch.empty(0), device)
    if config.batch < team.size:
        raise RequestError(f"A batch of {config.batch} pictures cannot be shared by {team.size} processes.")
    if compile and config.depths != 1:
        raise RequestError(
            "A compiled vision encoder does not show its layers. Leave --compile out, or use --depths 1."
        )
    if config.behind:
        lens_of(config.behind)
    if sources is None:
        for name in config.models:
            families.refuse_unknown(name, is_fetched(name, typed))
    if config.tse:
        refuse_unknown_guide(config.guide, is_fetched(config.guide, typed))
    if data is None:
        with working("reading the data"):
            data = open_data(config, task, team, skip_bad, download, allow_outside)
    learn_from, why = signal_of(config, data)
    log.info("learning from %s, because %s", SIGNALS[learn_from], why)
    config = _fitting(config, learn_from, data)
    good = None
    if learn_from == "unpaired":
        good = like_data if like_data is not None else open_like(config, task, skip_bad, allow_outside)
    if config.lens != "none" and config.lens_start == "statistics" and good is None and data[0].clean is None:
        raise RequestError("The start 'statistics' needs good pictures: pairs, a camera, or --like.")
    train, validation, like, batch = _parted(config, learn_from, data, good)
    if len(validation) < config.n_validation != TrainConfig.n_validation:
        log.warning(
            "n_validation is %d, and of the data's %d samples at most %d are set aside for validation",
            config.n_validation, len(data), len(validation),
        )  # fmt: skip
    accept(replace(config, batch=batch))
    if sources is None:
        dtype, place = dtype_of(config.precision, device), "cpu" if offload else device
        alone = learn_from != "answers"
        sources = []
        for name in config.models:
            with working(f"loading {name}"):
                sources.append(families.load(name, place, dtype, config.canvas, is_fetched(name, typed), alone))
    home = torch.device(device) if device != "auto" else sources[0].device
    with working(f"loading {config.guide}"):
        guide = _load_guide(config, home, is_fetched(config.guide, typed))
    if learn_from == "answers":
        readable = answerable(data, _in_turn(config.models, sources, home, offload), config.canvas, task.free, skip_bad)
        if readable is not data:
            data = readable
            train, validation, like, batch = _parted(config, learn_from, data, good)
    say(f"{len(train)} samples to learn from, and {len(validation)} for validation")
    config = replace(config, batch=batch)
    if batch < team.size:
        raise RequestError(f"A batch of {batch} pictures cannot be shared by {team.size} processes.")
    if compile:
        for source in sources:
            source.compile()
        if guide:
            guide.compile()
    alignment = None
    if learn_from in ("pairs", "pixels"):
        alignment = measure(train, geometry_of(config, task))
        if alignment.hurts:
            log.warning(WARNING, alignment)
    return Prepared(
        config, learn_from, why, task, sources, guide, data, train, validation, like, alignment, home, offload
    )


def _parted(
    config: TrainConfig, learn_from: str, data: Data, good: Data | None
) -> tuple[Data, Data, tuple[Data, Data] | None, int]:
    """Return the data for training and for validation, the same parts of good pictures, and the batch that they fill.

    Raises:
        DataError: there are too few pictures.
    """
    if learn_from != "answers":
        refuse_few(data, "pictures" if learn_from == "unpaired" else "pairs of pictures")
    most = len(data) // 5
    if learn_from == "answers" and row_of(data, 0):  # whether a prompt helps is hard to tell by a few questions
        most = max(most, min(FEW, len(data) // 3))
    n_validation = min(config.n_validation, most)
    train, validation = split(data, n_validation, config.seed)
    like = None
    if good is not None:
        refuse_few(good, "good pictures")
        like = split(good, min(n_validation, len(good) // 5), config.seed)
    batch = config.batch
    if learn_from != "answers":  # a few pictures are enough
        batch = min(batch, len(train), *([len(like[0])] if like else []))
    if len(train) < batch:
        raise DataError(f"{len(train)} training pictures do not fill a batch of {batch}; take a smaller one.")
    return train, validation, like, batch


def _fitting(config: TrainConfig, learn_from: str, data: Data) -> TrainConfig:
    """Return the configuration without losses for which the data has nothing.

    Raises:
        DataError: TSE is to be learned from, and no picture has a caption.
    """
    sample = data[0]
    if learn_from == "answers" and config.fca and config.reference == "clean" and sample.clean is None:
        log.info("there are no clean pictures: the run learns from the answers alone, and the weight of FCA is 0")
        config = replace(config, fca=0.0)
    if learn_from == "answers" and config.answer_loss == "labels" and not _has_labels(data):
        say("not every question has labels, so the run learns the text of the answers")
        config = replace(config, answer_loss="text")
    if config.tse and not sample.caption:
        raise DataError("TSE makes pictures fit their captions, and these have none. Leave it out (--tse 0).")
    return config


def _has_labels(data: Data) -> bool:
    """Whether every question has labels, and the right answer among them. Of data without rows, the first is read."""
    n = len(data) if row_of(data, 0) else 1
    return all(question.answer in question.labels for i in range(n) for question in questions_of(data, i))


def _in_turn(
    names: Sequence[str], sources: Sequence[Family], home: torch.device, offload: bool
) -> Iterator[tuple[str, Family]]:
    """Yield each source model with its name, while it is on the device where it runs."""
    for name, source in zip(names, sources, strict=True):
        if offload:
            source.model.to(home)
        yield name, source
        if offload:
            source.model.to("cpu")


def _load_guide(config: TrainConfig, home: torch.device, fetch: bool) -> Guide | None:
    if not config.tse:
        return None
    if config.guide == "zoo:guide" and not all(name.startswith(PREFIX) for name in config.models):
        log.warning(
            "TSE asks zoo:guide, a tiny model that knows scenes and CIFAR-10 only. "
            "The paper's guide is --guide ViT-B-32@openai."
        )
    return Guide(config.guide, home, fetch)
