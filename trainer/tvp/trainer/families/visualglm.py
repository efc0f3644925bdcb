"""VisualGLM-6B: BLIP-2's vision encoder, a linear layer, ChatGLM-6B (the first version) with 2-D positions.

`tvp convert visualglm` turns the published weights into this layout.
Sources: VisualGLM-6B's release; GLM (arXiv 2103.10360).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvp.sdk.formats.layout import PromptLayout

from ._checkpoint import Checkpoint
from ._template import layout_of
from ._visualglm_model import VisualGLMForConditionalGeneration
from .blip2 import VisionEncoder
from .causal import CausalFamily


class VisualGlm(VisionEncoder, CausalFamily):
    """VisualGLM. A prompt is `<img>…</img>问：{question}\\n答：[gMASK]<sop>`; tokens before <sop> see each other."""

    name = "visualglm"
    exports = True
    position_axes = 2
    n_causal = 1  # <sop>

    def make_layout(self) -> PromptLayout:
        return layout_of(
            self, self.image_token(self.model.config.image_token_id), "<img>{image}</img>问：{question}\n答："
        )

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """End every prompt with [gMASK] and <sop>, as the release's tokenizer does."""
        before, after = super().prompt_ids(question)
        config = self.text_config
        marks = [config.gmask_token_id, config.bos_token_id]
        return before, [i for i in after if i not in marks] + marks

    scorer = None

    @property
    def decoder(self) -> nn.Module:
        return self.model.language_model.transformer  # type: ignore[no-any-return]

    def positions(self, real: Tensor, n_context: Tensor, n_before: int, n_image: int) -> Tensor:
        """Return place and block, (2, n, length): after the context, every token has the place of [gMASK]."""
        order = super().positions(real, n_context, n_before, n_image)
        n_padding = (real.cumsum(1) == 0).sum(1)
        context = (n_context - n_padding - 1)[:, None]  # without <sop>
        return torch.stack([torch.minimum(order, context - 1), (order - context + 1).clamp(min=0)])

    def advance(self, position: Tensor, n: Tensor | int) -> Tensor:
        """Return the same place, n blocks on."""
        place, block = position
        return torch.stack([place.expand_as(block + n), block + n])

    def decoder_positions(self, positions: Tensor) -> Tensor:
        return positions.transpose(0, 1)  # (2, n, length) -> (n, 2, length)


def make(checkpoint: Checkpoint) -> VisualGlm:
    model = checkpoint.weights(VisualGLMForConditionalGeneration)
    return VisualGlm(model, checkpoint.tokenizer(), checkpoint.pixel_format(model.config.vision_config.image_size))
