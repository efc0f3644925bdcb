"""SmolVLM and Idefics3: a SigLIP eye, pixel shuffle, a Llama; a picture is one tile.

Sources: Idefics3 (arXiv 2408.12637), SmolVLM (arXiv 2504.05299). Their processors can cut a picture
into tiles; a prompted canvas is shown whole, as `do_image_splitting=False` does, and resized once: a
processor whose `size.longest_edge` is larger than a tile enlarges to that first, which blurs a little.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from transformers import Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration

from tvp.sdk._layout import Layout

from ._causal import CausalFamily
from ._checkpoint import Checkpoint
from ._template import layout_of

AROUND, WHOLE, END = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"


class SmolVlm(CausalFamily):
    """`SmolVLMForConditionalGeneration` and `Idefics3ForConditionalGeneration` of transformers."""

    name = "smolvlm"

    def make_layout(self) -> Layout:
        image = f"{AROUND}{WHOLE}{{image}}{AROUND}"
        usual = f"<|im_start|>User:{image}{{question}}{END}\nAssistant:"
        return layout_of(self, self.image_token(self.model.config.image_token_id), usual, image)

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_patches n_features"]:
        return self.model.model.vision_model(pixel_values=pixels).last_hidden_state  # type: ignore[no-any-return]

    def connect(
        self, features: Float[Tensor, "n n_patches n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        return self.model.model.connector(features)  # type: ignore[no-any-return]

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.text_model  # type: ignore[no-any-return]


def make(checkpoint: Checkpoint) -> SmolVlm:
    classes = {"smolvlm": SmolVLMForConditionalGeneration, "idefics3": Idefics3ForConditionalGeneration}
    model = checkpoint.weights(classes[checkpoint.kind])
    tokenizer = checkpoint.tokenizer()
    pixel_format = checkpoint.pixel_format(model.config.vision_config.image_size)
    return SmolVlm(model, tokenizer, pixel_format, checkpoint.chat_template(tokenizer))
