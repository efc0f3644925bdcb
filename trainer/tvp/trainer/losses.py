"""The losses that make a prompt transfer to other models, and the guide that one of them asks.

Source of Feature Consistency Alignment and Task Semantics Enrichment: "Exploring the Transferability of Visual
Prompting for Multimodal Large Language Models" (CVPR 2024, arXiv 2404.11207), equations of section 3. Moments are kin
to those of ActMAD (CVPR 2023, arXiv 2211.12870), which moves the weights of a model; here the picture moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tvp.sdk.errors import ModelError

from .families import Family, GenerativeFamily
from .families.clip import make_open_clip, refuse_unknown_open_clip
from .zoo import locate


def feature_consistency(
    prompted: Float[Tensor, "n n_image n_text"], clean: Float[Tensor, "n n_image n_text"]
) -> Float[Tensor, ""]:
    """L_FCA: the Euclidean distance between prompted and clean embeddings, averaged over pictures and image tokens.

    The distance is not squared. At distance zero its gradient is zero, not NaN.
    """
    return distance(prompted, clean).mean()


def distance(features: Float[Tensor, "n n_tokens width"], reference: Float[Tensor, "n n_tokens width"]) -> Tensor:
    """Return for each picture the Euclidean distance of its features from the reference, averaged over tokens; (n)."""
    squared = (features.float() - reference.float()).square().sum(-1)
    zero = squared == 0
    return torch.where(zero, 0.0, squared.masked_fill(zero, 1.0).sqrt()).mean(-1)


def length(features: Float[Tensor, "n n_tokens width"]) -> Tensor:
    """Return for each picture the length of its features, averaged over tokens; (n)."""
    lengths: Tensor = torch.linalg.vector_norm(features.float(), dim=-1)
    return lengths.mean(-1)


@dataclass(frozen=True)
class Moments:
    """The first and second moments of features, as sums over pictures, which parts of a batch add up to.

    Args:
        n_pictures, n_tokens: the number of pictures, and of tokens of all pictures.
        sums: (4, width): of the features less `centre`, of their squares, of the pictures' mean tokens less `centre`,
            and of the squares of these.
        centre: (width), near the mean, so that differences of large numbers keep their digits.
    """

    n_pictures: int
    n_tokens: int
    sums: Float[Tensor, "4 width"]
    centre: Float[Tensor, " width"]

    @staticmethod
    def of(features: Float[Tensor, "n n_tokens width"], centre: Float[Tensor, " width"]) -> Moments:
        n, n_tokens = features.shape[:2]
        moved = features.float() - centre
        means = moved.mean(1)
        sums = torch.stack([moved.sum((0, 1)), moved.square().sum((0, 1)), means.sum(0), means.square().sum(0)])
        return Moments(n, n * n_tokens, sums, centre)

    def __add__(self, other: Moments) -> Moments:
        """Add the moments of other pictures, with the same centre."""
        n_pictures, n_tokens = self.n_pictures + other.n_pictures, self.n_tokens + other.n_tokens
        return Moments(n_pictures, n_tokens, self.sums + other.sums, self.centre)

    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean, the spread over pictures and tokens, and the spread over pictures of the mean token."""
        mean, square = self.sums[:2] / self.n_tokens
        mean_of_means, square_of_means = self.sums[2:] / self.n_pictures
        return mean + self.centre, _spread(square - mean**2), _spread(square_of_means - mean_of_means**2)

    def distance(self, reference: Moments) -> Float[Tensor, ""]:
        """Return the distance of the three vectors from the reference's, each relative to it, added up."""
        pairs = zip(self.vectors(), reference.vectors(), strict=True)
        return torch.stack([(mine - theirs).norm() / theirs.norm().clamp(min=1e-12) for mine, theirs in pairs]).sum()


def _spread(variance: Tensor) -> Tensor:
    return variance.clamp(min=1e-12).sqrt()  # the slope of a root at zero is infinite


def refuse_unknown_guide(name: str | Path, fetch: bool = True) -> None:
    """Refuse a name that `Guide` would refuse before it reads weights; the arguments are the same.

    Raises:
        ModelError: there is no such model.
    """
    place = locate(name)
    with _told():
        refuse_unknown_open_clip(place, fetch)


@contextmanager
def _told() -> Iterator[None]:
    """Say of a model that cannot be loaded that it is the guide, and that the zoo has one."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"The guide {error} The zoo has one, zoo:guide.") from error


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
        with _told():
            self._clip = make_open_clip(place, fetch)
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


def choice_loss(
    family: Family,
    embeddings: Float[Tensor, "n n_image n_text"],
    questions: Sequence[str],
    answers: Sequence[str],
    candidates: Sequence[Sequence[str]],
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the right answer among the scores of its candidates.

    It asks for the choice alone. `answer_loss` also asks that the answer be likelier than all other texts.

    Args:
        family: the model. Of a contrastive one it is its `answer_loss`, which chooses already.
        embeddings: of each question's picture.
        questions: the texts.
        answers: the right answers, each one of its candidates.
        candidates: for each question the answers to choose from.
    """
    if not isinstance(family, GenerativeFamily):
        return family.answer_loss(embeddings, questions, answers, candidates)
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for i, labels in enumerate(candidates):
        rows_of.setdefault(tuple(labels), []).append(i)
    losses = []
    for labels, rows in rows_of.items():
        # All at once: a cache that a gradient passes through cannot be copied for a second part.
        scores = family.answer_scores(embeddings[rows], [questions[i] for i in rows], labels, len(rows) * len(labels))
        right = torch.tensor([labels.index(answers[i]) for i in rows], device=scores.device)
        losses.append(F.cross_entropy(scores.float(), right, reduction="sum"))
    return torch.stack(losses).sum() / len(answers)
