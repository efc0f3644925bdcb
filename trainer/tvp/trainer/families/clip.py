"""CLIP and SigLIP: they choose among given answers, the one whose text fits the picture best.

Models come from transformers, or from open_clip (a folder with open_clip_config.json, or `open_clip:NAME@TAG`).
Sources: CLIP (arXiv 2103.00020), SigLIP (arXiv 2303.15343).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, SiglipModel

from tvp.sdk.errors import ModelError, RequestError
from tvp.sdk.formats.layout import CaptionTemplates, refuse_half_characters

from .. import hub
from ._checkpoint import SAFE, Checkpoint
from ._gate import OPEN_CLIP, check_texts, check_weights, read_json
from ._translate import tokenizer_options
from .family import Family
from .pixels import KERNELS, PixelFormat

OPEN_CLIP_WEIGHTS = ("open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


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
                refuse_half_characters("text", text)
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


def make_open_clip(name: str, fetch: bool = True) -> ContrastiveFamily:
    """Load a model of open_clip: `open_clip:NAME@TAG`, NAME@TAG, `hf-hub:…`, `local-dir:…` or its folder.

    Args:
        name: of the model.
        fetch: whether it may be downloaded. Default True.
    """
    import open_clip

    place, in_folder = _place_of(name)
    with _told(name):
        if in_folder:
            model, tokenizer = _open_clip_of_folder(name, place, fetch)
        else:
            model, tokenizer = _open_clip_by_name(place, fetch and not hub.offline())
    size = model.visual.image_size
    if isinstance(size, tuple) and size[0] != size[1]:
        raise ModelError(f"{name!r} takes pictures of {size[0]} x {size[1]} px. TVP shows squares.")
    preprocess = getattr(model.visual, "preprocess_cfg", {})
    filter, mode = preprocess.get("interpolation", "bicubic"), preprocess.get("mode", "RGB")
    if filter not in KERNELS or mode != "RGB":
        raise ModelError(
            f"{name!r} resizes by {filter!r} and reads {mode!r}. TVP resizes by {', '.join(KERNELS)}, and reads 'RGB'."
        )
    bias = getattr(model, "logit_bias", None)
    return ContrastiveFamily(
        model,
        PixelFormat(
            size[0] if isinstance(size, tuple) else size,
            tuple(model.visual.image_mean or open_clip.OPENAI_DATASET_MEAN),
            tuple(model.visual.image_std or open_clip.OPENAI_DATASET_STD),
            filter,
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


def input_side_of_open_clip(name: str, fetch: bool = True) -> int:
    """Return the side of the pictures that a model of open_clip takes, px; 0 where its settings do not say."""
    place, in_folder = _place_of(name)
    try:
        if in_folder:
            about = read_json(_texts_of(name, place, fetch) / OPEN_CLIP, name)["model_cfg"]
        else:
            import open_clip

            about = open_clip.get_model_config(place.partition("@")[0].replace("/", "-")) or {}
        size = about.get("vision_cfg", {}).get("image_size", 0)
    except (OSError, LookupError, AttributeError, TypeError):  # which `make_open_clip` says
        return 0
    return size if type(size) is int and size > 0 else 0


def refuse_unknown_open_clip(name: str, fetch: bool = True) -> None:
    """Refuse a name that `make_open_clip` would refuse before it reads weights; the arguments are the same.

    Raises:
        ModelError: there is no such model.
    """
    place, in_folder = _place_of(name)
    with _told(name):
        if in_folder:
            _texts_of(name, place, fetch)
        else:
            _known(place)


def _place_of(name: str) -> tuple[str, bool]:
    """Return an open_clip model's place, and whether it is a folder or a hub id; else it is a name of open_clip."""
    place = name.removeprefix("open_clip:").removeprefix("local-dir:")
    return place.removeprefix("hf-hub:"), place.startswith("hf-hub:") or Path(place).is_dir()


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn every failure into a ModelError that names the model."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{name!r} is not an open_clip model that can be loaded: {error}") from error
    except Exception as error:  # open_clip, safetensors and tokenizers each raise their own
        raise ModelError(
            f"{name!r} is not an open_clip model that can be loaded: {error} "
            "Name an architecture with its weights (ViT-B-32@openai) or a folder."
        ) from error


def _texts_of(name: str, place: str, fetch: bool) -> Path:
    """Return the folder of a model's texts, which have been looked at; `place` is a folder or a hub id."""
    folder = hub.texts_of(name, place, fetch)
    if not (folder / OPEN_CLIP).is_file():
        raise ModelError(f"It has no {OPEN_CLIP}.")
    check_texts(folder, name)
    return folder


def _open_clip_of_folder(name: str, place: str, fetch: bool) -> tuple[Any, Any]:
    """Load model and tokenizer of a folder or of a hub's repository, once its files have been looked at."""
    import open_clip

    folder = _texts_of(name, place, fetch)
    hub.add_weights(name, place, folder, fetch)
    check_weights(folder, name)
    text = read_json(folder / OPEN_CLIP, name)["model_cfg"]["text_cfg"]
    options = SAFE | tokenizer_options(folder, name) if text.get("hf_tokenizer_name") else {}
    architecture = f"local-dir:{folder}"
    return (
        open_clip.create_model(architecture, require_pretrained=True),
        open_clip.get_tokenizer(architecture, **options),
    )


def _open_clip_by_name(name: str, fetch: bool) -> tuple[Any, Any]:
    """Load one of open_clip's own architectures with weights from its own table, or from a file."""
    import open_clip

    architecture, tag, about = _known(name)
    text = (open_clip.get_model_config(architecture) or {}).get("text_cfg", {})
    others = [text[key] for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)]
    weights = Path(tag) if not about else None if fetch else _cached(about)
    if not fetch and (weights is None or others):
        raise ModelError(
            f"{name} needs {', '.join([*others, 'its weights'])} of a hub, and nothing is fetched: --offline, "
            "HF_HUB_OFFLINE, or a name in a file. Name it yourself (--model, --guide), or take a folder."
        )
    # open_clip only warns if weights were trained with another activation than the architecture's own.
    model = open_clip.create_model(
        architecture,
        pretrained=str(weights or tag),
        require_pretrained=True,
        force_quick_gelu=bool(about.get("quick_gelu")),
        force_preprocess_cfg=about,  # a file alone has none
    )
    options = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    return model, open_clip.get_tokenizer(architecture, **options)


def _known(name: str) -> tuple[str, str, dict[str, Any]]:
    """Return an architecture of open_clip, its tag, and what open_clip's table says of these weights."""
    import open_clip

    architecture, _, tag = name.partition("@")
    architecture = architecture.replace("/", "-")
    about = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if not about and not Path(tag).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ModelError(
            f"There are no weights {tag!r} of {architecture!r}; open_clip has {known}. "
            "Name an architecture with its weights (ViT-B-32@openai) or a folder."
        )
    return architecture, tag, about


def _cached(about: dict[str, Any]) -> Path | None:
    """Return the file of an open_clip model's weights where the hub's cache or open_clip's own has it."""
    from huggingface_hub import try_to_load_from_cache

    owner, _, file = str(about.get("hf_hub", "")).rpartition("/")
    stem = file.rpartition(".")[0]
    for wanted in [f"{stem}.safetensors", file] if file else ["open_clip_model.safetensors", *OPEN_CLIP_WEIGHTS]:
        found = try_to_load_from_cache(owner, wanted) if owner else None
        if isinstance(found, str):
            return Path(found)
    own = Path.home() / ".cache" / "clip" / Path(str(about.get("url", ""))).name
    return own if own.is_file() else None
