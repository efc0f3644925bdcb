"""Reading a checkpoint from a folder or the hub; every failure is a ModelError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    ImageProcessingMixin,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from tvp.sdk.errors import ModelError

from .pixels import PILLOW, PixelFormat

T = TypeVar("T")


class Checkpoint:
    """The files that a family loads a model from.

    Args:
        name: as the user gave it, for messages.
        place: the folder or hub id.
        dtype: of the weights. Default float32.
        device_map: transformers' own, for a model that is spread over devices. Default: none.
        canvas: side of the canvas, px, for models that see pictures of any size. Default: the family's.

    Attributes:
        config: config.json as a dictionary.
        kind: the name that chooses the family: `tvp_family` of config.json, which `tvp convert` writes, else
            `model_type`.

    Raises:
        ModelError: there is no readable config.json.
    """

    def __init__(
        self,
        name: str,
        place: str,
        dtype: torch.dtype = torch.float32,
        device_map: str | None = None,
        canvas: int | None = None,
    ) -> None:
        self.name, self.place, self.dtype, self._device_map = name, place, dtype, device_map
        self.canvas = canvas
        try:
            self.config, _ = PretrainedConfig.get_config_dict(place)
        except Exception as error:  # the hub, json and transformers each raise their own
            raise ModelError(f"There is no model {name!r} with a readable config.json: {error}") from error
        kind = self.config.get("tvp_family") or self.config.get("model_type")
        if not isinstance(kind, str):
            raise ModelError(f"The model {name!r} has no readable config.json: it names no model_type.")
        self.kind = kind

    def weights(self, architecture: Any, dtype: torch.dtype | None = None) -> Any:
        """Load the weights.

        Args:
            architecture: the class, which has `from_pretrained`.
            dtype: of the weights. Default: the checkpoint's.
        """
        model, report = self._read(
            lambda: architecture.from_pretrained(
                self.place, dtype=dtype or self.dtype, device_map=self._device_map, output_loading_info=True
            )
        )
        if report["missing_keys"]:
            raise ModelError(
                f"The checkpoint of {self.name!r} lacks {len(report['missing_keys'])} weights: "
                f"{', '.join(sorted(report['missing_keys'])[:8])} … Download it again."
            )
        return model

    def tokenizer(self, folder: str = "") -> PreTrainedTokenizerBase:
        """Load the tokenizer; of a folder inside the checkpoint, if one is named."""
        return self._read(lambda: AutoTokenizer.from_pretrained(self.place, subfolder=folder))

    def pixel_format(self, size: int) -> PixelFormat:
        """Read mean, standard deviation and filter of the image processor.

        Args:
            size: side of the square that the vision encoder takes, px.
        """
        # Without the file, transformers would silently use the defaults of the class, which are another model's.
        said, _ = self._read(lambda: ImageProcessingMixin.get_image_processor_dict(self.place))
        processor = self._read(lambda: AutoImageProcessor.from_pretrained(self.place, use_fast=False))
        mean, std = (said.get(name) for name in ("image_mean", "image_std"))
        if any(not isinstance(v, list | tuple) or len(v) != 3 for v in (mean, std)):
            raise ModelError(
                f"The image processor of {self.name!r} has mean {mean} and deviation {std}. TVP needs three of each."
            )
        resample = getattr(processor, "resample", None)
        resample = 3 if resample is None else int(resample)
        if resample not in PILLOW:
            raise ModelError(
                f"The image processor resizes with Pillow's filter {resample}. TVP knows {', '.join(PILLOW.values())}."
            )
        return PixelFormat(size, tuple(mean or ()), tuple(std or ()), PILLOW[resample])

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the checkpoint's own chat template: the processor's, else the tokenizer's."""
        # A processor without settings has none; but a file that is there must be readable.
        settings, _ = self._read(lambda: ProcessorMixin.get_processor_dict(self.place))
        found = settings.get("chat_template") or getattr(tokenizer, "chat_template", None)
        return found.get("default") if isinstance(found, dict) else found

    def _read(self, load: Callable[[], T]) -> T:
        try:
            return load()
        except ImportError as error:
            raise ModelError(f"{self.name!r} needs a package that is not installed: {error}") from error
        except Exception as error:  # safetensors, tokenizers and the hub each raise their own
            raise ModelError(f"The checkpoint of {self.name!r} is incomplete or damaged: {error}") from error
