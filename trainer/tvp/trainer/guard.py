"""The guard: a model of another design that says whether a lens helps where it was not learned."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace

from tvp.sdk.errors import ModelError, RequestError

from . import families
from .config import TrainConfig
from .evaluate import accuracy
from .hub import is_fetched
from .precision import dtype_of
from .preparation import Prepared
from .progress import working
from .prompt import Prompt
from .team import Team
from .validation import HeldOut, agreed
from .zoo import ENCODERS, PREFIX, zoo_folder

log = logging.getLogger("tvp.trainer")

NOT_WANTED = "none was asked for"
ROUNDING = 1e-4  # of a distance
CHANCE = 2.0  # standard deviations of the number of changed answers that may be chance


@dataclass(frozen=True)
class Verdict:
    """What a guard says of a lens, on validation pictures.

    Attributes:
        model: its name.
        measured: `distance`, see `validation.HeldOut`, or `accuracy`.
        without, behind: the figure without and behind the lens, in [0, 1].
        kept: whether the lens makes it no worse.
    """

    model: str
    measured: str
    without: float
    behind: float
    kept: bool

    def __str__(self) -> str:
        figure = "answers right" if self.measured == "accuracy" else "distance from good pictures"
        said = f"the guard {self.model}: {figure} {self.without:.1%} without the lens, {self.behind:.1%} behind it"
        return said if self.kept else f"{said}, which is worse"


def name_of(config: TrainConfig) -> tuple[str, str]:
    """Return the name of a run's guard, '' for none, and why there is none."""
    if config.lens == "none":
        return "", "no lens is learned"
    if config.guard_model == "none":
        return "", NOT_WANTED
    if config.guard_model:
        return config.guard_model, ""
    try:
        zoo_folder()
    except ModelError:
        return "", "there is no zoo to take one from; name a model with --guard-model"
    taken = {name.removeprefix(PREFIX) for name in config.models if name.startswith(PREFIX)}
    free = [names[0] for names in ENCODERS.values() if not taken & set(names)]  # the first is the encoder's guard
    return (PREFIX + free[0], "") if free else ("", "every encoder of the zoo takes part; name another --guard-model")


def refuse_unknown(config: TrainConfig, typed: Collection[str] | None = None) -> None:
    """Refuse a guard that there is not, before a run that it judges at the end; `typed` is as in `train`.

    Raises:
        ModelError: there is no such model, or no family covers it.
    """
    name = name_of(config)[0]
    if config.guard_model and name:
        families.refuse_unknown(name, is_fetched(name, typed))


def judge(prompt: Prompt, prepared: Prepared, team: Team, typed: Collection[str] | None = None) -> Verdict | None:
    """Return what the run's guard says of a prompt's lens; None without a guard.

    The leading process asks, and the others learn what it found. A guard that cannot read the questions says nothing.

    Args:
        prompt: what was learned. Its lens is judged alone, since a frame says what one task needs.
        prepared: the run.
        team: the processes that train together.
        typed: names of models that may be fetched, see `train`.
    """
    config = prepared.config
    name, why = name_of(config)
    if not name:
        if config.lens != "none":
            log.info("no guard judges the lens: %s", why)
        return None
    asks = prepared.learn_from == "answers"
    found = (0.0, 0.0, 0.0)
    if team.leads:
        try:
            with working(f"asking the guard {name}"):
                found = _measure(name, replace(prompt, frame=None), prepared, asks, is_fetched(name, typed))
        except RequestError as error:
            log.warning("the guard %s could not be asked, so no guard judges the lens: %s", name, error)
            found = (float("nan"),) * 3
    without, behind, worse = (agreed(value, prepared, team) for value in found)
    if worse != worse:
        return None
    return Verdict(name, "accuracy" if asks else "distance", without, behind, worse <= 0)


def _measure(name: str, lens: Prompt, prepared: Prepared, asks: bool, fetch: bool) -> tuple[float, float, float]:
    """Return the figure without the lens and behind it, and a number above zero where that is worse."""
    config = prepared.config
    dtype = dtype_of(config.precision, str(prepared.home))
    family = families.load(name, prepared.home, dtype, config.canvas, fetch, vision_alone=not asks)
    if not asks:
        held_out = HeldOut(family, prepared)
        bare, behind = (held_out.distance(shown) for shown in (None, lens))
        return bare, behind, behind - bare - ROUNDING
    results = [
        accuracy(family, prepared.validation, prepared.geometry, shown, prepared.task, config.batch)
        for shown in (None, lens)
    ]
    lost = int((results[0].right & ~results[1].right).sum())
    won = int((results[1].right & ~results[0].right).sum())
    return results[0].accuracy, results[1].accuracy, lost - won - CHANCE * (lost + won) ** 0.5
