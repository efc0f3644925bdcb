"""CLIP and SigLIP: they choose among given answers, the one whose text fits the picture best.

Models come from transformers, or from open_clip (a folder with open_clip_config.json, or `open_clip:NAME@TAG`).
Sources: CLIP (arXiv 2103.00020), SigLIP (arXiv 2303.15343).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, SiglipModel

from tvp.sdk.errors import ModelError, RequestError
from tvp.sdk.formats.layout import CaptionTemplates

from ._checkpoint import Checkpoint
from .family import Family
from .pixels import PixelFormat


class ContrastiveFamily(Family):
    """A vision encoder and a text encoder whose features are compared.

    Question and answer together make a text, as `captions` says. Scores are log-probabilities: for CLIP of a softmax
    over the candidates, for SigLIP of a sigmoid for each text.

    Args:
        model: the module.
        pixel_format: the pixels that the vision encoder takes.
        encode_image: pixels -> image features, of any length.
        tokenize: texts -> token ids (n_texts, n_tokens), truncated and padded.
        encode_ids: token ids -> text features, of any length.
        tokenizer: the tokenizer that `tokenize` uses.
        n_positions: the most tokens of a text.
        padded: whether each text is padded to `n_positions`.
        scale: factor of the cosine.
        bias: added to it. Default 0.
        sigmoid: whether scores are of a sigmoid, as SigLIP's. Default False: of a softmax.
    """

    name = "clip"
    kind = "contrastive"
    generates = False
    exports = True
    captions = CaptionTemplates()

    def __init__(
        self,
        model: Any,
        pixel_format: PixelFormat,
        encode_image: Callable[[Tensor], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        encode_ids: Callable[[Tensor], Tensor],
        tokenizer: Any,
        n_positions: int,
        padded: bool,
        scale: float,
        bias: float = 0.0,
        sigmoid: bool = False,
    ) -> None:
        super().__init__(model, pixel_format)
        self._encode_image, self.tokenize, self.encode_ids = encode_image, tokenize, encode_ids
        self.tokenizer, self.n_positions, self.padded = tokenizer, n_positions, padded
        self.scale, self.bias, self.sigmoid = scale, bias, sigmoid
        self._known: dict[str, Tensor] = {}

    def encode(self, pixels: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n 1 n_features"]:
        return self._encode_image(pixels)[:, None].to(self.device)

    def connect(
        self, features: Float[Tensor, "n 1 n_features"], questions: Sequence[str] | None = None
    ) -> Float[Tensor, "n 1 n_features"]:
        """Return features of unit length, which are compared with those of texts."""
        return F.normalize(features, dim=-1)

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n n_features"]:
        """Return text features of unit length; each text is computed once.

        Texts are computed one by one, because the bits of a row depend on its batch: a resumed run meets its texts in
        other batches than a run without interruption.
        """
        for text in texts:
            if text not in self._known:
                with torch.no_grad():
                    ids = self.tokenize([text]).to(self.device)
                    self._known[text] = F.normalize(self.encode_ids(ids)[0], dim=-1).to(self.device)
        return torch.stack([self._known[text] for text in texts])

    def logits(self, embeddings: Float[Tensor, "n 1 n_features"], texts: Sequence[str]) -> Float[Tensor, "n n_texts"]:
        """Return what transformers calls `logits_per_image`."""
        # In fp32, because half precision has steps of an eighth at the usual size of a logit.
        return self.scale * embeddings[:, 0].float() @ self.text_features(texts).float().T + self.bias

    def answer_loss(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        answers: Sequence[str],
        candidates: Sequence[Sequence[str]] = (),
    ) -> Float[Tensor, ""]:
        """Return minus the score of the right answer among its candidates, averaged over rows.

        For SigLIP it is the binary cross-entropy averaged over candidates, as in its training.
        """
        candidates = candidates or [()] * len(answers)  # which is refused
        losses = []
        for i, (question, answer, labels) in enumerate(zip(questions, answers, candidates, strict=True)):
            self.check_question(question, answer, labels)
            logits = self.logits(embeddings[i : i + 1], self.captions.texts(question, labels))[0]
            right = list(labels).index(answer)
            if self.sigmoid:
                sign = torch.full_like(logits, -1.0)
                sign[right] = 1.0
                losses.append(-F.logsigmoid(sign * logits).mean())
            else:
                losses.append(-logits.log_softmax(-1)[right])
        return torch.stack(losses).mean()

    def check_question(
        self, question: str, answer: str, labels: Sequence[str], n_image: int = 0, n_written: int = 0
    ) -> None:
        if answer not in labels:
            raise RequestError(
                f"{self.name} chooses among given answers. Every question needs labels with the right one."
            )

    @torch.no_grad()
    def answer_scores(
        self,
        embeddings: Float[Tensor, "n n_image n_text"],
        questions: Sequence[str],
        candidates: Sequence[str],
        at_once: int = 256,
    ) -> Float[Tensor, "n n_candidates"]:
        if not candidates:
            raise RequestError("There are no candidates to score; give at least one answer text.")
        rows = [
            self.logits(embeddings[i : i + 1], self.captions.texts(question, candidates))[0]
            for i, question in enumerate(questions)
        ]
        logits = torch.stack(rows)
        return F.logsigmoid(logits) if self.sigmoid else logits.log_softmax(-1)

    def generate(
        self, embeddings: Float[Tensor, "n n_image n_text"], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        raise RequestError(f"{self.name} answers closed questions only: rank labels instead of asking freely.")


def make(checkpoint: Checkpoint) -> ContrastiveFamily:
    """Load CLIP or SigLIP of transformers."""
    is_siglip = checkpoint.kind == "siglip"
    # The logarithm of the scale is stored; in half precision, its rounding would change the scale by 1 or 2 %.
    model = checkpoint.weights(SiglipModel if is_siglip else CLIPModel, torch.float32)
    scale, bias = model.logit_scale.exp().item(), model.logit_bias.item() if is_siglip else 0.0
    model = model.to(checkpoint.dtype)
    tokenizer = checkpoint.tokenizer()
    length = model.config.text_config.max_position_embeddings

    def tokenize(texts: list[str]) -> Tensor:
        # SigLIP was trained on texts that are padded to its full length, and it reads the padding.
        padding = {"padding": "max_length"} if is_siglip else {}
        ids: Tensor = tokenizer(texts, truncation=True, max_length=length, return_tensors="pt", **padding).input_ids
        return ids

    return ContrastiveFamily(
        model,
        checkpoint.pixel_format(model.config.vision_config.image_size),
        lambda pixels: model.get_image_features(pixel_values=pixels),
        tokenize,
        model.get_text_features,
        tokenizer,
        length,
        is_siglip,
        scale,
        bias,
        is_siglip,
    )


def make_open_clip(name: str) -> ContrastiveFamily:
    """Load a model of open_clip: `open_clip:NAME@TAG`, NAME@TAG, `hf-hub:…`, `local-dir:…` or its folder."""
    import open_clip

    place = f"local-dir:{name}" if Path(name, "open_clip_config.json").is_file() else name.removeprefix("open_clip:")
    # The path of a folder may contain an @.
    architecture, _, tag = (place, "", "") if place.startswith("local-dir:") else place.partition("@")
    try:
        # open_clip only warns if weights were trained with another activation than the architecture's own.
        about = open_clip.get_pretrained_cfg(architecture.replace("/", "-"), tag) if tag else {}
        model = open_clip.create_model(
            architecture,
            pretrained=tag or None,
            require_pretrained=True,
            force_quick_gelu=bool(about.get("quick_gelu")),
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # open_clip, safetensors and tokenizers each raise their own
        raise ModelError(
            f"{name!r} is not an open_clip model that can be loaded: {error} "
            "Name an architecture with its weights (ViT-B-32@openai) or a folder."
        ) from error
    size = model.visual.image_size
    preprocess = getattr(model.visual, "preprocess_cfg", {})
    bias = getattr(model, "logit_bias", None)
    return ContrastiveFamily(
        model,
        PixelFormat(
            size[0] if isinstance(size, tuple) else size,
            tuple(model.visual.image_mean or open_clip.OPENAI_DATASET_MEAN),
            tuple(model.visual.image_std or open_clip.OPENAI_DATASET_STD),
            preprocess.get("interpolation", "bicubic"),
        ),
        model.encode_image,
        tokenizer,
        lambda ids: model.encode_text(ids),
        tokenizer,
        tokenizer.context_length,
        True,
        model.logit_scale.exp().item(),
        0.0 if bias is None else bias.item(),
        bias is not None,
    )
