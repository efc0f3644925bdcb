"""What a run learns from: its data, and the signal that the data has."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tvp.sdk.errors import DataError, RequestError

from . import tasks
from .config import TrainConfig
from .data import Data, Pairs, Pictures, ThroughCamera, has_pictures, questions_of, readable
from .task_definition import TaskDefinition
from .team import Team

log = logging.getLogger("tvp.trainer")

FEWEST = 8  # pairs, or pictures of either kind, that a lens is learned from
SIGNALS = {
    "answers": "answers to questions",
    "pairs": "the features of clean pictures, without questions and answers",
    "unpaired": "the features of other good pictures, without pairs, questions and answers",
    "pixels": "the pixels of clean pictures, without a model",
}


def signal_of(config: TrainConfig, data: Data) -> tuple[str, str]:
    """Return what a run learns from, a key of SIGNALS, and why.

    Raises:
        DataError: the data does not have what the run is to learn from.
    """
    has_clean, asks = data[0].clean is not None, bool(questions_of(data, 0))
    found, why = str(config.learn_from), "as the settings say"
    if found == "auto" and config.like:
        found, why = "unpaired", "there are other good pictures"
    elif found == "auto" and has_clean:
        found, why = "pairs", "each picture has a clean one"
    elif found == "auto":
        found, why = "answers", "there are no good pictures"
    if found in ("pairs", "pixels") and not has_clean:
        raise DataError(
            f"There are no clean pictures, and learning from {found} needs one of each picture. Give pairs of spoilt "
            "and clean pictures (--pairs), a camera that spoils clean ones (--camera), or other good pictures (--like)."
        )
    if found == "answers" and not asks:
        good = (
            "Learn from the clean pictures instead (--method lens)."
            if has_clean
            else ("Give other good pictures (--like), pairs (--pairs), or data with questions and answers (--data).")
        )
        raise DataError(f"The data has no questions and answers to learn from. {good}")
    return found, why


def open_data(
    config: TrainConfig,
    task: TaskDefinition,
    team: Team,
    skip_bad: bool = False,
    download: bool = False,
    allow_outside: bool = False,
) -> Data:
    """Open the data that a configuration names; the other arguments are those of `train`."""
    if config.pairs:
        spoilt, clean = map(Path, config.pairs)
        bad: list[str] = []
        pairs = Pairs(spoilt, clean, bad if skip_bad else None, allow_outside=allow_outside)
        if pairs.alone:
            log.warning("%d pictures are in one folder only: %s", len(pairs.alone), _some(pairs.alone))
        return _usable(pairs, bad, skip_bad)
    if config.pictures:
        pictures = _pictures(config.pictures, skip_bad, allow_outside)
        # The task's own camera is of its own data; what a device took is spoilt already.
        spoils = config.camera and task.camera
        return ThroughCamera(pictures, task.camera, config.seed) if spoils and task.camera else pictures
    n = config.n_train + min(config.n_validation, config.n_train // 4)
    if download and not team.leads:
        team.wait()  # the leading process downloads
    data = tasks.open_usable(config.data, task, "train", n, config.seed, skip_bad, download, allow_outside)
    if download and team.leads:
        team.wait()
    return data


def open_like(config: TrainConfig, task: TaskDefinition, skip_bad: bool = False, allow_outside: bool = False) -> Data:
    """Open the good pictures that a configuration names in `like`.

    Raises:
        RequestError: it names none.
    """
    if not config.like:
        raise RequestError("Learning without pairs needs good pictures of other content. Name them with --like.")
    folder = Path(config.like)
    if folder.is_dir() and has_pictures(folder):
        return _pictures(config.like, skip_bad, allow_outside)
    drawn = config.like == "scenes" and task.source != "scenes"
    clean = replace(tasks.get("scenes") if drawn else task, camera=None)
    # Another seed: drawn pictures must be other ones than the device's.
    return tasks.open_usable(
        config.like, clean, "train", config.n_train, config.seed + 1, skip_bad, allow_outside=allow_outside
    )


def refuse_few(data: Data, what: str) -> None:
    """Refuse fewer pictures than a lens is learned from.

    Raises:
        DataError: there are fewer than eight.
    """
    if len(data) < FEWEST:
        raise DataError(f"There are {len(data)} {what}; a lens needs at least {FEWEST}. Give more.")


def _pictures(folder: str, skip_bad: bool, allow_outside: bool) -> Data:
    bad: list[str] = []
    return _usable(Pictures(Path(folder), bad if skip_bad else None, allow_outside=allow_outside), bad, skip_bad)


def _usable(data: Data, bad: list[str], skip_bad: bool) -> Data:
    if skip_bad:
        data = readable(data, bad)
    if bad:
        log.warning("left %d bad pictures out:\n  %s", len(bad), "\n  ".join(bad))
    return data


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
