"""The model families. The `model_type` of a checkpoint's config.json chooses one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import torch

from tvp.sdk.errors import ModelError, RequestError, TvpError, near

from ..zoo import locate
from ._checkpoint import CANVAS, Checkpoint, input_side_of
from .family import Family, GenerativeFamily
from .pixels import PixelFormat

__all__ = [
    "FAMILIES",
    "Family",
    "GenerativeFamily",
    "PixelFormat",
    "digest",
    "input_side",
    "load",
    "locate",
    "moved",
    "refuse_unknown",
]

# model_type -> the file of its family; its `make(checkpoint)` loads the model.
FAMILIES = {
    "blip-2": "blip2",
    "bliva": "instructblip",
    "clip": "clip",
    "idefics3": "smolvlm",
    "instructblip": "instructblip",
    "internvl": "internvl",
    "llava": "llava",
    "llava_next": "llava",
    "llava_onevision": "llava",
    "minigpt4": "blip2",
    "paligemma": "paligemma",
    "qwen2_5_vl": "qwen2_vl",
    "qwen2_vl": "qwen2_vl",
    "siglip": "clip",
    "smolvlm": "smolvlm",
    "visualglm": "visualglm",
    "vpgtrans": "blip2",
}
T = TypeVar("T")
log = logging.getLogger("tvp.trainer")
OPEN_CLIP = "open_clip:"


def load(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    canvas: int | None = None,
    fetch: bool = True,
    vision_alone: bool = False,
) -> Family:
    """Load a frozen model with its tokenizer and its pixel format.

    Args:
        name: a folder that `from_pretrained` reads, a hub id, or `zoo:NAME` for a tiny model of the repository; for
            CLIP also `open_clip:NAME@TAG` or a folder of open_clip.
        device: where it runs. `auto` spreads a model that is too large for one device over all of them
            (transformers' device map). Default `cpu`.
        dtype: of the weights. Default float32.
        canvas: for models that see pictures of any size (Qwen2-VL): the size that they are shown, px, unless their
            config.json has a `tvp_canvas`. Default 224.
        fetch: whether a hub may be asked for the model. Otherwise it is a folder, or in the hub's cache. Default True.
        vision_alone: leave the language model on the disk; the model then sees and cannot be asked. Models of
            open_clip, and weights that are not safetensors, are loaded whole. Default False.

    Raises:
        ModelError: no family covers the architecture, or the checkpoint is incomplete.
        RequestError: the device cannot be used.
    """
    place = locate(name)
    if str(device) != "auto":
        moved(torch.empty(0), device)  # a wrong device is told before weights are read
    family: Family
    if _is_open_clip(place):
        from .clip import make_open_clip

        family = make_open_clip(place, fetch)
        family.model = family.model.to(dtype)
        if str(device) == "auto":  # spreading is transformers' own, and these models are small
            device = "cuda" if torch.cuda.is_available() else "cpu"
    else:
        if vision_alone and str(device) == "auto":  # it fits one device
            device = "cuda" if torch.cuda.is_available() else "cpu"
        spread = "auto" if str(device) == "auto" else None
        checkpoint = Checkpoint(str(name), place, dtype, spread, canvas, fetch, vision_alone)
        module = _known(checkpoint)
        try:
            family = import_module(f".{module}", __package__).make(checkpoint)
        except TvpError:
            raise
        except Exception as error:  # a configuration with values that make no model
            raise ModelError(f"The checkpoint of {str(name)!r} is damaged: {type(error).__name__}: {error}") from error
    if ignored := getattr(family, "ignored_settings", []):
        log.warning(
            "%s sets %s. TVP ignores this: it always answers with the tokens that the model scores highest.",
            name,
            ", ".join(ignored),
        )
    if str(device) != "auto":
        family.model = moved(family.model, device)
    return family


def moved(thing: T, device: str | torch.device) -> T:
    """Move a model or a tensor to a device.

    Raises:
        RequestError: the device cannot be used.
    """
    try:
        return thing.to(device)  # type: ignore[attr-defined, no-any-return]
    except (RuntimeError, AssertionError, ValueError) as error:  # torch's, for an unknown device and for no CUDA
        raise RequestError(f"The device {str(device)!r} cannot be used: {error}") from error


def refuse_unknown(name: str | Path, fetch: bool = True) -> str:
    """Refuse a name or a folder that `load` would refuse before it reads weights; `fetch` is as in `load`.

    Returns:
        The file of the model's family: `clip` for one that only chooses among labels.

    Raises:
        ModelError: there is no such model, or no family covers it.
    """
    place = locate(name)
    if not _is_open_clip(place):
        return _known(Checkpoint(str(name), place, fetch=fetch))
    from .clip import refuse_unknown_open_clip

    refuse_unknown_open_clip(place, fetch)
    return "clip"


def input_side(name: str | Path, fetch: bool = True) -> int:
    """Return the side of the pictures that a model takes, px, from its configuration: weights are not read.

    A model that takes any size (Qwen2-VL) has the size that its files name, and else 224. 224 is the answer too where
    a configuration does not say; `fetch` is as in `load`.

    Raises:
        ModelError: there is no such model, or no family covers it.
    """
    place = locate(name)
    if _is_open_clip(place):
        from .clip import input_side_of_open_clip

        return input_side_of_open_clip(place, fetch) or CANVAS
    checkpoint = Checkpoint(str(name), place, fetch=fetch)
    module = import_module(f".{_known(checkpoint)}", __package__)
    own: Callable[[Checkpoint], int] = getattr(module, "input_side", input_side_of)
    return own(checkpoint) or CANVAS


def _is_open_clip(place: str) -> bool:
    return place.startswith(OPEN_CLIP) or Path(place, "open_clip_config.json").is_file()


def _known(checkpoint: Checkpoint) -> str:
    if checkpoint.kind not in FAMILIES:
        raise ModelError(
            f"The model {checkpoint.name!r} is of the architecture {checkpoint.kind!r}, which no family covers; "
            f"supported are {', '.join(FAMILIES)}.{near(checkpoint.kind, FAMILIES)}"
        )
    return FAMILIES[checkpoint.kind]


def digest(name: str | Path) -> str:
    """Return a sha256 of a local checkpoint's weights; '' for a model that is not a local folder."""
    folder = Path(locate(name))
    total = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for file in files:
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest() if files else ""
