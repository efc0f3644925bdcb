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

from .families.clip import make_open_clip
from .zoo import locate


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
        place = locate(name)
        try:
            self._clip = make_open_clip(place)
        except ModelError as error:
            raise ModelError(f"The guide {error} The repository's own is zoo:guide.") from error
        self.name = str(name)
        self.model: nn.Module = self._clip.model.to(device)
        self.scale = self._clip.scale

    def compile(self) -> None:
        """See `Family.compile`."""
        self._clip.compile()

    def text_features(self, captions: Sequence[str]) -> Float[Tensor, "n n_features"]:
        """Unit text features of 'this is a photo of {caption}', each computed once."""
        return self._clip.text_features([f"this is a photo of {caption}" for caption in captions])

    def image_features(self, canvas: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n n_features"]:
        """Unit image features of canvases in [0, 1]; differentiable."""
        return self._clip.see(self._clip.to_pixels(canvas))[:, 0]

    def task_semantics(
        self,
        canvas: Float[Tensor, "n 3 height width"],
        captions: Sequence[str],
        among: Sequence[str] | None = None,
    ) -> Float[Tensor, ""]:
        """S_TSE: mean over the batch of scale · cos(picture, caption); larger is better.

        among: texts that each picture's caption competes with (and is one of); S_TSE is then the mean
            log-probability of the caption among them, which the diagonal alone leaves out.
        """
        seen = self.image_features(canvas)
        if among is None:
            return self.scale * (seen * self.text_features(captions)).sum(-1).mean()
        logits = self.scale * seen @ self.text_features(among).T
        right = torch.tensor([among.index(caption) for caption in captions], device=logits.device)
        return -F.cross_entropy(logits, right)
