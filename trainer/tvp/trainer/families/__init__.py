"""The model families and how one is chosen: by the `model_type` of a checkpoint's config.json."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    LlavaForConditionalGeneration,
)

from tvp.sdk.errors import ModelError, near

from ._family import CausalFamily, Layout, PixelFormat, pixel_format_of
from .blip2 import Blip2
from .llava import Llava

__all__ = ["FAMILIES", "CausalFamily", "Layout", "PixelFormat", "load", "locate"]

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
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ModelError(f"No readable config.json for the model {str(name)!r}: {error}") from error
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"The model {str(name)!r} is of the architecture {config.model_type!r}, which no family covers; "
            f"supported are {', '.join(sorted(FAMILIES))}.{near(config.model_type, FAMILIES)}"
        )
    family, weights = FAMILIES[config.model_type]
    try:
        model, report = weights.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
        image_processor = AutoImageProcessor.from_pretrained(place, use_fast=False)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"The checkpoint of {str(name)!r} is incomplete or unreadable: {error}") from error
    if report["missing_keys"]:
        raise ModelError(
            f"The checkpoint of {str(name)!r} lacks {len(report['missing_keys'])} weights: "
            f"{', '.join(sorted(report['missing_keys'])[:8])} … Download it again."
        )
    size = config.vision_config.image_size
    return family(model.to(device), tokenizer, pixel_format_of(image_processor, size))


def locate(name: str | Path) -> str:
    """Turn `zoo:NAME` into a folder; leave any other name as it is."""
    text = str(name)
    if not text.startswith("zoo:"):
        return text
    known = sorted(p.parent.name for p in ZOO.glob("*/config.json"))
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
