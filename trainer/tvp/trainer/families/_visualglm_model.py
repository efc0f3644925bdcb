"""VisualGLM-6B's weights: EVA-CLIP-g, a Q-Former, a linear layer, the first ChatGLM-6B.

Vision encoder and Q-Former are those of BLIP-2 in transformers. The release runs them in SwissArmyTransformer, whose
"post" order of layer norms is the Q-Former's with every norm moved to the next layer. The conversion
(`tvp.trainer.convert`) gives them transformers' names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from .chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration


class VisualGLMConfig(PretrainedConfig):  # type: ignore[misc]
    """A configuration like transformers' Blip2Config.

    Args:
        vision_config: of the vision encoder.
        qformer_config: of the Q-Former.
        text_config: of ChatGLM.
        num_query_tokens: image embeddings that the language model reads ("image_length" of the release). Default 32.
        image_token_index: id of the token that stands for the picture while a text is tokenised.
    """

    model_type = "visualglm"
    attribute_map = {"image_token_id": "image_token_index"}  # noqa: RUF012
    sub_configs = {  # noqa: RUF012
        "vision_config": Blip2VisionConfig,
        "qformer_config": Blip2QFormerConfig,
        "text_config": ChatGLMConfig,
    }

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        qformer_config: dict[str, Any] | None = None,
        text_config: dict[str, Any] | None = None,
        num_query_tokens: int = 32,
        image_token_index: int | None = None,
        **more: Any,
    ) -> None:
        self.vision_config = Blip2VisionConfig(**(vision_config or {}))
        self.qformer_config = Blip2QFormerConfig(**(qformer_config or {}))
        self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
        self.text_config = ChatGLMConfig(**(text_config or {}))
        self.num_query_tokens = num_query_tokens
        self.image_token_index = image_token_index
        more["tie_word_embeddings"] = False
        super().__init__(**more)


class VisualGLMForConditionalGeneration(PreTrainedModel):  # type: ignore[misc]
    """Vision encoder, Q-Former, `language_projection` ("glm_proj" of the release) and ChatGLM."""

    config_class = VisualGLMConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: VisualGLMConfig) -> None:
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.language_projection = nn.Linear(width, config.text_config.hidden_size)
        self.language_model = ChatGLMForConditionalGeneration(config.text_config)
        # transformers makes none, because this model has no `generate`; families read the end token from it.
        self.generation_config = GenerationConfig(
            bos_token_id=config.text_config.bos_token_id,
            eos_token_id=config.text_config.eos_token_id,
            pad_token_id=config.text_config.pad_token_id,
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()


# For `tvp.trainer.convert`: the place of each tensor in SAT's layout, in the notation of `published.Kind`. From SAT's
# transformer.py and transformer_defaults.py, and the release's model/blip2.py.
SAT_SOURCES: tuple[tuple[str, str], ...] = (
    (r"vision_model\.embeddings\.class_embedding", r"vit.transformer.word_embeddings.weight"),
    (r"vision_model\.embeddings\.position_embedding", r"vit.transformer.position_embeddings.weight"),
    (r"vision_model\.embeddings\.patch_embedding\.", r"vit.mixins.patch_embedding.proj."),
    (r"vision_model\.post_layernorm\.", r"vit.mixins.cls.ln_vision."),
    (r"vision_model\.encoder\.(layers\.\d+)\.layer_norm1\.", r"vit.transformer.\1.input_layernorm."),
    (r"vision_model\.encoder\.(layers\.\d+)\.layer_norm2\.", r"vit.transformer.\1.post_attention_layernorm."),
    (r"vision_model\.encoder\.(layers\.\d+)\.self_attn\.qkv\.", r"vit.transformer.\1.attention.query_key_value."),
    (r"vision_model\.encoder\.(layers\.\d+)\.self_attn\.projection\.", r"vit.transformer.\1.attention.dense."),
    (r"vision_model\.encoder\.(layers\.\d+)\.mlp\.fc1\.", r"vit.transformer.\1.mlp.dense_h_to_4h."),
    (r"vision_model\.encoder\.(layers\.\d+)\.mlp\.fc2\.", r"vit.transformer.\1.mlp.dense_4h_to_h."),
    (r"query_tokens", r"qformer.transformer.word_embeddings.weight"),
    # A norm that ends a layer in BERT begins the next one in SAT; the last one is SAT's final norm.
    (r"qformer\.layernorm\.", r"qformer.transformer.layers.0.input_layernorm."),
    (r"qformer\.encoder\.layer\.(\d+)\.output_query\.LayerNorm\.", r"qformer.transformer.layers.\1+1.input_layernorm."),
    *(
        (
            rf"qformer\.encoder\.layer\.(\d+)\.attention\.attention\.{name}\.(\w+)",
            rf"qformer.transformer.layers.\1.attention.query_key_value.\2[{i}/3]",
        )
        for i, name in enumerate(("query", "key", "value"))
    ),
    (
        r"qformer\.encoder\.layer\.(\d+)\.crossattention\.attention\.query\.",
        r"qformer.transformer.layers.\1.cross_attention.query.",
    ),
    *(
        (
            rf"qformer\.encoder\.layer\.(\d+)\.crossattention\.attention\.{name}\.(\w+)",
            rf"qformer.transformer.layers.\1.cross_attention.key_value.\2[{i}/2]",
        )
        for i, name in enumerate(("key", "value"))
    ),
    (
        r"qformer\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.",
        r"qformer.transformer.layers.\1.post_attention_layernorm.",
    ),
    (
        r"qformer\.encoder\.layer\.(\d+)\.crossattention\.output\.LayerNorm\.",
        r"qformer.transformer.layers.\1.post_cross_attention_layernorm.",
    ),
    (r"qformer\.encoder\.layer\.(\d+)\.attention\.output\.", r"qformer.transformer.layers.\1.attention."),
    (r"qformer\.encoder\.layer\.(\d+)\.crossattention\.output\.", r"qformer.transformer.layers.\1.cross_attention."),
    (
        r"qformer\.encoder\.layer\.(\d+)\.intermediate_query\.dense\.",
        r"qformer.transformer.layers.\1.mlp.dense_h_to_4h.",
    ),
    (r"qformer\.encoder\.layer\.(\d+)\.output_query\.dense\.", r"qformer.transformer.layers.\1.mlp.dense_4h_to_h."),
    (r"language_projection\.", r"glm_proj."),
)
SAT_SIZES = {
    "vision_encoder": (r"vit\.transformer\.layers\.\d+\.\w+_layernorm\.weight", 0),
    "vision_encoder_mlp": (r"vit\.transformer\.layers\.\d+\.mlp\.dense_h_to_4h\.weight", 0),
    "patch": (r"vit\.mixins\.patch_embedding\.proj\.weight", -1),
    "positions": (r"vit\.transformer\.position_embeddings\.weight", -2),
    "qformer": (r"qformer\.transformer\.layers\.\d+\.\w+_layernorm\.weight", 0),
    "qformer_mlp": (r"qformer\.transformer\.layers\.\d+\.mlp\.dense_h_to_4h\.weight", 0),
    "queries": (r"qformer\.transformer\.word_embeddings\.weight", -2),
}
SAT_LAYERS = {
    "vision_encoder": r"vit\.transformer\.layers\.(\d+)\.",
    "qformer": r"qformer\.transformer\.layers\.(\d+)\.",
    "cross": r"qformer\.transformer\.layers\.(\d+)\.cross_attention\.",
}
