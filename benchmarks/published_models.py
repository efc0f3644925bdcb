"""Two models in published shapes, with random weights, to measure the sdk at real sizes offline.

One is SmolVLM-256M: SigLIP-B/16 at 512 px, and a Llama of 30 layers. The other is a LLaVA with CLIP-B/16 at 224 px and
the decoder of Qwen2-0.5B. Their tokenizers know bytes and special tokens, whose ids are as large as the published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.stand_in import byte_tokenizer

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def save_smolvlm(folder: Path) -> None:
    """SmolVLM-256M: 93 M parameters in the vision encoder, 163 M in the language model."""
    special = {
        "<|im_start|>": 1,
        "<global-img>": 49152,
        "<fake_token_around_image>": 49189,
        "<image>": 49190,
        "<end_of_utterance>": 49279,
    }
    encoder = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    text |= {"num_key_value_heads": 3, "vocab_size": 49280, "max_position_embeddings": 8192, "rope_theta": 100000.0}
    config = hf.SmolVLMConfig(
        vision_config=encoder | {"image_size": 512, "patch_size": 16},
        text_config=text | {"model_type": "llama", "tie_word_embeddings": False},
        scale_factor=4,
        image_token_id=49190,
    )
    save(hf.SmolVLMForConditionalGeneration, config, special, folder)
    edge = {"longest_edge": 512}
    hf.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False).save_pretrained(folder)


def save_llava(folder: Path) -> None:
    """A LLaVA with a CLIP-B/16 vision encoder (196 image tokens) and Qwen2-0.5B."""
    special = {"<image>": 151646, "<|im_end|>": 151645}
    encoder = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    text |= {"num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768}
    config = hf.LlavaConfig(
        vision_config=encoder | {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 16},
        text_config=text | {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1000000.0},
        image_token_index=151646,
    )
    save(hf.LlavaForConditionalGeneration, config, special, folder)
    size = {"height": 224, "width": 224}
    hf.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False, **CLIP).save_pretrained(folder)


def save(architecture: Any, config: Any, special: dict[str, int], folder: Path) -> None:
    """Save a model with random weights, the same each time, and its tokenizer."""
    torch.manual_seed(0)
    model = architecture(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.03)  # transformers' own start gives every picture the same answer
    model.tie_weights()
    model.generation_config.eos_token_id = max(special.values())
    model.save_pretrained(folder)
    byte_tokenizer(special, (), (), {}).save_pretrained(folder)


SAVERS: dict[str, Callable[[Path], None]] = {"smolvlm-256m": save_smolvlm, "llava-clip-b-qwen2-0.5b": save_llava}
