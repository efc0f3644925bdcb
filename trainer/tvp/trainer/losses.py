"""The two losses that make a prompt transfer, and the guide that one of them asks.

Source: "Exploring the Transferability of Visual Prompting for Multimodal Large Language Models"
(CVPR 2024, arXiv 2404.11207), equations of section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tvp.sdk.errors import ModelError

from .families import PixelFormat, locate
from .families._family import to_pixels


def feature_consistency(
    prompted: Float[Tensor, "n n_image n_text"], clean: Float[Tensor, "n n_image n_text"]
) -> Float[Tensor, ""]:
    """L_FCA: mean over pictures and image tokens of the Euclidean distance of the embeddings.

    The distance is not squared. At zero its gradient is zero, not NaN.
    """
    squared = (prompted - clean).square().sum(-1)
    zero = squared == 0
    return torch.where(zero, 0.0, squared.masked_fill(zero, 1.0).sqrt()).mean()


class Guide:
    """A frozen CLIP model that says how well a picture shows what its caption says.

    name: an open_clip architecture with its weights as `NAME@TAG`, `hf-hub:…`, `local-dir:…`,
        a folder with open_clip_config.json, or `zoo:guide`.
    """

    def __init__(self, name: str | Path, device: str | torch.device = "cpu") -> None:
        import open_clip

        place = locate(name)
        if Path(place, "open_clip_config.json").is_file():
            place = f"local-dir:{place}"
        architecture, _, tag = place.partition("@")
        try:
            model = open_clip.create_model(architecture, pretrained=tag or None, device=device, require_pretrained=True)
            self._tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:  # open_clip, safetensors and tokenizers each raise their own
            raise ModelError(
                f"The guide {str(name)!r} is not an open_clip model that can be loaded: {error} "
                "Name an architecture with its weights (ViT-B-32@openai), a folder, or zoo:guide."
            ) from error
        self.name = str(name)
        self.model: nn.Module = model.eval().requires_grad_(False)
        self.scale = float(model.logit_scale.exp())
        size = model.visual.image_size
        self.pixel_format = PixelFormat(
            size[0] if isinstance(size, tuple) else size,
            tuple(model.visual.image_mean or open_clip.OPENAI_DATASET_MEAN),
            tuple(model.visual.image_std or open_clip.OPENAI_DATASET_STD),
        )
        self._device = device
        self._known: dict[str, Tensor] = {}

    def text_features(self, captions: Sequence[str]) -> Float[Tensor, "n n_features"]:
        """Unit text features of 'this is a photo of {caption}', each computed once.

        One text a run: the bits of a row depend on the batch it is in, and a resumed training run
        meets its captions in other batches than an uninterrupted one.
        """
        for caption in captions:
            if caption not in self._known:
                with torch.no_grad():
                    ids = self._tokenizer([f"this is a photo of {caption}"]).to(self._device)
                    self._known[caption] = F.normalize(self.model.encode_text(ids)[0], dim=-1)  # type: ignore[operator]
        return torch.stack([self._known[caption] for caption in captions])

    def image_features(self, canvas: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n n_features"]:
        """Unit image features of canvases in [0, 1]; differentiable."""
        pixels = to_pixels(canvas, self.pixel_format)
        return F.normalize(self.model.encode_image(pixels), dim=-1)  # type: ignore[operator]

    def task_semantics(self, canvas: Float[Tensor, "n 3 height width"], captions: Sequence[str]) -> Float[Tensor, ""]:
        """S_TSE: mean over the batch of scale · cos(picture, caption); larger is better."""
        return self.scale * (self.image_features(canvas) * self.text_features(captions)).sum(-1).mean()
