"""InstructBLIP: BLIP-2 whose Q-Former also reads the question; Vicuna or Flan-T5.

BLIVA adds the vision encoder's patches after the queries, through a projection of their own.
Sources: InstructBLIP (arXiv 2305.06500), BLIVA (arXiv 2308.09936).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import InstructBlipForConditionalGeneration, PreTrainedTokenizerBase

from tvp.sdk.errors import RequestError
from tvp.sdk.formats.layout import PromptLayout, refuse_special_of_connector

from ._bliva_model import BlivaForConditionalGeneration
from ._checkpoint import Checkpoint
from ._template import layout_of
from .blip2 import InnerModel, refuse_other_widths
from .family import GenerativeFamily
from .pixels import PixelFormat
from .seq2seq import Seq2SeqFamily


class QuestionAwareFamily(GenerativeFamily):
    """A ViT, and a Q-Former that reads the prompt too, with a tokenizer of its own."""

    reads_question = True

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        pixel_format: PixelFormat,
        qformer_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__(model, tokenizer, pixel_format)
        self.qformer_tokenizer = qformer_tokenizer

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_patches n_features"]:
        """Return the features of the vision encoder, class token first."""
        return self.model.vision_model(pixels).last_hidden_state  # type: ignore[no-any-return]

    def connect(
        self, features: Float[Tensor, "n n_patches n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        if questions is None:
            raise RequestError("This model's Q-Former reads the question. Give one with every picture.")
        ids, real = self._pad([self.qformer_ids(question) for question in questions], left=False)
        return self.connect_ids(features, ids, real)

    def connect_ids(self, features: Tensor, ids: Int[Tensor, "n length"], real: Int[Tensor, "n length"]) -> Tensor:
        """Do the work of `connect`: project the states of the queries, which have read picture and prompt.

        Args:
            features: from `encode`.
            ids: questions in the Q-Former's tokens, padded on the right.
            real: 1 for tokens, 0 for padding.
        """
        return self.model.language_projection(self._ask_queries(features, ids, real))  # type: ignore[no-any-return]

    @property
    def n_question_positions(self) -> int:
        """The most tokens that the Q-Former reads."""
        return self.model.config.qformer_config.max_position_embeddings  # type: ignore[no-any-return]

    def qformer_ids(self, question: str) -> list[int]:
        """Return the prompt in the Q-Former's own tokens."""
        refuse_special_of_connector(question, self.qformer_tokenizer.all_special_tokens)
        text = self.layout.prompt.replace("{image}", "").replace("{question}", question)
        ids: list[int] = self.qformer_tokenizer(text).input_ids
        if len(ids) > self.n_question_positions:
            raise RequestError(
                f"The question takes {len(ids)} tokens, but this model's Q-Former reads at most "
                f"{self.n_question_positions}. Ask a shorter question."
            )
        return ids

    def check_question(
        self, question: str, answer: str, labels: Sequence[str], n_image: int = 0, n_written: int = 0
    ) -> None:
        super().check_question(question, answer, labels, n_image, n_written)
        self.qformer_ids(question)

    def _ask_queries(self, features: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        model = self.model
        queries = model.query_tokens.expand(features.shape[0], -1, -1)
        n_queries = queries.shape[1]
        states = model.qformer(
            input_ids=ids,
            attention_mask=F.pad(real, [n_queries, 0], value=1),
            query_embeds=queries,
            encoder_hidden_states=features,
        ).last_hidden_state
        return states[:, :n_queries]  # type: ignore[no-any-return]


class InstructBlip(QuestionAwareFamily, InnerModel):
    """`InstructBlipForConditionalGeneration` of transformers with a decoder-only language model."""

    name = "instructblip"
    exports = True

    def make_layout(self) -> PromptLayout:
        # No {image}: InstructBlipProcessor puts the image tokens first, before the begin token.
        return layout_of(self, self.image_token(self.model.config.image_token_index), "{question}")


class InstructBlipT5(QuestionAwareFamily, Seq2SeqFamily):
    """`InstructBlipForConditionalGeneration` of transformers with a Flan-T5."""

    name = "instructblip-t5"
    exports = True

    def make_layout(self) -> PromptLayout:
        return layout_of(self, self.image_token(self.model.config.image_token_index), "{question}", apart=True)


class Bliva(InstructBlip):
    """BLIVA: the queries, then the vision encoder's patches; the same in loss and scores."""

    name = "bliva"

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_patches n_both"]:
        """Return the vision encoder's last features, joined with those that the patch projection reads."""
        return torch.cat(self.model.encoder_states(pixels), -1)

    def connect_ids(self, features: Tensor, ids: Int[Tensor, "n length"], real: Int[Tensor, "n length"]) -> Tensor:
        last, patches = features.chunk(2, -1)
        queries = self.model.language_projection(self._ask_queries(last, ids, real))
        return torch.cat([queries, self.model.vision_project(patches[:, 1:]).to(queries.device)], 1)


def make(checkpoint: Checkpoint) -> GenerativeFamily:
    family: type[QuestionAwareFamily]
    if checkpoint.kind == "bliva":
        model, family = checkpoint.weights(BlivaForConditionalGeneration), Bliva
    else:
        model = checkpoint.weights(InstructBlipForConditionalGeneration)
        family = InstructBlip if model.config.use_decoder_only_language_model else InstructBlipT5
    refuse_other_widths(model)
    pixel_format = checkpoint.pixel_format(model.config.vision_config.image_size)
    return family(model, checkpoint.tokenizer(), pixel_format, checkpoint.tokenizer("qformer_tokenizer"))
