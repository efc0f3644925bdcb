"""LLaVA: a CLIP (or SigLIP) eye, a two-layer MLP, a Llama-like language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tvp.sdk._layout import Layout

from ._family import CausalFamily


class Llava(CausalFamily):
    """`LlavaForConditionalGeneration` of transformers; prompt as in LLaVA-1.5's model card."""

    name = "llava"

    def make_layout(self) -> Layout:
        image_token = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_index)
        return Layout("USER: {image}\n{question} ASSISTANT:", " {answer}", image_token, self.end_tokens)

    def see(
        self, pixels: Float[Tensor, "n 3 size size"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """Patch features of the configured layer(s), through the projector; the question is not read."""
        config, model = self.model.config, self.model.model
        layers = config.vision_feature_layer
        hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        chosen = [hidden[i] for i in ([layers] if isinstance(layers, int) else layers)]
        if config.vision_feature_select_strategy == "default":
            chosen = [states[:, 1:] for states in chosen]  # without the class token
        return model.multi_modal_projector(torch.cat(chosen, -1))  # type: ignore[no-any-return]

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model  # type: ignore[no-any-return]
