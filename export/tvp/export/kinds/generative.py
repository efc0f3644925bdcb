"""The common parts of causal and seq2seq exports: vision encoder, connector, embeddings, tokenizers, comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tvp import sdk
from tvp.sdk.formats.calibration import Calibrated
from tvp.trainer.data import Sample
from tvp.trainer.evaluate import MAX_NEW_TOKENS
from tvp.trainer.families.family import GenerativeFamily
from tvp.trainer.families.instructblip import QuestionAwareFamily
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.task_definition import TaskDefinition

from .. import graphs, parity
from ..parity import Case, Parity
from ..precision import BYTES, size_in_encoder
from ..tokenizer import fast, write_tokenizer
from .kind import NOT_YET


def write_shared(family: GenerativeFamily, folder: Path, fused: bool) -> None:
    """Write every file of a base but its language model."""
    # The tokenizer comes first: if the sdk cannot use it, the export fails at once, and not after minutes.
    write_tokenizer(family.tokenizer, folder / "tokenizer.json", family)
    if family.reads_question:
        reader = cast(QuestionAwareFamily, family)
        write_tokenizer(reader.qformer_tokenizer, folder / "connector_tokenizer.json")
        graphs.export_connector(reader, folder / "connector.onnx")
    graphs.export_vision_encoder(family, folder / "vision_encoder.onnx", fused)
    graphs.export_embeddings(family, folder / "embed_tokens.npy")


def facts(family: GenerativeFamily) -> dict[str, Any]:
    """Return the manifest's fields of every generative model, by the names of `GenerativeManifest`."""
    n_kv_heads, head_size = graphs.cache_shape(family)
    with torch.no_grad():
        size = family.pixel_format.size
        n_image_tokens = family.see(torch.zeros(1, 3, size, size), ["a"]).shape[1]
    return {
        **NOT_YET,
        "family": family.name,
        "layout": family.layout,
        "n_image_tokens": n_image_tokens,
        "n_text": family.embed_tokens.embedding_dim,
        "n_kv_heads": n_kv_heads,
        "head_size": head_size,
        "n_vocab": family.embed_tokens.num_embeddings,
        "n_positions": n_positions(family),
        "n_connector_positions": getattr(family, "n_question_positions", 0),
    }


def n_positions(family: GenerativeFamily) -> int:
    """Return the largest number of tokens that a bundle of the model can read; 0 if there is no limit.

    Exported attention has no sliding window, and no angles that depend on the length. A text ends where the window
    would begin to slide, or the angles would change.
    """
    config, bounds = family.text_config, [family.n_positions]
    types = getattr(config, "layer_types", None) or ["sliding"]
    if any("sliding" in kind or "chunked" in kind for kind in types):
        bounds += [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if getattr(config, "attn_temperature_tuning", False):  # Llama 4: queries grow with their position, from there on
        bounds.append(int(config.floor_scale) - 1)
    rotary = {getattr(module, "rope_type", None) for module in family.model.modules()}
    if "longrope" in rotary:  # other factors behind it
        bounds.append(getattr(config, "original_max_position_embeddings", None))
    return min((int(bound) for bound in bounds if isinstance(bound, int) and bound > 0), default=0)


def about(family: GenerativeFamily) -> list[str]:
    """See `Kind.about`."""
    return [family.model.config.to_json_string(), repr(family.layout), *tokenizer_texts(family).values()]


def tokenizer_texts(family: GenerativeFamily) -> dict[str, str]:
    """See `Kind.tokenizer_texts`."""
    texts = {"tokenizer.json": fast(family.tokenizer).to_str()}
    if family.reads_question:
        texts["connector_tokenizer.json"] = fast(cast(QuestionAwareFamily, family).qformer_tokenizer).to_str()
    return texts


def weight_sizes(
    family: GenerativeFamily, parts: Sequence[nn.Module], head: nn.Module, precision: str, encoder_precision: str
) -> dict[str, int]:
    """Return the bytes of each graph's weights, by file; see `Kind.sizes`.

    The vision encoder's figure includes the connector, and the decoder's includes T5's encoder.

    Args:
        family: the model.
        parts: the modules of the language model.
        head: the module that makes logits.
        precision: of the language model.
        encoder_precision: of everything else.
    """
    table: Any = family.embed_tokens.weight
    text = {id(weight): weight.numel() for part in parts for weight in part.parameters()} | {id(table): table.numel()}
    encoder = sum(
        size_in_encoder(name, weight, encoder_precision)
        for name, weight in family.model.named_parameters()
        if id(weight) not in text
    )
    named = (pair for part in parts for pair in part.named_parameters())
    kept = sum(weight.numel() for name, weight in named if ".DenseReluDense.wo." in name)  # fp32 in an fp16 base too
    if head.weight is not table:
        del text[id(table)]  # only embed_tokens.npy holds it
    return {
        "vision_encoder.onnx": encoder,
        "decoder_model_merged.onnx": int(sum(text.values()) * BYTES[precision]) + 2 * kept * (precision == "fp16"),
        "embed_tokens.npy": table.numel() * (4 if precision == "fp32" else 2),
    }


def cases(task: TaskDefinition, samples: Sequence[Sample]) -> list[Case]:
    """See `Kind.cases`."""
    return [Case(sample.picture, task.question or sample.questions[0].text) for sample in samples]


def measure(
    task: sdk.Task,
    family: GenerativeFamily,
    geometry: Geometry,
    prompt: Prompt | None,
    cases: Sequence[Case],
    n_golden: int,
    exact: bool,
    calibration: Calibrated = (),
) -> Parity:
    """See `Kind.measure`. A calibration changes no written answer."""
    report = parity.measure(task, family, geometry, prompt, cases, MAX_NEW_TOKENS, n_golden)
    with torch.no_grad():
        n_image = family.see(torch.zeros(1, 3, *[family.pixel_format.size] * 2), ["a"]).shape[1]
    long = parity.long_case(family, n_positions(family), n_image, cases[0], MAX_NEW_TOKENS)
    if long is not None:  # positions and windows show only there
        further = parity.measure(task, family, geometry, prompt, [long], MAX_NEW_TOKENS, end_to_end=False)
        report.logits = float(np.maximum(report.logits, further.logits))
        report.differences += [f"near the end of the context, {said}" for said in further.differences]
    return report
