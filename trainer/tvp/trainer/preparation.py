"""What a run needs before its first step: source models, guide and data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tvp.sdk.errors import DataError, RequestError

from . import families, tasks
from .asking import answerable
from .batches import Batch, read_batches
from .config import TrainConfig
from .data import Data, Pairs, Pictures, ThroughCamera, questions_of, split
from .families import Family
from .hub import is_fetched
from .losses import Guide
from .precision import dtype_of
from .prompt import Geometry
from .task_definition import TaskDefinition
from .team import Team
from .zoo import PREFIX

log = logging.getLogger("tvp.trainer")


@dataclass(frozen=True)
class Prepared:
    """What a run is made of.

    Attributes:
        config: as it was given; its batch is at most the number of training pictures where no question is asked.
        learn_from: `answers`, `pairs`, `unpaired` or `pixels`.
        sources: the frozen models that the prompt is trained on.
        guide: the CLIP model of TSE; None where its weight is 0.
        data: all training data, of which `train` and `validation` are parts without a picture in common.
        like: the same parts of other good pictures, for training and for validation; None where none are read.
        home: the device of the frame and the guide. Of models that are spread over devices, where the first starts.
        offload: source models wait on the CPU until it is their turn.
    """

    config: TrainConfig
    learn_from: str
    task: TaskDefinition
    sources: Sequence[Family]
    guide: Guide | None
    data: Data
    train: Data
    validation: Data
    like: tuple[Data, Data] | None
    home: torch.device
    offload: bool

    @property
    def geometry(self) -> Geometry:
        fit = self.task.fit if self.config.fit == "task" else self.config.fit
        config = self.config
        if not config.frame:
            return Geometry(config.canvas, config.canvas, fit)
        return Geometry(config.canvas, config.inner, fit, config.placement)

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
) -> Prepared:
    """Load the models and open the data; the arguments are those of `train`."""
    task = tasks.through(tasks.get(config.task), config.camera)
    device = str(team.device or device)
    if offload:
        families.moved(torch.empty(0), device)  # a wrong device is told before models are loaded
    if sources is None:
        dtype, place = dtype_of(config.precision, device), "cpu" if offload else device
        sources = [families.load(name, place, dtype, config.canvas, is_fetched(name, typed)) for name in config.models]
    home = torch.device(device) if device != "auto" else sources[0].device
    guide = _load_guide(config, home, is_fetched(config.guide, typed))
    if data is None:
        data = _open_data(config, task, team, skip_bad, download, allow_outside)
    learn_from = _signal(config, data)
    if learn_from == "answers":
        data = answerable(data, _in_turn(config.models, sources, home, offload), config.canvas, task.free, skip_bad)
    n_validation = min(config.n_validation, len(data) // 5)
    train, validation = split(data, n_validation, config.seed)
    like = None
    if learn_from == "unpaired":
        good = like_data if like_data is not None else _open_like(config, task, skip_bad, allow_outside)
        like = split(good, min(n_validation, len(good) // 5), config.seed)
    if learn_from != "answers":  # a few pictures are enough
        config = replace(config, batch=min(config.batch, len(train), *([len(like[0])] if like else [])))
    if len(train) < config.batch:
        raise DataError(f"{len(train)} training pictures do not fill a batch of {config.batch}; take a smaller one.")
    if config.batch < team.size:
        raise RequestError(f"A batch of {config.batch} pictures cannot be shared by {team.size} processes.")
    if compile and config.depths != 1:
        raise RequestError(
            "A compiled vision encoder does not show its layers. Leave --compile out, or use --depths 1."
        )
    if compile:
        for source in sources:
            source.compile()
        if guide:
            guide.compile()
    return Prepared(config, learn_from, task, sources, guide, data, train, validation, like, home, offload)


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


def _signal(config: TrainConfig, data: Data) -> str:
    """Return what a run learns from: what its configuration says, or the first for which there is data.

    Raises:
        DataError: the data does not have what the run is to learn from.
    """
    sample = data[0]
    found: str = config.learn_from
    if found == "auto":
        found = "pairs" if sample.clean is not None else "unpaired" if config.like else "answers"
    compares = found in ("pairs", "pixels") or (config.reference == "clean" and config.fca > 0 and found == "answers")
    if compares and sample.clean is None:
        raise DataError(
            "There are no clean pictures to learn from. Give pairs of spoilt and clean pictures (--pairs), a camera "
            "that spoils clean ones (--camera), or other good pictures (--like)."
        )
    if found == "answers" and not questions_of(data, 0):
        raise DataError(
            "There are neither answers nor good pictures to learn from. Give other good pictures (--like), pairs "
            "(--pairs), or data with questions and answers (--data)."
        )
    return found


def _open_like(config: TrainConfig, task: TaskDefinition, skip_bad: bool, allow_outside: bool) -> Data:
    if Path(config.like).is_dir():
        return Pictures(Path(config.like), [] if skip_bad else None, allow_outside=allow_outside)
    clean = replace(task, camera=None)
    # Another seed: drawn pictures must be other ones than the device's.
    return tasks.open_usable(config.like, clean, "train", config.n_train, config.seed + 1, skip_bad)


def _open_data(
    config: TrainConfig, task: TaskDefinition, team: Team, skip_bad: bool, download: bool, allow_outside: bool
) -> Data:
    bad: list[str] | None = [] if skip_bad else None
    if config.pairs:
        spoilt, clean = map(Path, config.pairs)
        return Pairs(spoilt, clean, bad, allow_outside=allow_outside)
    if config.pictures:
        pictures = Pictures(Path(config.pictures), bad, allow_outside=allow_outside)
        # A task's own camera is that of its own pictures; these come from a device, unless a camera is named.
        return ThroughCamera(pictures, task.camera, config.seed) if config.camera and task.camera else pictures
    n = config.n_train + min(config.n_validation, config.n_train // 4)
    if download and not team.leads:
        team.wait()  # the leading process downloads
    data = tasks.open_usable(config.data, task, "train", n, config.seed, skip_bad, download, allow_outside)
    if download and team.leads:
        team.wait()
    return data
