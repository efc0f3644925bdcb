"""Qwen2-VL and Qwen2.5-VL: a rotary vision encoder at native resolution, 2 x 2 patches a token, 3-D positions.

Sources: Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923). Native resolution
means that a canvas is shown at its own size, rounded to whole tokens; so every picture has the same number of tokens.
Their processor does the same within its limits. The size is that of the canvas that the model is loaded for, or
`tvp_canvas` of its config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from tvp.sdk.formats.layout import PromptLayout

from ._checkpoint import CANVAS, Checkpoint
from ._template import layout_of
from ._translate import processor_of
from .causal import CausalFamily
from .pixels import PixelFormat


class Qwen2Vl(CausalFamily):
    """`Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration` of transformers."""

    name = "qwen2-vl"
    exports = True
    position_axes = 3
    encoder_batches = False  # it reads all pictures as one sequence, cut at lengths that tracing turns into constants

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, pixel_format: PixelFormat, template: str | None = None
    ) -> None:
        vision = model.config.vision_config
        self._patch, self._merge, self._n_frames = (
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
        )
        super().__init__(model, tokenizer, pixel_format, template)

    def make_layout(self) -> PromptLayout:
        usual = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            "<|vision_start|>{image}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        return layout_of(self, self.image_token(self.model.config.image_token_id), usual)

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n n_image n_text"]:
        """Return merged tokens; in transformers the merger is a part of the vision encoder."""
        n, n_side = pixels.shape[0], pixels.shape[-1] // self._patch
        patch, merge = self._patch, self._merge
        # The processor's order: 2 x 2 neighbours together, each patch as (channel, frame, y, x).
        grid = pixels.reshape(n, 3, n_side // merge, merge, patch, n_side // merge, merge, patch)
        grid = grid.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
        patches = grid.expand(-1, -1, -1, -1, -1, -1, self._n_frames, -1, -1).reshape(n * n_side**2, -1)
        sizes = torch.tensor([[1, n_side, n_side]], device=pixels.device).expand(n, -1)
        return self.model.model.visual(patches, grid_thw=sizes).view(n, (n_side // merge) ** 2, -1)  # type: ignore[no-any-return]

    def connect(
        self, features: Float[Tensor, "n n_image n_text"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n n_image n_text"]:
        return features

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model  # type: ignore[no-any-return]

    def positions(self, real: Tensor, n_context: Tensor, n_before: int, n_image: int) -> Tensor:
        """Return time, row and column, (3, n, length); text continues after the largest position of the picture.

        Reproduces get_rope_index of transformers for one picture.
        """
        order = super().positions(real, n_context, n_before, n_image)
        side = round(n_image**0.5)
        place = (order - n_before).clamp(0, n_image - 1)
        in_image = (order >= n_before) & (order < n_before + n_image)
        after = torch.where(order >= n_before + n_image, order - n_image + side, order)
        parts = (torch.zeros_like(place), place // side, place % side)
        return torch.stack([torch.where(in_image, n_before + part, after) for part in parts])


def input_side(checkpoint: Checkpoint) -> int:
    """Return the side of the largest picture that the model's files name, at most 224 px; 0 where they name none."""
    if own := checkpoint.config.get("tvp_canvas"):
        return int(own)
    most = processor_of(checkpoint.folder, checkpoint.name).get("max_pixels")  # 16,384 tokens, of published models
    return min(CANVAS, int(most**0.5)) if isinstance(most, int) and most > 0 else 0


def make(checkpoint: Checkpoint) -> Qwen2Vl:
    classes = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
    model = checkpoint.weights(classes[checkpoint.kind])
    tokenizer = checkpoint.tokenizer()
    vision = model.config.vision_config
    unit = vision.patch_size * vision.spatial_merge_size
    canvas = checkpoint.config.get("tvp_canvas") or checkpoint.canvas or CANVAS
    size = max(unit, round(canvas / unit) * unit)
    return Qwen2Vl(model, tokenizer, checkpoint.pixel_format(size), checkpoint.chat_template(tokenizer))
