"""What a run needs before its first step: source models, guide and data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tvp.sdk.errors import DataError, RequestError

from . import families, tasks
from .asking import answerable
from .config import TrainConfig
from .data import Data, split
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
        sources: the frozen models that the prompt is trained on.
        guide: the CLIP model of TSE; None where its weight is 0.
        data: all training data, of which `train` and `validation` are parts without a picture in common.
        home: the device of the frame and the guide. Of models that are spread over devices, where the first starts.
        offload: source models wait on the CPU until it is their turn.
    """

    config: TrainConfig
    task: TaskDefinition
    sources: Sequence[Family]
    guide: Guide | None
    data: Data
    train: Data
    validation: Data
    home: torch.device
    offload: bool

    @property
    def geometry(self) -> Geometry:
        fit = self.task.fit if self.config.fit == "task" else self.config.fit
        return Geometry(self.config.canvas, self.config.inner, fit, self.config.placement)

    @property
    def n_batches(self) -> int:
        """Batches in one epoch; what does not fill a batch is left out."""
        return len(self.train) // self.config.batch

    @property
    def n_steps(self) -> int:
        return self.config.steps or self.n_batches * self.config.epochs

    def identity(self) -> dict[str, Any]:
        """What the run is made of, by content: a name alone may stand for other weights or rows tomorrow."""
        config = self.config
        total = hashlib.sha256()
        for i in range(0, len(self.data), max(1, len(self.data) // 16)):  # some samples; large data is read only once
            sample = self.data[i]
            total.update(repr((i, sample.picture.shape, sample.questions, sample.caption)).encode())
            total.update(sample.picture.tobytes())
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
    data = answerable(data, _in_turn(config.models, sources, home, offload), config.canvas, task.free, skip_bad)
    train, validation = split(data, min(config.n_validation, len(data) // 5), config.seed)
    if len(train) < config.batch:
        raise DataError(f"{len(train)} training pictures do not fill a batch of {config.batch}; take a smaller one.")
    if config.batch < team.size:
        raise RequestError(f"A batch of {config.batch} pictures cannot be shared by {team.size} processes.")
    if compile:
        for source in sources:
            source.compile()
        if guide:
            guide.compile()
    return Prepared(config, task, sources, guide, data, train, validation, home, offload)


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


def _open_data(
    config: TrainConfig, task: TaskDefinition, team: Team, skip_bad: bool, download: bool, allow_outside: bool
) -> Data:
    n = config.n_train + min(config.n_validation, config.n_train // 4)
    if download and not team.leads:
        team.wait()  # the leading process downloads
    data = tasks.open_usable(config.data, task, "train", n, config.seed, skip_bad, download, allow_outside)
    if download and team.leads:
        team.wait()
    return data
