"""The base of a contrastive model (CLIP, SigLIP): a vision encoder and a text encoder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from optimum.exporters.onnx import OnnxConfig
from optimum.utils import NormalizedConfig
from torch import Tensor, nn

from tvp import sdk
from tvp.sdk.errors import ModelError
from tvp.sdk.formats.calibration import Calibrated
from tvp.sdk.formats.manifest import ContrastiveManifest
from tvp.sdk.formats.tokenizer import read_text_tokenizer
from tvp.trainer.data import Sample
from tvp.trainer.families.clip import ContrastiveFamily
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.task_definition import TaskDefinition

from .. import ranking
from ..attention import fused_vision_encoder, plain_vision_encoder
from ..contrastive_tokenizers import tokenizer_of
from ..graphs import Traced, config_of, export_vision_encoder, write_graph
from ..parity import Case, Parity
from ..precision import size_in_encoder
from .kind import NOT_YET, labels_of

# The exported tokenizer must give the model's own tokens for these texts: they differ in length, case, spaces,
# punctuation and script. None begins with a space, because no caption does.
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
    """The text encoder: input_ids -> text_features, of unit length."""

    def __init__(self, family: ContrastiveFamily) -> None:
        super().__init__()
        self.model, self.config = family.model, config_of(family)
        self._family = family

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.normalize(self._family.encode_ids(input_ids), dim=-1)


class TextConfig(OnnxConfig):  # type: ignore[misc]
    """Optimum's configuration of a text encoder, for any number of texts.

    Args:
        config: the model's configuration.
        ids: tokens of two texts to trace with.
        padded: whether all texts are padded to one length; otherwise the length is dynamic.
    """

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
    """Write the text encoder as a graph.

    Args:
        family: the model.
        file: where to write the graph.
        fused: whether to use onnxruntime's own operators, which TensorRT lacks. Default True.
    """
    ids = family.tokenize([TEXTS[0]]).repeat(2, 1)
    with fused_vision_encoder(family.model) if fused else plain_vision_encoder():
        write_graph(TextEncoder(family), TextConfig(config_of(family), ids, family.padded), file)


def check(family: ContrastiveFamily) -> None:
    """See `Kind.check`. Every text encoder of these families is one that the tests export."""


def write(family: ContrastiveFamily, folder: Path, fused: bool) -> ContrastiveManifest:
    """See `Kind.write`."""
    tokenizer, pad_token = tokenizer_of(family)
    tokenizer.save(os.fspath(folder / "tokenizer.json"))
    check_tokenizer(family, folder / "tokenizer.json", pad_token, TEXTS)
    export_vision_encoder(family, folder / "vision_encoder.onnx", fused)
    export_text_encoder(family, folder / "text_encoder.onnx", fused)
    with torch.no_grad():
        n_features = family.text_features([TEXTS[0]]).shape[1]
    return ContrastiveManifest(
        **NOT_YET,
        family=family.name,
        captions=family.captions,
        n_features=n_features,
        scale=float(family.scale),
        bias=float(family.bias),
        scoring="sigmoid" if family.sigmoid else "softmax",
        n_positions=family.n_positions,
        pad_token=pad_token,
    )


def check_tokenizer(family: ContrastiveFamily, file: Path, pad_token: int, texts: Iterable[str]) -> None:
    """Compare a written tokenizer with the model's own.

    Args:
        family: the model.
        file: the written tokenizer.
        pad_token: id of its padding token; -1 if it does not pad.
        texts: texts to compare.

    Raises:
        ModelError: the tokens of a text differ.
    """
    written = read_text_tokenizer(file, family.n_positions, pad_token)
    for text in texts:
        expected, found = family.tokenize([text])[0].tolist(), written.encode(text).ids
        if found != expected:
            raise ModelError(
                f"This {family.name} model cannot be exported yet: the sdk cannot reproduce its tokenizer "
                f"{type(family.tokenizer).__name__}. For {text[:40]!r} it gives {expected[:12]}, the sdk {found[:12]}."
            )


def about(family: ContrastiveFamily) -> list[str]:
    """See `Kind.about`."""
    tokenizer, pad_token = tokenizer_of(family)
    config = config_of(family).to_json_string() if hasattr(family.model, "config") else repr(family.model)
    return [
        config,
        repr((family.captions, family.scale, family.bias, family.sigmoid, family.n_positions, pad_token)),
        tokenizer.to_str(),
        version("open_clip_torch"),
    ]


def tokenizer_texts(family: ContrastiveFamily) -> dict[str, str]:
    """See `Kind.tokenizer_texts`."""
    return {"tokenizer.json": tokenizer_of(family)[0].to_str()}


def sizes(family: ContrastiveFamily, precision: str, encoder_precision: str) -> dict[str, int]:
    """See `Kind.sizes`."""
    found = {"vision_encoder.onnx": 0, "text_encoder.onnx": 0}
    for name, weight in family.model.named_parameters():
        part = "vision_encoder.onnx" if name.startswith(("vision_model.", "visual")) else "text_encoder.onnx"
        found[part] += size_in_encoder(name, weight, encoder_precision)
    return found


def cases(task: TaskDefinition, samples: Sequence[Sample]) -> list[Case]:
    """See `Kind.cases`. The labels are the task's, or the question's own."""
    found = []
    for i, sample in enumerate(samples):
        question = sample.questions[0]
        labels = labels_of(task, question, f"sample {i}")
        found.append(Case(sample.picture, task.question or question.text, labels))
    return found


def measure(
    task: sdk.Task,
    family: ContrastiveFamily,
    geometry: Geometry,
    prompt: Prompt | None,
    cases: Sequence[Case],
    n_golden: int = 0,
    exact: bool = True,
    calibration: Calibrated = (),
) -> Parity:
    """See `Kind.measure`. It compares pixel values, the order of labels and their scores; see `ranking.measure`."""
    return ranking.measure(Parity(), task, family, geometry, prompt, cases, n_golden, exact, calibration)
