"""BLIVA's weights: InstructBLIP, and a second projection for the patches themselves.

Source: Hu et al., BLIVA, arXiv 2308.09936, and `bliva/models/bliva_vicuna7b.py` of its release.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration


class BlivaForConditionalGeneration(InstructBlipForConditionalGeneration):  # type: ignore[misc]
    """InstructBLIP with `vision_project`, a linear layer from the vision encoder's patches to the language model.

    The configuration is InstructBLIP's. The language model reads `num_query_tokens` embeddings, then one for every
    patch (32 + 256 in the release).
    """

    def __init__(self, config: InstructBlipConfig) -> None:
        super().__init__(config)
        self.vision_project = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.post_init()

    def encoder_states(
        self, pixels: Float[Tensor, "n 3 size size"]
    ) -> tuple[Float[Tensor, "n n_patches n_encoder"], Float[Tensor, "n n_patches n_encoder"]]:
        """Return the input of the Q-Former, and that of the patch projection; both begin with the class token."""
        encoder = self.vision_model
        before = states = encoder.embeddings(pixels)
        for layer in encoder.encoder.layers:
            before, states = states, layer(states, attention_mask=None)
        return encoder.post_layernorm(states), before

    def image_embeds(
        self,
        pixels: Float[Tensor, "n 3 size size"],
        qformer_input_ids: Int[Tensor, "n length"],
        qformer_attention_mask: Int[Tensor, "n length"] | None = None,
    ) -> Float[Tensor, "n n_image n_text"]:
        """Return the embeddings that the language model reads of a picture: the queries, then the patches.

        The patches are "get_intermediate_layers(image)[-2]" without the class token: the output of the second-to-last
        layer, not normalised. The order is "[inputs_llm, add_feature_llm, …]".

        Args:
            pixels: the pictures.
            qformer_input_ids: the questions in the Q-Former's own tokens.
            qformer_attention_mask: 1 where there is a token. Default: everywhere.
        """
        seen, before = self.encoder_states(pixels)
        queries = self.query_tokens.expand(len(pixels), -1, -1)
        if qformer_attention_mask is None:
            qformer_attention_mask = torch.ones_like(qformer_input_ids)
        mask = torch.cat([qformer_attention_mask.new_ones(queries.shape[:2]), qformer_attention_mask], 1)
        read = self.qformer(
            input_ids=qformer_input_ids, attention_mask=mask, query_embeds=queries, encoder_hidden_states=seen
        ).last_hidden_state[:, : queries.shape[1]]
        return torch.cat([self.language_projection(read), self.vision_project(before[:, 1:])], 1)

    def get_image_features(
        self,
        pixel_values: Tensor,
        qformer_input_ids: Tensor,
        qformer_attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        return_dict: bool | None = False,
    ) -> Any:
        """Return `image_embeds`, under the name that the inherited forward and generate call.

        They put the embeddings in place of the image tokens of `input_ids`, which must be as many.
        """
        embeddings = self.image_embeds(pixel_values, qformer_input_ids, qformer_attention_mask)
        return (embeddings, None, None) if return_dict else embeddings
