"""BLIP-2: a ViT vision encoder, a Q-Former whose queries read it, a linear layer, and OPT or Flan-T5.

MiniGPT-4 and VPGTrans are wired in the same way, with a Llama or Vicuna, and write the picture as <Img> … </Img>.
`tvp convert` turns their published weights into this layout.
Sources: BLIP-2 (arXiv 2301.12597), MiniGPT-4 (arXiv 2304.10592), VPGTrans (arXiv 2305.01278).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration

from tvp.sdk.errors import ModelError
from tvp.sdk.formats.layout import PromptLayout

from ._checkpoint import Checkpoint
from ._template import layout_of
from .causal import CausalFamily
from .family import GenerativeFamily
from .pixels import PixelFormat
from .seq2seq import Seq2SeqFamily


class VisionEncoder(GenerativeFamily):
    """A ViT and a Q-Former that does not read the question."""

    model: Any

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_queries n_features"]:
        """Return the states of the queries."""
        model = self.model
        hidden = model.vision_model(pixels).last_hidden_state
        queries = model.query_tokens.expand(pixels.shape[0], -1, -1)
        return model.qformer(query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state  # type: ignore[no-any-return]

    def connect(
        self, features: Float[Tensor, "n n_queries n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        projection = self.model.language_projection
        # In half precision transformers keeps the queries and the Q-Former in fp32.
        return projection(features.to(projection.weight.dtype))  # type: ignore[no-any-return]


class InnerModel(CausalFamily):
    """A causal family whose language model is a whole model of transformers, with a head and a forward of its own."""

    @property
    def scorer(self) -> nn.Module:
        return self.model.language_model  # type: ignore[no-any-return]

    @property
    def decoder(self) -> nn.Module:
        whole = self.model.language_model
        inner = whole.base_model
        if inner is whole:  # its class names a base that it does not have
            inner = getattr(whole, "model", whole)
        stack: nn.Module = getattr(inner, "decoder", inner)
        return stack  # OPT has one more layer of wrapping than Llama


class Blip2(VisionEncoder, InnerModel):
    """`Blip2ForConditionalGeneration` of transformers with a decoder-only language model."""

    name = "blip-2"
    exports = True

    def make_layout(self) -> PromptLayout:
        # No {image}: Blip2Processor puts the image tokens first, before the begin token.
        return layout_of(self, self.image_token(self.model.config.image_token_index), "Question: {question} Answer:")


class Blip2T5(VisionEncoder, Seq2SeqFamily):
    """`Blip2ForConditionalGeneration` of transformers with a Flan-T5."""

    name = "blip-2-t5"
    exports = True

    def make_layout(self) -> PromptLayout:
        token = self.image_token(self.model.config.image_token_index)
        return layout_of(self, token, "Question: {question} Answer:", apart=True)


class MiniGpt4(Blip2):
    """MiniGPT-4: BLIP-2's vision encoder and a Vicuna. It reads `<Img> … </Img>`; an answer ends at a line break."""

    name = "minigpt4"
    ends_with = "\n"

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The first token of the end mark after a word, its last token alone, then the checkpoint's end tokens."""
        texts = ("a", f"a{self.ends_with}", self.ends_with)
        word, answered, alone = (self.tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        return tuple(dict.fromkeys([*answered[len(word) :][:1], *alone[-1:], *super().end_tokens]))

    def make_layout(self) -> PromptLayout:
        token = self.image_token(self.model.config.image_token_index)
        return layout_of(self, token, "<Img>{image}</Img> {question}")


class VpgTrans(MiniGpt4):
    """VPGTrans: as MiniGPT-4, but an answer ends with `###`."""

    name = "vpgtrans"
    ends_with = "###"


def family_of(model: Any, tokenizer: Any, pixel_format: PixelFormat, kind: str = "blip-2") -> GenerativeFamily:
    """Return the family of a loaded model.

    Args:
        model: a `Blip2ForConditionalGeneration`.
        tokenizer: of its language model.
        pixel_format: the pixels that its vision encoder takes.
        kind: `blip-2` (default), `minigpt4` or `vpgtrans`.

    Raises:
        ModelError: its parts do not fit each other, or no family has such a language model.
    """
    family: type[GenerativeFamily]
    refuse_other_widths(model)
    if kind in ("minigpt4", "vpgtrans"):
        family = MiniGpt4 if kind == "minigpt4" else VpgTrans
    else:
        family = Blip2 if model.config.use_decoder_only_language_model else Blip2T5
    return family(model, tokenizer, pixel_format)


def refuse_other_widths(model: Any) -> None:
    """Refuse a connector whose embeddings have another width than the language model's, as with OPT-350M.

    Raises:
        ModelError: transformers' own forward would fail too.
    """
    made, read = model.language_projection.out_features, model.get_input_embeddings().weight.shape[-1]
    if made != read:
        raise ModelError(
            f"The connector of this model makes embeddings of {made} values, and its language model reads {read} "
            "(word_embed_proj_dim). Such a model runs nowhere; take one whose sizes are equal."
        )


def make(checkpoint: Checkpoint) -> GenerativeFamily:
    model = checkpoint.weights(Blip2ForConditionalGeneration)
    tokenizer = checkpoint.tokenizer()
    return family_of(model, tokenizer, checkpoint.pixel_format(model.config.vision_config.image_size), checkpoint.kind)
