"""The model families and how one is chosen: by the `model_type` of a checkpoint's config.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    LlavaForConditionalGeneration,
    PretrainedConfig,
)

from tvp.sdk.errors import ModelError, RequestError, near

from ._family import CausalFamily, PixelFormat, pixel_format_of
from .blip2 import Blip2
from .llava import Llava

__all__ = ["FAMILIES", "CausalFamily", "PixelFormat", "load", "locate"]

# model_type -> (family, the transformers class that holds its weights)
FAMILIES: dict[str, tuple[type[CausalFamily], Any]] = {
    "llava": (Llava, LlavaForConditionalGeneration),
    "blip-2": (Blip2, Blip2ForConditionalGeneration),
}
ZOO = Path(__file__).resolve().parents[4] / "samples" / "zoo"


def load(name: str | Path, device: str | torch.device = "cpu") -> CausalFamily:
    """Load a frozen model in float32 with everything around it.

    name: a folder in the layout of `from_pretrained`, a hub id, or `zoo:NAME` for one of the
        repository's tiny models.
    Raises ModelError for an architecture without a family and for an incomplete checkpoint.
    """
    place = locate(name)
    architecture = _architecture(place)
    if architecture not in FAMILIES:
        raise ModelError(
            f"The model {str(name)!r} is of the architecture {architecture!r}, which no family covers; "
            f"supported are {', '.join(sorted(FAMILIES))}.{near(architecture, FAMILIES)}"
        )
    family, weights = FAMILIES[architecture]
    try:
        model, report = weights.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
        image_processor = AutoImageProcessor.from_pretrained(place, use_fast=False)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # safetensors, tokenizers and the hub each raise their own
        raise ModelError(f"The checkpoint of {str(name)!r} is incomplete or damaged: {error}") from error
    if report["missing_keys"]:
        raise ModelError(
            f"The checkpoint of {str(name)!r} lacks {len(report['missing_keys'])} weights: "
            f"{', '.join(sorted(report['missing_keys'])[:8])} … Download it again."
        )
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch's, for an unknown device and for no CUDA
        raise RequestError(f"The device {str(device)!r} cannot be used: {error}") from error
    size = model.config.vision_config.image_size
    return family(model, tokenizer, pixel_format_of(image_processor, size))


def _architecture(place: str) -> str:
    """The `model_type` of a checkpoint, whether transformers knows it or not."""
    try:
        about, _ = PretrainedConfig.get_config_dict(place)
        return str(about["model_type"])
    except Exception as error:  # as above
        raise ModelError(f"There is no model {place!r} with a readable config.json: {error}") from error


def locate(name: str | Path) -> str:
    """Turn `zoo:NAME` into a folder; leave any other name as it is."""
    text = str(name)
    if not text.startswith("zoo:"):
        return text
    known = sorted({p.parent.name for name in ("config.json", "open_clip_config.json") for p in ZOO.glob(f"*/{name}")})
    if text[4:] not in known:
        raise ModelError(f"There is no {text!r}; the zoo has {', '.join(known) or 'no models'}.{near(text[4:], known)}")
    return str(ZOO / text[4:])


def digest(name: str | Path) -> str:
    """A sha256 that names a local checkpoint by its weights; '' for a model that is not a local folder."""
    folder = Path(locate(name))
    total = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest() if files else ""
