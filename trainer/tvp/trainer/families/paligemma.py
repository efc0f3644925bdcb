"""PaliGemma: a SigLIP vision encoder, a linear layer, and a Gemma in whose prompt all tokens see each other.

Source: PaliGemma (arXiv 2407.07726).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PaliGemmaForConditionalGeneration

from tvp.sdk.formats.layout import PromptLayout

from ._checkpoint import Checkpoint
from ._template import layout_of
from .causal import CausalFamily


class PaliGemma(CausalFamily):
    """`PaliGemmaForConditionalGeneration` of transformers."""

    name = "paligemma"
    exports = True
    n_causal = 0

    def make_layout(self) -> PromptLayout:
        # No {image}: PaliGemmaProcessor puts the image tokens first, before the begin token.
        return layout_of(self, self.image_token(self.model.config.image_token_id), "{question}\n")

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Add the begin token: PaliGemmaProcessor writes it as text, and tells its tokenizer to add none."""
        before, after = super().prompt_ids(question)
        begin = self.tokenizer.bos_token_id
        return before, after if begin in (*before, *after) else [begin, *after]

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_patches n_features"]:
        return self.model.model.vision_tower(pixels).last_hidden_state  # type: ignore[no-any-return]

    def connect(
        self, features: Float[Tensor, "n n_patches n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """Project the features, and divide them by the factor with which Gemma scales embeddings up."""
        projected: Tensor = self.model.model.multi_modal_projector(features)
        return projected / math.sqrt(self.text_config.hidden_size)

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model  # type: ignore[no-any-return]

    def decoder_positions(self, positions: Tensor) -> Tensor:
        return positions + 1  # PaliGemma counts from one


def make(checkpoint: Checkpoint) -> PaliGemma:
    model = checkpoint.weights(PaliGemmaForConditionalGeneration)
    return PaliGemma(model, checkpoint.tokenizer(), checkpoint.pixel_format(model.config.vision_config.image_size))
