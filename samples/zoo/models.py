"""The zoo's models: published architectures at a tiny size, on three vision encoders.

A vision encoder is trained once, inside the first model of its line in ENCODERS. The others get a frozen copy, as
published models share CLIP, SigLIP or EVA-CLIP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    T5Config,
)

from tvp.trainer import scenes
from tvp.trainer.zoo import ENCODERS

from .words import IMAGE, QWEN_IMAGE

CANVAS = 64
PATCH = 8
WIDTH = 128
N_SIDE = CANVAS // PATCH
MERGE = 2  # SmolVLM and Qwen2-VL make one token of 2 x 2 patches
N_QUERIES = scenes.GRID**2  # the Q-Former has a query for each cell of the scene's grid
ENCODER_OF = {name: encoder for encoder, names in ENCODERS.items() for name in names}
_ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 3 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": CANVAS,
    "patch_size": PATCH,
}
_QFORMER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 2 * WIDTH,
    "cross_attention_frequency": 1,
    "encoder_hidden_size": WIDTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def _marks(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def make_llava(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """LLaVA: SigLIP with 8-px patches, two-layer MLP, Llama of four layers; 64 image tokens."""
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**_ENCODER, vision_use_head=False),
        text_config=LlamaConfig(**_LLAMA, **_marks(tokenizer)),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=N_SIDE**2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    start_attention_by_likeness(model.model.language_model.layers)
    return model


def make_smolvlm(tokenizer: PreTrainedTokenizerFast) -> SmolVLMForConditionalGeneration:
    """SmolVLM: SigLIP with 8-px patches, pixel shuffle by 2, SmolLM2 (a Llama) of four layers; 16 image tokens."""
    config = SmolVLMConfig(
        vision_config=_ENCODER,
        text_config=LlamaConfig(
            **{**_LLAMA, "num_key_value_heads": 2}, rope_theta=100_000.0, **_marks(tokenizer)
        ).to_dict(),
        scale_factor=MERGE,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = SmolVLMForConditionalGeneration(config)
    start_attention_by_likeness(model.model.text_model.layers)
    return model


def make_qwen2vl(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    """Qwen2-VL: rotary ViT with 8-px patches merged 2 x 2, 3-D positions, Qwen2 of four layers; 16 image tokens."""
    config = Qwen2VLConfig(
        vision_config={
            "depth": 4,
            "embed_dim": WIDTH,
            "hidden_size": WIDTH,
            "mlp_ratio": 3,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
        },
        text_config={
            "hidden_size": WIDTH,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            # a head of 32 turns 16 pairs: 4 by time, 6 by height, 6 by width
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            **_marks(tokenizer),
        },
        image_token_id=tokenizer.convert_tokens_to_ids(QWEN_IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    start_attention_by_likeness(model.model.language_model.layers)
    return model


def make_blip2(tokenizer: PreTrainedTokenizerFast) -> Blip2ForConditionalGeneration:
    """BLIP-2: ViT with 8-px patches, Q-Former with 16 queries, OPT of four layers."""
    text = OPTConfig(
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        dropout=0.0,
        attention_dropout=0.0,
        **_marks(tokenizer),
    )
    model = _blip2(text, tokenizer)
    start_attention_by_likeness(model.language_model.model.decoder.layers)
    return model


def make_blip2_t5(tokenizer: PreTrainedTokenizerFast) -> Blip2ForConditionalGeneration:
    """BLIP-2 with a Flan-T5-like encoder of four layers and decoder of two."""
    text = T5Config(
        d_model=WIDTH,
        d_kv=32,
        d_ff=2 * WIDTH,
        num_layers=4,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        initializer_factor=0.2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=tokenizer.pad_token_id,
        **_marks(tokenizer),
    )
    model = _blip2(text, tokenizer)
    # T5's own start is for millions of steps: its layers drown the image embeddings in noise, and its word embeddings
    # and head have a deviation of 1. This start is about Llama's.
    for table in (model.language_model.shared, model.language_model.lm_head):
        nn.init.normal_(table.weight, std=0.05)
    _start_head(model.language_model, tokenizer)
    for block in model.language_model.decoder.block:
        for attention in (block.layer[0].SelfAttention, block.layer[1].EncDecAttention):
            _start_handing_on(attention.v, attention.o)
    _start_near(model.language_model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    for block in model.language_model.encoder.block:
        attention = block.layer[0].SelfAttention
        # T5 does not divide by the root of a head's size, so query and key take half of it each.
        _start_alike(attention.q, attention.k, attention.v, attention.o, 32, 32**-0.25)
    return model


def _blip2(text: Any, tokenizer: PreTrainedTokenizerFast) -> Blip2ForConditionalGeneration:
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**_ENCODER).to_dict(),
        qformer_config=Blip2QFormerConfig(**_QFORMER, vocab_size=8, max_position_embeddings=8).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=N_QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    model = Blip2ForConditionalGeneration(config)
    # Its own start is zero, where the layer norm that follows blows the gradient up by 1 / sqrt(eps).
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    return model


def make_instructblip(tokenizer: PreTrainedTokenizerFast) -> InstructBlipForConditionalGeneration:
    """InstructBLIP: BLIP-2's encoder, a Q-Former that also reads the question, Llama (for Vicuna) of four layers."""
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**_ENCODER).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            **_QFORMER, vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id
        ).to_dict(),
        text_config=LlamaConfig(**_LLAMA, **_marks(tokenizer)).to_dict(),
        num_query_tokens=N_QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    start_attention_by_likeness(model.language_model.model.layers)
    return model


def start_attention_by_likeness(layers: nn.ModuleList) -> None:
    """Start a decoder's attention so that it looks for likeness, as the attention of trained models does.

    Queries equal keys, and values are handed on: a word in a question attends to the image embeddings near it from
    the first step. From random starts this alone takes thousands of steps.
    Source: "Mimetic Initialization of Self-Attention Layers", ICML 2023 (arXiv 2305.09828).
    """
    for layer in layers:
        attention = layer.self_attn
        out = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
        _start_alike(attention.q_proj, attention.k_proj, attention.v_proj, out, attention.head_dim)


@torch.no_grad()
def _start_head(t5: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """Start T5's head, which has weights of its own, as a copy of the word embeddings, as if it were tied.

    T5's answers start without a space. A word without a space gets the embedding of the same word in a sentence, to
    which image embeddings are aligned (with SentencePiece both are one token). Words that attention finds then count
    from the first step.
    """
    vocab, table = tokenizer.get_vocab(), t5.shared.weight
    for token, row in vocab.items():
        if f"Ġ{token}" in vocab:
            table[row] = table[vocab[f"Ġ{token}"]]
    t5.lm_head.weight.copy_(table)


@torch.no_grad()
def _start_handing_on(value: nn.Linear, out: nn.Linear) -> None:
    """Start an attention so that it adds half of the states it attends to, unrotated."""
    nn.init.orthogonal_(value.weight)
    out.weight.copy_(0.5 * value.weight.T)


@torch.no_grad()
def _start_near(biases: Tensor) -> None:
    """Start three of T5's four heads so that they prefer near tokens; the biases (32 distances, 4 heads) learn slowly.

    One head prefers the token before; two fade with the distance, as ALiBi's do (arXiv 2108.12409).
    """
    distance = torch.tensor([*range(8), 8, 11, 16, 23, 32, 46, 64, 91.0])  # of each bucket, in either direction
    biases.zero_()
    biases[:, 1] = -0.5 * distance.repeat(2)
    biases[:, 2] = -1.5 * distance.repeat(2)
    biases[1, 3] = 6.0


@torch.no_grad()
def _start_alike(
    query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, head_size: int, scale: float = 1.0
) -> None:
    n_repeats = query.out_features // key.out_features
    for projection in (key, value):
        nn.init.orthogonal_(projection.weight)
    key.weight.mul_(scale)
    every_key, every_value = (
        p.weight.view(-1, head_size, p.in_features).repeat_interleave(n_repeats, 0).flatten(0, 1) for p in (key, value)
    )
    query.weight.copy_(every_key)
    out.weight.copy_(0.5 * every_value.T)


MAKERS = {
    "blip2": make_blip2,
    "blip2-t5": make_blip2_t5,
    "instructblip": make_instructblip,
    "smolvlm": make_smolvlm,
    "llava": make_llava,
    "qwen2vl": make_qwen2vl,
}
