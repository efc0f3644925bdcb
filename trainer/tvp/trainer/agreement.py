"""How often a model answers standard questions about spoilt pictures as it does about the clean ones.

A lens is learned without an answer, so nothing says how many answers it puts right. This says how many it changes back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tvp.sdk.errors import ModelError, RequestError

from . import families
from .data import Data, Question, Sample, Subset
from .evaluate import ask
from .families import Family, GenerativeFamily
from .hub import is_fetched
from .metrics import Gain, gain
from .precision import dtype_of
from .preparation import Prepared
from .progress import working
from .prompt import Prompt
from .team import Team
from .validation import rows_of
from .zoo import locate

log = logging.getLogger("tvp.trainer")

QUESTIONS = ("What is in the photo?", "How many objects are there?", "What colour is it?")
MOST_PICTURES, FEWER_PICTURES = 64, 16
LARGE = 100_000_000  # parameters; such a model takes seconds for an answer on a CPU, and is asked about fewer pictures
MOST_OF_MEMORY = 0.5  # of what is free, that a model may take which is loaded for this


@dataclass(frozen=True)
class Agreement:
    """How often answers about held-out pictures are those about the clean pictures.

    Attributes:
        model: its name.
        n: number of answers.
        without, behind: share that agrees without the lens and behind it, in [0, 1].
        gain: of the lens, with a 95 % interval.
    """

    model: str
    n: int
    without: float
    behind: float
    gain: Gain

    def __str__(self) -> str:
        return (
            f"asked {len(QUESTIONS)} standard questions about held-out pictures, {self.model} answers as about the "
            f"clean ones in {self.without:.1%} of {self.n} without the lens, and in {self.behind:.1%} behind it "
            f"({self.gain}); that is not how many answers are right"
        )


def measure(prompt: Prompt, prepared: Prepared, team: Team, typed: Collection[str] | None = None) -> Agreement | None:
    """Ask the first source model about held-out pictures: clean, spoilt, and behind the lens.

    A language model that training left on the disk is loaded where it takes half of the free memory at most.

    Args:
        prompt: what was learned.
        prepared: the run.
        team: the processes that train together; the leading one asks.
        typed: names of models that may be fetched, see `train`.

    Returns:
        None where there are no clean pictures, or no model that writes answers.
    """
    if not team.leads or prepared.learn_from not in ("pairs", "pixels"):
        return None
    name = prepared.config.models[0]
    family = whole_source(prepared, typed)
    if family is None:
        return None
    some = a_few(prepared.validation, family)
    rows = rows_of(prepared.config)

    def answers(data: Data, shown: Prompt | None) -> list[str]:
        return ask(family, data, prepared.geometry, shown, None, rows).answers

    try:
        clean, spoilt = answers(Asking(some, True), None), answers(Asking(some, False), None)
        behind = answers(Asking(some, False), prompt)
    except RequestError as error:  # a question is too long for it, or holds a token of its own
        log.warning("%s could not be asked standard questions: %s", name, error)
        return None
    before, after = (np.array(found) == np.array(clean) for found in (spoilt, behind))
    pictures = [i // len(QUESTIONS) for i in range(len(clean))]
    return Agreement(name, len(clean), float(before.mean()), float(after.mean()), gain(before, after, pictures))


class Asking:
    """Another data set with standard questions, about its clean pictures or about the others."""

    def __init__(self, data: Data, clean: bool) -> None:
        self._data, self._clean = data, clean

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Sample:
        sample = self._data[index]
        picture = sample.clean if self._clean and sample.clean is not None else sample.picture
        return replace(sample, picture=picture, questions=tuple(Question(text, "") for text in QUESTIONS))


def a_few(data: Data, family: Family) -> Data:
    """Return the first pictures of data, as many as a model can be asked about in a short time."""
    n_parameters = sum(value.numel() for value in family.model.parameters())
    return Subset(data, range(min(MOST_PICTURES if n_parameters < LARGE else FEWER_PICTURES, len(data))))


def whole_source(prepared: Prepared, typed: Collection[str] | None) -> Family | None:
    """Return the first source model with its language model; None where it has none, or where that is too large.

    Args:
        prepared: the run.
        typed: names of models that may be fetched, see `train`.
    """
    name, source = prepared.config.models[0], prepared.sources[0]
    if not isinstance(source, GenerativeFamily):
        return None
    if not any(value.is_meta for value in source.model.parameters()):
        return source
    folder = Path(locate(name))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not size or size > MOST_OF_MEMORY * free:
        log.info("%s is not asked standard questions: its language model would take much memory", name)
        return None
    config = prepared.config
    try:
        dtype = dtype_of(config.precision, str(prepared.home))
        with working(f"loading {name}"):
            return families.load(name, prepared.home, dtype, config.canvas, is_fetched(name, typed))
    except ModelError as error:
        log.warning("%s is not asked standard questions: %s", name, error)
        return None
