"""Write a zoo model's folder: weights in float16, and a processor of the same class as the published model's."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn
from transformers import (
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    InstructBlipProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .models import CANVAS, MERGE, N_QUERIES, N_SIDE, PATCH
from .words import IMAGE, LAYOUTS, make_tokenizer

SQUARE = {"height": CANVAS, "width": CANVAS}


def make_processor(name: str, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    """A published model's processor at the zoo's size."""
    if name == "llava":
        return LlavaProcessor(
            CLIPImageProcessor(size={"shortest_edge": CANVAS}, crop_size=SQUARE),
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="full",
            image_token=IMAGE,
        )
    if name == "smolvlm":
        edge = {"longest_edge": CANVAS}
        # SmolVLM's own are 0.5. All the zoo's vision encoders are taught with CLIP's, which the other processors have.
        colours = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
        return SmolVLMProcessor(
            SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False, **colours),
            tokenizer,
            SmolVLMVideoProcessor(),
            image_seq_len=(N_SIDE // MERGE) ** 2,
        )
    if name == "qwen2vl":
        area = CANVAS**2
        size = {"patch_size": PATCH, "merge_size": MERGE, "min_pixels": area, "max_pixels": area}
        # The processor takes no other class of tokenizer; the tokens are the same as tokenizer.json's.
        own = Qwen2TokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            bos_token=None,
            unk_token=tokenizer.unk_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
            additional_special_tokens=tokenizer.additional_special_tokens,
            padding_side="left",
        )
        return Qwen2VLProcessor(Qwen2VLImageProcessor(**size), own, Qwen2VLVideoProcessor(**size))
    if name == "instructblip":
        reader = make_tokenizer(name)  # for the Q-Former; the published model has BERT's
        return InstructBlipProcessor(BlipImageProcessor(size=SQUARE), tokenizer, reader, num_query_tokens=N_QUERIES)
    return Blip2Processor(BlipImageProcessor(size=SQUARE), tokenizer, num_query_tokens=N_QUERIES)


def save(name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that `from_pretrained` and the published processors read."""
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.half().save_pretrained(folder)
    model.float()
    make_processor(name, tokenizer).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config["dtype"] = "float16"
    if name == "instructblip":
        config["tvp_prompt"] = LAYOUTS[name][1]
    if name == "qwen2vl":
        config["tvp_canvas"] = CANVAS
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
