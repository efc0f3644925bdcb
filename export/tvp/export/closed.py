"""The base of a model that only chooses among labels (CLIP, SigLIP): two encoders whose features are compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from optimum.exporters.onnx import OnnxConfig
from optimum.utils import NormalizedConfig
from torch import Tensor, nn

from tvp.sdk import Task as LoadedTask
from tvp.sdk._closed import compare_choice, open_tokenizer
from tvp.sdk.errors import ModelError, RequestError
from tvp.trainer.data import Sample
from tvp.trainer.families.clip import ContrastiveFamily
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.task_definition import TaskDefinition

from .attention import fused_vision_encoder, plain_vision_encoder
from .graphs import Traced, config_of, export_vision_encoder, write
from .parity import LOGITS_TOLERANCE, Parity, compare_pixels, pixel_values
from .precision import size_in_encoder
from .texts import tokenizer_of

Case = tuple[NDArray[np.uint8], str, tuple[str, ...]]  # picture, question, labels

# What both sides must read alike before anything is exported: lengths, case, spaces, marks, scripts. None begins with
# a space, as no caption does.
TEXTS = (
    "a photo of a dog",
    "A photo of a DOG.",
    "This is a photo of the digit 7",
    "two  spaces,\ta tab and\na line break ",
    "How many objects are there? 1, 23, 4567!",
    "it's the dog's, they're here & we've (not) \"gone\" - #1 @home 50% a/b a_b <c>",
    "ΑΒΓ ΟΔΟΣ",
    "naïve café, Ångström, Straße, ¿qué?",
    "собака",
    "犬の写真",
    "강아지",
    "a 🐶 photo",
    "x",
    "a very long text " * 60,
)


class TextEncoder(nn.Module):
    """input_ids -> text_features, of unit length."""

    def __init__(self, family: ContrastiveFamily) -> None:
        super().__init__()
        self.model, self.config = family.model, config_of(family)
        self._family = family

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.normalize(self._family.encode_ids(input_ids), dim=-1)


class TextConfig(OnnxConfig):  # type: ignore[misc]
    """Any number of texts, of any length or, where they are padded, of one."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    _MODEL_PATCHER = Traced

    def __init__(self, config: Any, ids: Tensor, padded: bool) -> None:
        super().__init__(config)
        self._ids, self._padded = ids, padded

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"input_ids": {0: "batch_size"} if self._padded else {0: "batch_size", 1: "sequence_length"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"text_features": {0: "batch_size"}}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Tensor]:
        return {"input_ids": self._ids}


def export_text_encoder(family: ContrastiveFamily, file: Path, fused: bool = True) -> None:
    """Write the text encoder as a graph; fused: see `graphs.export_vision_encoder`."""
    ids = family.tokenize([TEXTS[0]]).repeat(2, 1)
    with fused_vision_encoder(family.model) if fused else plain_vision_encoder():
        write(TextEncoder(family), TextConfig(config_of(family), ids, family.padded), file)


def write_contrastive(family: ContrastiveFamily, folder: Path, fused: bool) -> dict[str, Any]:
    """Write graphs and tokenizer to a folder; returns what the manifest says of them.

    fused: see `graphs.export_vision_encoder`.
    Raises ModelError for a model whose tokenizer cannot be written.
    """
    tokenizer, pad_token = tokenizer_of(family)
    tokenizer.save(os.fspath(folder / "tokenizer.json"))
    refuse_other_tokens(family, folder / "tokenizer.json", pad_token, TEXTS)
    export_vision_encoder(family, folder / "vision_encoder.onnx", fused)
    export_text_encoder(family, folder / "text_encoder.onnx", fused)
    with torch.no_grad():
        n_features = family.text_features([TEXTS[0]]).shape[1]
    return {
        "kind": "closed",
        "family": family.name,
        "captions": {"begun": family.captions.begun, "asked": family.captions.asked},
        "n_features": n_features,
        "scale": float(family.scale),
        "bias": float(family.bias),
        "scoring": "sigmoid" if family.sigmoid else "softmax",
        "n_positions": family.n_positions,
        "pad_token": pad_token,
    }


def refuse_other_tokens(family: ContrastiveFamily, file: Path, pad_token: int, texts: Iterable[str]) -> None:
    """Raise ModelError where a written tokenizer gives other tokens than the model's own for one of the texts."""
    written = open_tokenizer(file, family.n_positions, pad_token)
    for text in texts:
        expected, found = family.tokenize([text])[0].tolist(), written.encode(text).ids
        if found != expected:
            raise ModelError(
                f"This {family.name} model cannot be exported yet: its tokenizer {type(family.tokenizer).__name__} "
                f"has no equal that the sdk can read (of {text[:40]!r} it makes {expected[:12]}, and not {found[:12]})."
            )


def about(family: ContrastiveFamily) -> list[str]:
    """What a base of this kind is made from, besides weights and versions."""
    tokenizer, pad_token = tokenizer_of(family)
    config = config_of(family).to_json_string() if hasattr(family.model, "config") else repr(family.model)
    return [
        config,
        repr((family.captions, family.scale, family.bias, family.sigmoid, family.n_positions, pad_token)),
        tokenizer.to_str(),
        version("open_clip_torch"),
    ]


def tokenizer_text(family: ContrastiveFamily) -> str:
    tokenizer, _ = tokenizer_of(family)
    text: str = tokenizer.to_str()
    return text


def sizes(family: ContrastiveFamily, precision: str) -> dict[str, int]:
    """Bytes of the weights of each graph."""
    found = {"vision_encoder.onnx": 0, "text_encoder.onnx": 0}
    for name, weight in family.model.named_parameters():
        part = "vision_encoder.onnx" if name.startswith(("vision_model.", "visual")) else "text_encoder.onnx"
        found[part] += size_in_encoder(name, weight, precision)
    return found


def contrastive_cases(task: TaskDefinition, samples: Sequence[Sample]) -> list[Case]:
    """Pictures with what is asked about them and what it is chosen from: the task's labels, or the question's own.

    Raises RequestError where there is nothing to choose from.
    """
    cases = []
    for i, sample in enumerate(samples):
        question = sample.questions[0]
        labels = task.labels or question.labels
        if not labels:
            raise RequestError(
                f"The task {task.name!r} has no labels, and neither has its data (sample {i}: {question.text!r}). This "
                "model only chooses among labels: take a task with labels, or data whose questions have some."
            )
        cases.append((sample.picture, task.question or question.text, tuple(labels)))
    return cases


@torch.no_grad()
def measure_contrastive(
    task: LoadedTask,
    family: ContrastiveFamily,
    geometry: Geometry,
    prompt: Prompt | None,
    cases: Sequence[Case],
    n_golden: int = 0,
    exact: bool = True,
) -> Parity:
    """Rank every case's labels on both sides and compare pixel values, order and scores; `tvp.export.parity.measure`
    for models that only choose.

    In the report `tokens_equal` counts cases with the same order (exact: False: with the same best label), and
    `logits` is the largest difference of a score.
    """
    report = Parity()
    for picture, question, labels in cases:
        where = f"case {report.n_cases} ({picture.shape[1]} x {picture.shape[0]}, {question!r})"
        report.n_cases += 1
        given = torch.from_numpy(task.pixel_values(picture))
        expected = pixel_values(family, geometry, prompt, picture)
        gap = compare_pixels(report, family, given.numpy(), expected.numpy())
        view, tolerance = task.see(picture), LOGITS_TOLERANCE if exact else float("inf")
        case = golden_case(family, given, f"{len(report.golden)}.png", question, labels)
        difference, far = compare_choice(view, case, tolerance)
        report.logits = float(np.maximum(report.logits, far))
        report.tokens_equal += not difference
        report.differences += [f"{where}: {difference}"] if difference else []
        own = golden_case(family, expected, "", question, labels) if gap else case
        report.end_to_end_equal += not compare_choice(view, own, tolerance)[0]
        if len(report.golden) < n_golden:
            report.golden.append((picture, case))
            report.n_golden_different += bool(difference)
    return report


def golden_case(
    family: ContrastiveFamily, pixels: Tensor, picture: str, question: str, labels: Sequence[str]
) -> dict[str, Any]:
    """PyTorch's scores of labels for pixel values (1, 3, size, size), as `check` compares them."""
    scores = family.answer_scores(family.see(pixels), [question], labels)[0]
    return {
        "picture": picture,
        "question": question,
        "labels": list(labels),
        "scores": [float(f"{score:.7g}") for score in scores.tolist()],
        "text": labels[int(scores.argmax())],
    }
