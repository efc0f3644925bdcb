"""The layouts in which models are published: for each of our tensors, the published tensor that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import Blip2Config, Blip2ForConditionalGeneration, InstructBlipConfig, LlamaConfig

from .families._bliva_model import BlivaForConditionalGeneration
from .families._visualglm_model import (
    SAT_LAYERS,
    SAT_SIZES,
    SAT_SOURCES,
    VisualGLMConfig,
    VisualGLMForConditionalGeneration,
)
from .families.chatglm import ChatGLMConfig

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Kind:
    """The layout of one published model.

    Attributes:
        model: class of the result.
        config: class of its configuration.
        text: class of its language model's configuration.
        text_type: the `model_type` that this configuration must have.
        sources: pairs of a regular expression and its replacement, which turn a name of the result into a published
            name; the first match is used. The published name may be several that are joined along the rows
            ("a+0+b", where 0 is zeros), one part of a tensor ("a[1/3]"), or one of the next layer ("layers.3+1.a").
        ignored: published names that the result does not need.
        sizes: for each size, published names and the axis that has it. The most frequent value is used, so that one
            tensor of a wrong shape is reported itself, and not all others.
        layers: for each number of layers, the published names that count them.
    """

    model: Any
    config: Any
    text: Any
    text_type: str
    sources: Rules
    ignored: Sequence[str]
    sizes: Mapping[str, tuple[str, int]]
    layers: Mapping[str, str]


_LAVIS: Rules = (
    (r"vision_model\.embeddings\.class_embedding", r"visual_encoder.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", r"visual_encoder.pos_embed"),
    (r"vision_model\.embeddings\.patch_embedding\.", r"visual_encoder.patch_embed.proj."),
    (r"vision_model\.post_layernorm\.", r"ln_vision."),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"visual_encoder.blocks.\1.norm\2."),
    # Keys of the vision encoder have no bias: "torch.cat((self.q_bias, zeros_like(self.v_bias), self.v_bias))".
    (
        r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.bias",
        r"visual_encoder.blocks.\1.attn.q_bias+0+visual_encoder.blocks.\1.attn.v_bias",
    ),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"visual_encoder.blocks.\1.attn.proj."),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.", r"visual_encoder.blocks.\1.attn."),
    (r"vision_model\.encoder\.layers\.", r"visual_encoder.blocks."),
    (r"qformer\.(embeddings\.)?layernorm\.", r"Qformer.bert.embeddings.LayerNorm."),
    (r"qformer\.encoder\.(layer\.\d+\.\w+)\.attention\.", r"Qformer.bert.encoder.\1.self."),
    (r"qformer\.", r"Qformer.bert."),
)
# Buffers, and tensors of other stages of training.
_LAVIS_IGNORED = (
    r"Qformer\.bert\.embeddings\.position_ids",
    r"Qformer\.cls\.",
    r"(opt|t5|vision|text)_proj\.",
    r"itm_head\.",
    r"temp$",
    r"visual_encoder\.(norm|fc_norm|head)\.",
    r"visual_encoder\.mask_token$",
    r"language_model\..*rotary_emb\.inv_freq$",
)
# MiniGPT-4 and VPGTrans drop the Q-Former's layers for text: "layer.output = None", "layer.intermediate = None".
_LAVIS_TEXT = (
    r"Qformer\.bert\.embeddings\.(word|position)_embeddings\.",
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.",
)
# Tensors whose axis is a size, and names that count layers.
_LAVIS_SIZES = {
    "vision_encoder": (r"visual_encoder\.blocks\.\d+\.norm\d\.weight", 0),
    "vision_encoder_mlp": (r"visual_encoder\.blocks\.\d+\.mlp\.fc1\.weight", 0),
    "patch": (r"visual_encoder\.patch_embed\.proj\.weight", -1),
    "positions": (r"visual_encoder\.pos_embed", -2),
    "qformer": (r"Qformer\.bert\.encoder\.layer\.\d+\.\w+\.output\.LayerNorm\.weight", 0),
    "qformer_mlp": (r"Qformer\.bert\.encoder\.layer\.\d+\.intermediate_query\.dense\.weight", 0),
    "queries": (r"query_tokens", -2),
    "words": (r"Qformer\.bert\.embeddings\.word_embeddings\.weight", 0),
    "word_positions": (r"Qformer\.bert\.embeddings\.position_embeddings\.weight", 0),
}
_LAVIS_LAYERS = {
    "vision_encoder": r"visual_encoder\.blocks\.(\d+)\.",
    "qformer": r"Qformer\.bert\.encoder\.layer\.(\d+)\.",
    "cross": r"Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.",
}
_LLAMA_PROJ = (r"language_projection\.", r"llama_proj.")
_MINIGPT4 = Kind(
    Blip2ForConditionalGeneration,
    Blip2Config,
    LlamaConfig,
    "llama",
    (*_LAVIS, _LLAMA_PROJ),
    (*_LAVIS_IGNORED, *_LAVIS_TEXT),
    _LAVIS_SIZES,
    _LAVIS_LAYERS,
)
KINDS: dict[str, Kind] = {
    "minigpt4": _MINIGPT4,
    "vpgtrans": _MINIGPT4,
    "bliva": Kind(
        BlivaForConditionalGeneration,
        InstructBlipConfig,
        LlamaConfig,
        "llama",
        (*_LAVIS, (r"language_projection\.", r"llm_proj.")),
        _LAVIS_IGNORED,
        _LAVIS_SIZES,
        _LAVIS_LAYERS,
    ),
    "visualglm": Kind(
        VisualGLMForConditionalGeneration,
        VisualGLMConfig,
        ChatGLMConfig,
        "chatglm",
        SAT_SOURCES,
        # SAT has position embeddings that ChatGLM never reads.
        (r"language_model\..*rotary_emb\.inv_freq$", r"language_model\.transformer\.position_embeddings\.weight$"),
        SAT_SIZES,
        SAT_LAYERS,
    ),
}
# Names of a part in different files -> one name.
PREFIXES = (
    (r"^(llama_model|llm_model)\.", "language_model."),
    (r"^(image_encoder|mixins\.eva\.model)\.", ""),
    (r"^mixins\.chatglm-final\.lm_head\.", "language_model.lm_head."),
    (r"^mixins\.chatglm-attn\.", "language_model.transformer."),
    (r"^transformer\.", "language_model.transformer."),
)
