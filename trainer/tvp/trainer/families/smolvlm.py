"""SmolVLM and Idefics3: a SigLIP vision encoder, pixel shuffle, a Llama; a picture is one tile.

Sources: Idefics3 (arXiv 2408.12637), SmolVLM (arXiv 2504.05299). Their processors can cut a picture into tiles. Here
a canvas is shown whole, as with `do_image_splitting=False`, and is resized once. A processor whose
`size.longest_edge` is larger than a tile first enlarges to that size, which blurs a little.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerBase, SmolVLMForConditionalGeneration

from tvp.sdk.errors import ModelError
from tvp.sdk.formats.layout import PromptLayout

from ._checkpoint import Checkpoint
from ._template import layout_of
from .causal import CausalFamily
from .pixels import PixelFormat

AROUND, WHOLE, END = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"


class SmolVlm(CausalFamily):
    """`SmolVLMForConditionalGeneration` and `Idefics3ForConditionalGeneration` of transformers."""

    name = "smolvlm"
    exports = True

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, pixel_format: PixelFormat, template: str | None = None
    ) -> None:
        super().__init__(model, tokenizer, pixel_format, template)
        self._places = self._place_patches()

    def make_layout(self) -> PromptLayout:
        image = f"{AROUND}{WHOLE}{{image}}{AROUND}"
        usual = f"<|im_start|>User:{image}{{question}}{END}\nAssistant:"
        return layout_of(self, self.image_token(self.model.config.image_token_id), usual, image)

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_patches n_features"]:
        """Return the features of all patches.

        transformers computes the positions of the patches for each picture. Here no picture is padded, so all have the
        same positions and need no mask.
        """
        encoder = self.model.model.vision_model
        patches = encoder.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (n, c, y, x) -> (n, y * x, c)
        hidden = encoder.encoder(
            inputs_embeds=patches + encoder.embeddings.position_embedding(self._places.to(pixels.device))
        )
        return encoder.post_layernorm(hidden.last_hidden_state)  # type: ignore[no-any-return]

    def _place_patches(self) -> Int[Tensor, "1 n_patches"]:
        """Return the position embedding of each patch of a whole tile, as transformers chooses it in fp32.

        In half precision, rounding makes it choose others (huggingface/transformers#41190). A prompt would then be
        learned on another vision encoder than the exported one.
        """
        embeddings, size = copy.deepcopy(self.model.model.vision_model.embeddings).float(), self.pixel_format.size
        found: list[Tensor] = []
        hook = embeddings.position_embedding.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        n_side = size // embeddings.patch_size
        whole = torch.ones(1, n_side, n_side, dtype=torch.bool, device=self.device)
        black = torch.zeros(1, 3, size, size, device=whole.device)
        with torch.no_grad(), hook:
            embeddings(pixel_values=black, patch_attention_mask=whole)
        return found[0]

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
    vision, scale = model.config.vision_config, model.config.scale_factor
    n_side = vision.image_size // vision.patch_size
    if n_side % scale:
        raise ModelError(
            f"The model {checkpoint.name!r} has {n_side} patches a side, and its connector joins {scale} of them "
            "(scale_factor), which does not divide that number. transformers' own forward fails too."
        )
    tokenizer = checkpoint.tokenizer()
    pixel_format = checkpoint.pixel_format(model.config.vision_config.image_size)
    return SmolVlm(model, tokenizer, pixel_format, checkpoint.chat_template(tokenizer))
