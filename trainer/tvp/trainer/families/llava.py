"""LLaVA and its successors: a CLIP or SigLIP vision encoder, a two-layer MLP, a Llama-like language model.

Source: LLaVA-1.5 (arXiv 2310.03744). Here LLaVA-NeXT sees a picture as one tile, and LLaVA-OneVision as one picture;
so both are LLaVA with a line-break embedding after the patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
)

from tvp.sdk.errors import ModelError
from tvp.sdk.formats.layout import PromptLayout

from ._checkpoint import Checkpoint
from ._template import layout_of
from .causal import CausalFamily

ENCODERS = ("clip_vision_model", "siglip_vision_model")  # others differ: Pixtral's joins a batch into one picture
CLASSES = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}


class Llava(CausalFamily):
    """`LlavaForConditionalGeneration` of transformers and its two successors."""

    name = "llava"
    exports = True

    def make_layout(self) -> PromptLayout:
        token = self.image_token(self.model.config.image_token_index)
        return layout_of(self, token, "USER: {image}\n{question} ASSISTANT:")

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_patches n_features"]:
        """Return the patch features of the configured layer or layers."""
        config = self.model.config
        layers = config.vision_feature_layer
        hidden = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        chosen = [hidden[i] for i in ([layers] if isinstance(layers, int) else layers)]
        if config.vision_feature_select_strategy == "default":
            chosen = [states[:, 1:] for states in chosen]  # without the class token
        return torch.cat(chosen, -1)

    def connect(
        self, features: Float[Tensor, "n n_patches n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """Project the features; NeXT and OneVision add their line-break embedding at the end."""
        model = self.model.model
        projected: Tensor = model.multi_modal_projector(features)
        newline = getattr(model, "image_newline", None)
        if newline is None:
            return projected
        return torch.cat([projected, newline.to(projected).expand(projected.shape[0], 1, -1)], 1)

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model  # type: ignore[no-any-return]


def make(checkpoint: Checkpoint) -> Llava:
    encoder = checkpoint.config.get("vision_config", {}).get("model_type", "clip_vision_model")
    if encoder not in ENCODERS:
        raise ModelError(f"This LLaVA has the vision encoder {encoder!r}; supported are {', '.join(ENCODERS)}.")
    strategy = checkpoint.config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ModelError(f"This LLaVA selects its features by {strategy!r}; supported are default and full.")
    model = checkpoint.weights(CLASSES[checkpoint.kind])
    tokenizer = checkpoint.tokenizer()
    pixel_format = checkpoint.pixel_format(model.config.vision_config.image_size)
    return Llava(model, tokenizer, pixel_format, checkpoint.chat_template(tokenizer))
