"""Reading a checkpoint from its folder; every failure is a ModelError."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

from tvp.sdk.errors import BundleError, ModelError
from tvp.sdk.formats.tokenizer_parts import refuse_unusual

from .. import hub
from ._gate import (
    CONFIG,
    SETTINGS_OF_TOKENS,
    check_parts,
    check_texts,
    check_weights,
    read_json,
    refuse_missing_tokens,
)
from ._translate import chat_template, config_of, is_generic, pixel_format, processor_of, side_of, tokenizer_options
from ._vision_alone import load_vision
from .pixels import PixelFormat

log = logging.getLogger("tvp.trainer")

T = TypeVar("T")
# What every loader of transformers is told: to run no code of a checkpoint, and to ask no hub.
SAFE = {"trust_remote_code": False, "local_files_only": True}


CANVAS = 224  # px; of pictures for a model whose files name no size


class Checkpoint:
    """The files that a family loads a model from.

    Its texts are looked at before anything is loaded (see `_gate`), its weights before they are.

    Args:
        name: as the user gave it, for messages.
        place: the folder or hub id.
        dtype: of the weights. Default float32.
        device_map: transformers' own, for a model that is spread over devices. Default: none.
        canvas: side of the canvas, px, for models that see pictures of any size. Default: the family's.
        fetch: whether a hub may be asked. Default True.
        vision_alone: leave the language model on the disk, see `_vision_alone`. Default False.

    Attributes:
        folder: with its files.
        config: config.json as a dictionary.
        kind: the name that chooses the family: `tvp_family` of config.json, which `tvp convert` writes, else
            `model_type`.

    Raises:
        ModelError: there is no readable config.json, or a file of the folder is refused.
    """

    def __init__(
        self,
        name: str,
        place: str,
        dtype: torch.dtype = torch.float32,
        device_map: str | None = None,
        canvas: int | None = None,
        fetch: bool = True,
        vision_alone: bool = False,
    ) -> None:
        self.name, self.place, self.dtype, self._device_map = name, place, dtype, device_map
        self.canvas, self._fetch, self._vision_alone = canvas, fetch, vision_alone
        self.folder = hub.texts_of(name, place, fetch)
        check_texts(self.folder, name)
        if not (self.folder / CONFIG).is_file():
            raise ModelError(f"There is no model {name!r} with a readable config.json: its folder has none.")
        self.config = config_of(read_json(self.folder / CONFIG, name), f"config.json of {name!r}")
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
        hub.add_weights(self.name, self.place, self.folder, self._fetch)
        check_weights(self.folder, self.name)
        check_parts(self.config, f"config.json of {self.name!r}")
        config, dtype = architecture.config_class.from_dict(self.config), dtype or self.dtype
        if self._vision_alone:
            found = self._read(lambda: load_vision(architecture, config, self.folder, dtype, SAFE))
            if found:
                self._refuse_unread(found[1])
                return found[0]
            log.info("%s is loaded whole: its vision part cannot be read alone", self.name)
        model, report = self._read(
            lambda: architecture.from_pretrained(
                self.folder,
                config=config,
                dtype=dtype,
                device_map=self._device_map,
                output_loading_info=True,
                **SAFE,
            )
        )
        missing = set(report["missing_keys"])
        if self._device_map is None:  # an index may name a tensor that its shard lacks
            missing |= {name for name, value in model.named_parameters() if value.is_meta}
        if missing:
            raise ModelError(
                f"The checkpoint of {self.name!r} lacks {len(missing)} weights: "
                f"{', '.join(sorted(missing)[:8])} … Download it again."
            )
        self._refuse_unread(report["unexpected_keys"])
        self._refuse_other_head(model)
        return model

    def tokenizer(self, folder: str = "") -> PreTrainedTokenizerBase:
        """Load the tokenizer; of a folder inside the checkpoint, if one is named."""
        place = self.folder / folder
        if folder and not place.is_dir():
            raise ModelError(f"{self.name!r} is incomplete: it has no folder {folder}, with a tokenizer of its own.")
        if folder:
            check_texts(place, f"{self.name}/{folder}", SETTINGS_OF_TOKENS)
        return read_tokenizer(place, f"{self.name}/{folder}" if folder else self.name)

    def pixel_format(self, size: int | Sequence[int]) -> PixelFormat:
        """Read what the image processor does with the values of a picture.

        Args:
            size: side of the square that the vision encoder takes, px; or both of its sides.
        """
        side = side_of(size, self.name)
        # Without the file, transformers would silently use the defaults of the class, which are another model's.
        said = processor_of(self.folder, self.name)
        older = str(said.get("feature_extractor_type") or "").replace("FeatureExtractor", "ImageProcessor")
        kind = str(said.get("image_processor_type") or older)
        slow = get_image_processor_class_from_name(kind.removesuffix("Fast").removesuffix("Pil")) if kind else None
        if slow is not None and not issubclass(slow, BaseImageProcessor):
            raise ModelError(f"The image processor of {self.name!r} is a {kind}, which is none of transformers.")
        if slow is None:
            processor = self._read(lambda: AutoImageProcessor.from_pretrained(self.folder, use_fast=False, **SAFE))
        else:
            processor = self._read(lambda: slow.from_dict(said))
        return pixel_format(side, said, processor, self.name)

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the checkpoint's own chat template: the processor's, else the tokenizer's."""
        found = chat_template(self.folder, self.name) or getattr(tokenizer, "chat_template", None)
        found = found.get("default") if isinstance(found, dict) else found
        if found is not None and not isinstance(found, str):
            raise ModelError(f"The chat template of {self.name!r} is no text. Set tvp_prompt in its config.json.")
        return found

    def _refuse_unread(self, names: Collection[str]) -> None:
        """Refuse weights of an adapter, which no module takes; tell about others."""
        if adapters := [name for name in names if re.search(r"lora_|adapter", name)]:
            raise ModelError(
                f"The checkpoint of {self.name!r} holds {len(adapters)} weights of an adapter ({adapters[0]}), which "
                "TVP does not load. Merge it into the model first: merge_and_unload() of peft."
            )
        if names:
            shown = ", ".join(sorted(names)[:8])
            log.warning("%s holds %d weights that the model has no place for: %s", self.name, len(names), shown)

    def _refuse_other_head(self, model: Any) -> None:
        """Refuse a head of its own that the configuration ties to the embeddings: transformers drops it."""
        head = model.get_output_embeddings()
        if head is None or head.weight is not model.get_input_embeddings().weight:
            return
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  it is no dictionary
                    if name.endswith("lm_head.weight") and not torch.equal(
                        tensors.get_tensor(name).to(head.weight), head.weight
                    ):
                        raise ModelError(
                            f"The checkpoint of {self.name!r} has a head of its own ({name}), which its config.json "
                            "ties to the embeddings (tie_word_embeddings). Set that to false."
                        )

    def _read(self, load: Callable[[], T]) -> T:
        return reading(self.name, load)


def input_side_of(checkpoint: Checkpoint) -> int:
    """Return the side of the pictures that a vision encoder takes, px, as config.json has it; 0 where it does not."""
    check_parts(checkpoint.config, f"config.json of {checkpoint.name!r}")
    vision = checkpoint.config.get("vision_config")
    said = vision.get("image_size") if isinstance(vision, dict) else None
    kind = checkpoint.config.get("model_type")
    if said is None and kind in CONFIG_MAPPING:  # the default of its class
        whole = reading(checkpoint.name, lambda: CONFIG_MAPPING[kind].from_dict(checkpoint.config))
        said = getattr(getattr(whole, "vision_config", None), "image_size", None)
    return side_of(said, checkpoint.name) if said else 0


def read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder that `check_texts` has seen.

    Raises:
        ModelError: there is none that transformers reads without code from a hub.
    """
    refuse_missing_tokens(folder, name)
    if (folder / "tokenizer.json").is_file():
        try:
            refuse_unusual(folder / "tokenizer.json")
        except BundleError as error:
            raise ModelError(str(error)) from error
    options = tokenizer_options(folder, name) | SAFE
    kind = PreTrainedTokenizerFast if is_generic(folder, name) else AutoTokenizer
    return reading(name, lambda: kind.from_pretrained(folder, **options))


def reading(name: str, load: Callable[[], T]) -> T:
    """Load a part of a checkpoint; every failure is a ModelError."""
    try:
        return load()
    except ImportError as error:
        raise ModelError(f"{name!r} needs a package that is not installed: {error}") from error
    except Exception as error:  # safetensors, tokenizers and transformers each raise their own
        raise ModelError(f"The checkpoint of {name!r} is incomplete or damaged: {error}") from error
