"""What follows from what a user typed, and what is refused because it would do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvp.sdk.errors import RequestError

DEMO = "bad-camera"  # what `tvp train` learns where nothing says what; `make demo` does
OWN = "custom"
_FRAME = "is about a frame, and this run learns none."
_LENS = "is about a lens, and this run learns none. Add --method lens, or leave it out."
_RATE = f"{_FRAME} The lens has --lens-lr and --lens-update."
_PLACE = f"{_FRAME} Leave it out, or add --frame."
# (options, whether they do nothing, why)
_IDLE: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (("lr", "update"), lambda config: not config.frame, _RATE),
    (("inner", "placement", "pixel_range", "rank"), lambda config: not config.frame, _PLACE),
    (("lens_start", "lens_width", "lens_depth", "lens_update", "lens_lr"), lambda c: c.lens == "none", _LENS),
    (("guard_model",), lambda config: config.lens == "none" and config.guard_model != "none", _LENS),
    (
        ("lens_width", "lens_depth"),
        lambda config: config.lens not in ("conv", "auto"),
        "is about a conv lens. Add --lens conv, or leave it out.",
    ),
    (
        ("answer_loss",),
        lambda config: bool(config.pairs or config.pictures) or config.learn_from in ("pairs", "unpaired", "pixels"),
        "is about answers, and this run learns from pictures alone. Leave it out.",
    ),
    (("guide",), lambda config: not config.tse, "is what TSE asks, whose weight is 0 here. Set --tse too."),
)


def task_of(given: Mapping[str, Any]) -> tuple[str, str]:
    """Return the task that a run learns, and why, in a sentence; '' where the task was named.

    Args:
        given: fields of a configuration, as its user set them.
    """
    if given.get("task"):
        return str(given["task"]), ""
    named = [name for name in ("data", "pairs", "pictures") if given.get(name)]
    if not named or given.get("data") == "scenes":
        return DEMO, (
            f"No task was named, so this learns the demo's: {DEMO}, scenes through a bad camera. "
            "Name yours with --task, or your pictures with --data."
        )
    if named == ["data"]:
        return OWN, f"No task was named with --data, so this is a task of your own: {OWN}."
    return OWN, ""  # a lens has no questions that a task could decide


def refuse_idle(given: Mapping[str, Any], config: Any, drawn: bool) -> None:
    """Refuse options that would do nothing.

    Args:
        given: the options that were typed, by field.
        config: the TrainConfig that they make.
        drawn: the data are drawn scenes.

    Raises:
        RequestError: one would do nothing; the message says why.
    """
    for names, is_idle, why in _IDLE:
        for name in names:
            if name in given and is_idle(config):
                raise RequestError(f"--{name.replace('_', '-')} {why}")
    if given.get("steps") and given.get("epochs"):
        raise RequestError("--steps and --epochs both say how long to learn. Give one of them.")
    if "n_train" in given and not drawn:
        raise RequestError(
            "--n-train is the number of scenes to draw, and this data is used whole. Leave it out; to learn from "
            "fewer pictures, give fewer."
        )
