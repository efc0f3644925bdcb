"""The zoo's guide: a CLIP model of its own, for Task Semantics Enrichment, in open_clip's layout."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from . import models, words
from .lessons import MEAN, STD, Lesson
from .teach import run

CONFIG = {
    "embed_dim": 96,
    "vision_cfg": {
        "image_size": models.CANVAS,
        "patch_size": models.PATCH,
        "width": 128,
        "layers": 3,
        "head_width": 32,
        "mlp_ratio": 3.0,
        "patch_dropout": 0.4,
        "pool_type": "avg",
    },
    "text_cfg": {
        "context_length": 40,
        "vocab_size": words.N_VOCAB,
        "width": 96,
        "heads": 4,
        "layers": 2,
        "pool_type": "eos",
        "eos_id": 2,
        "hf_tokenizer_name": "tokenizer.json beside this file",
    },
}
TEMPLATE = "this is a photo of {}"


def make() -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """An untrained guide and its tokenizer, which ends every text with the end token."""
    tokenizer = words.make_tokenizer("guide")
    tokenizer.padding_side = "right"
    return open_clip.CLIP(**CONFIG), tokenizer


def loss(model: nn.Module, tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[Tensor, dict[str, float]]:
    """Contrast of pictures and captions; a caption is right for every picture that has the same caption."""
    texts = [TEMPLATE.format(caption) for caption in lesson.captions]
    distinct = list(dict.fromkeys(texts))
    ids = tokenizer(
        distinct, padding="max_length", max_length=CONFIG["text_cfg"]["context_length"], return_tensors="pt"
    ).input_ids
    seen = F.normalize(model.encode_image(lesson.pixels), dim=-1)
    read = F.normalize(model.encode_text(ids), dim=-1)
    scale = model.logit_scale.exp().clamp(max=100)
    logits = scale * seen @ read.T
    target = torch.tensor([distinct.index(text) for text in texts])
    same = F.one_hot(target, len(distinct)).float()
    backwards = -(logits.T.log_softmax(-1) * (same.T / same.sum(0)[:, None])).sum(-1).mean()
    right = (logits.argmax(-1) == target).float()
    is_photo = lesson.photo >= 0
    shown = {"scene": right[~is_photo].mean().item()}
    if is_photo.any():
        shown["photo"] = right[is_photo].mean().item()
    return (F.cross_entropy(logits, target) + backwards) / 2, shown


def teach(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, checkpoint: Path, n_steps: int, lessons: object
) -> None:
    """Train the guide; continues from the checkpoint."""
    model.train()  # for its patch dropout
    run(
        "guide",
        checkpoint,
        n_steps,
        1.5e-3,
        list(model.parameters()),
        model,
        lessons,  # type: ignore[arg-type]
        lambda lesson: loss(model, tokenizer, lesson),
    )
    model.eval()


def save(model: nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder that open_clip's `local-dir:` reads, with weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN.flatten().tolist(), "std": STD.flatten().tolist(), "interpolation": "bicubic"}
    about = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about, indent=2) + "\n")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
