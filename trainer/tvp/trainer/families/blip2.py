"""BLIP-2: a ViT eye, a Q-Former whose queries read it, a linear layer, an OPT language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tvp.sdk._layout import Layout
from tvp.sdk.errors import ModelError

from ._family import CausalFamily, PixelFormat


class Blip2(CausalFamily):
    """`Blip2ForConditionalGeneration` of transformers with a decoder-only language model."""

    name = "blip-2"

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, pixel_format: PixelFormat) -> None:
        if not model.config.use_decoder_only_language_model:
            raise ModelError("This BLIP-2 has an encoder-decoder language model (T5); only OPT is supported so far.")
        super().__init__(model, tokenizer, pixel_format)

    def make_layout(self) -> Layout:
        # No {image}: Blip2Processor puts the image tokens first, before the begin token.
        image_token = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_index)
        return Layout("Question: {question} Answer:", " {answer}", image_token, self.end_tokens)

    def see(
        self, pixels: Float[Tensor, "n 3 size size"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        """The queries' states, projected; the question is not read."""
        model = self.model
        hidden = model.vision_model(pixels).last_hidden_state
        queries = model.query_tokens.expand(pixels.shape[0], -1, -1)
        states = model.qformer(query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state
        return model.language_projection(states)  # type: ignore[no-any-return]

    @property
    def decoder(self) -> nn.Module:
        return self.model.language_model.model.decoder  # type: ignore[no-any-return]
