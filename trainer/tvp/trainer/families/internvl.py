"""InternVL: an InternViT vision encoder, pixel shuffle, an MLP, Qwen2 or Llama; a picture is one tile.

Source: InternVL3 (arXiv 2504.10479), in the layout of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from tvp.sdk.formats.layout import PromptLayout

from ._checkpoint import Checkpoint
from ._template import layout_of
from ._translate import side_of
from .causal import CausalFamily


class InternVl(CausalFamily):
    """`InternVLForConditionalGeneration` of transformers."""

    name = "internvl"
    exports = True

    def make_layout(self) -> PromptLayout:
        image = "<img>{image}</img>"
        usual = f"<|im_start|>user\n{image}\n{{question}}<|im_end|>\n<|im_start|>assistant\n"
        return layout_of(self, self.image_token(self.model.config.image_token_id), usual, image)

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_patches n_features"]:
        """Return the patch features of the configured layer."""
        config, model = self.model.config, self.model.model
        layer = config.vision_feature_layer
        if layer == -1:
            hidden = model.vision_tower(pixel_values=pixels).last_hidden_state
        else:
            hidden = model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        patches: Tensor = hidden[:, 1:] if config.vision_feature_select_strategy == "default" else hidden
        return patches

    def connect(
        self, features: Float[Tensor, "n n_patches n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        model, n_features = self.model.model, features.shape[-1]
        side = math.isqrt(int(features.shape[1]))  # int: a number, also while the exporter traces
        grid = model.pixel_shuffle(
            features.reshape(features.shape[0], side, side, n_features), scale_factor=self.model.config.downsample_ratio
        )
        return model.multi_modal_projector(grid.flatten(1, 2))  # type: ignore[no-any-return]

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model  # type: ignore[no-any-return]


def make(checkpoint: Checkpoint) -> InternVl:
    model = checkpoint.weights(InternVLForConditionalGeneration)
    tokenizer = checkpoint.tokenizer()
    size = side_of(model.config.vision_config.image_size, checkpoint.name)
    return InternVl(model, tokenizer, checkpoint.pixel_format(size), checkpoint.chat_template(tokenizer))
