"""A model's folder or hub id, and what can be read from it; every failure is a ModelError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from tvp.sdk.errors import ModelError

from ._pixels import PILLOW, PixelFormat

T = TypeVar("T")


class Checkpoint:
    """What a family reads a model from.

    name: as the user gave it, for messages; place: the folder or hub id.
    kind: what chooses the family: `tvp_family` of config.json, where `tvp convert` wrote it, else
        `model_type`.
    """

    def __init__(self, name: str, place: str) -> None:
        self.name, self.place = name, place
        try:
            self.config, _ = PretrainedConfig.get_config_dict(place)
            self.kind = str(self.config.get("tvp_family") or self.config["model_type"])
        except Exception as error:  # the hub, json and transformers each raise their own
            raise ModelError(f"There is no model {name!r} with a readable config.json: {error}") from error

    def weights(self, architecture: Any) -> Any:
        """Load the weights in float32 into a class with `from_pretrained`."""
        model, report = self._read(
            lambda: architecture.from_pretrained(self.place, dtype=torch.float32, output_loading_info=True)
        )
        if report["missing_keys"]:
            raise ModelError(
                f"The checkpoint of {self.name!r} lacks {len(report['missing_keys'])} weights: "
                f"{', '.join(sorted(report['missing_keys'])[:8])} … Download it again."
            )
        return model

    def tokenizer(self, folder: str = "") -> PreTrainedTokenizerBase:
        """Load the tokenizer, or the one in a folder inside the checkpoint."""
        return self._read(lambda: AutoTokenizer.from_pretrained(self.place, subfolder=folder))

    def pixel_format(self, size: int) -> PixelFormat:
        """Read mean and standard deviation of the image processor, and its filter."""
        processor = self._read(lambda: AutoImageProcessor.from_pretrained(self.place, use_fast=False))
        mean, std = processor.image_mean, processor.image_std
        if len(mean) != 3 or len(std) != 3:
            raise ModelError(f"The image processor has {len(mean)} channels; TVP prompts have three (RGB).")
        resample = int(getattr(processor, "resample", None) or 3)
        if resample not in PILLOW:
            raise ModelError(
                f"The image processor resizes with Pillow's filter {resample}; TVP knows {', '.join(PILLOW.values())}."
            )
        return PixelFormat(size, tuple(mean), tuple(std), PILLOW[resample])

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """The checkpoint's own chat template, which processors keep beside the tokenizer's."""
        try:
            settings, _ = ProcessorMixin.get_processor_dict(self.place)
        except OSError:  # no processor settings at all
            settings = {}
        return settings.get("chat_template") or getattr(tokenizer, "chat_template", None)

    def _read(self, load: Callable[[], T]) -> T:
        try:
            return load()
        except Exception as error:  # safetensors, tokenizers and the hub each raise their own
            raise ModelError(f"The checkpoint of {self.name!r} is incomplete or damaged: {error}") from error
