"""The two losses that make a prompt transfer to other models, and the guide that one of them asks.

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
    """L_FCA: the Euclidean distance between prompted and clean embeddings, averaged over pictures and image tokens.

    The distance is not squared. At distance zero its gradient is zero, not NaN.
    """
    squared = (prompted - clean).square().sum(-1)
    zero = squared == 0
    return torch.where(zero, 0.0, squared.masked_fill(zero, 1.0).sqrt()).mean()


class Guide:
    """A frozen CLIP model that says how well a picture fits its caption.

    Args:
        name: an open_clip architecture with its weights, `NAME@TAG`; `hf-hub:…`; `local-dir:…`; a folder with an
            open_clip_config.json; or `zoo:guide`.
        device: where it runs. Default `cpu`.
        fetch: whether it may be downloaded. Default True.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, name: str | Path, device: str | torch.device = "cpu", fetch: bool = True) -> None:
        place = locate(name)
        try:
            self._clip = make_open_clip(place, fetch)
        except ModelError as error:
            raise ModelError(f"The guide {error} The zoo has one, zoo:guide.") from error
        self.name = str(name)
        self.model: nn.Module = self._clip.model.to(device)
        self.scale = self._clip.scale

    def compile(self) -> None:
        """Compile the vision encoder, see `Family.compile`."""
        self._clip.compile()

    def text_features(self, captions: Sequence[str]) -> Float[Tensor, "n n_features"]:
        """Text features of 'this is a photo of {caption}', of unit length; each is computed once."""
        return self._clip.text_features([f"this is a photo of {caption}" for caption in captions])

    def image_features(self, canvas: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n n_features"]:
        """Image features of canvases in [0, 1], of unit length; differentiable."""
        return self._clip.see(self._clip.to_pixels(canvas))[:, 0]

    def task_semantics(
        self,
        canvas: Float[Tensor, "n 3 height width"],
        captions: Sequence[str],
        among: Sequence[str] | None = None,
    ) -> Float[Tensor, ""]:
        """S_TSE: scale · cos(picture, caption), averaged over the batch; larger is better.

        Args:
            canvas: the pictures, in [0, 1].
            captions: one for each picture.
            among: texts that each caption competes with, itself included. S_TSE is then the mean log-probability of
                the caption among them. Default: none.
        """
        seen = self.image_features(canvas)
        if among is None:
            return self.scale * (seen * self.text_features(captions)).sum(-1).mean()
        logits = self.scale * seen @ self.text_features(among).T
        right = torch.tensor([among.index(caption) for caption in captions], device=logits.device)
        return -F.cross_entropy(logits, right)
