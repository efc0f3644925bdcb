"""Export of a frozen model's parts as ONNX graphs, with Optimum. The parts and their configurations are TVP's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from optimum.exporters.onnx import OnnxConfig
from optimum.exporters.onnx import export as optimum_export
from optimum.exporters.onnx.model_patcher import ModelPatcher
from optimum.utils import NormalizedConfig
from torch import Tensor, nn
from transformers import PretrainedConfig

from tvp.sdk.errors import ModelError
from tvp.trainer.families.causal import CausalFamily
from tvp.trainer.families.family import Family, GenerativeFamily
from tvp.trainer.families.instructblip import QuestionAwareFamily

from .attention import fused_vision_encoder, observed_heads, plain_vision_encoder
from .fuse import fuse_gelu, rewrite

OPSET = 18
N_DUMMY = 5  # tokens in the sequence that is traced; the axis is dynamic


class VisionEncoder(nn.Module):
    """The vision encoder, with the connector unless that reads the question.

    With the connector: pixel_values -> image_embeds. Without: pixel_values -> image_features.
    """

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.model = family.model
        self.config = config_of(family)
        self._family = family

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self._family.encode(pixel_values) if self._family.reads_question else self._family.see(pixel_values)


class Connector(nn.Module):
    """A connector that reads the question: image_features and the connector's tokens of it -> image_embeds."""

    def __init__(self, family: QuestionAwareFamily) -> None:
        super().__init__()
        self.model = family.model
        self.config = family.model.config
        self._family = family

    def forward(self, image_features: Tensor, question_ids: Tensor, question_mask: Tensor) -> Tensor:
        return self._family.connect_ids(image_features, question_ids, question_mask)


class Traced(ModelPatcher):  # type: ignore[misc]
    """Optimum's patches for tracing, but for its conversion of caches and outputs: TVP's modules return tuples."""

    def __init__(self, config: OnnxConfig, model: nn.Module, model_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(config, model, model_kwargs)
        self.patched_forward = self.orig_forward


class VisionEncoderConfig(OnnxConfig):  # type: ignore[misc]
    """Optimum's configuration of a vision encoder.

    Args:
        config: the model's configuration.
        size: side of the pixel values, px. It is fixed in the graph, for TensorRT.
        batches: whether the encoder takes any number of pictures; otherwise it takes one.
        output: name of the graph's output.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    _MODEL_PATCHER = Traced

    def __init__(self, config: Any, size: int, batches: bool, output: str) -> None:
        super().__init__(config)
        self._size, self._n, self._axes = size, 2 if batches else 1, {0: "batch_size"} if batches else {}
        self._output = output

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": self._axes}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {self._output: self._axes}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(self._n, 3, self._size, self._size)}


class ConnectorConfig(OnnxConfig):  # type: ignore[misc]
    """Optimum's configuration of a connector that reads the question.

    Args:
        config: the model's configuration.
        features: image features of two pictures to trace with.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    _MODEL_PATCHER = Traced

    def __init__(self, config: Any, features: Tensor) -> None:
        super().__init__(config)
        self._features = features

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        tokens = {0: "batch_size", 1: "question_length"}
        return {"image_features": {0: "batch_size"}, "question_ids": tokens, "question_mask": tokens}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"image_embeds": {0: "batch_size"}}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Tensor]:
        ones = torch.ones(2, N_DUMMY, dtype=torch.int64)
        return {"image_features": self._features, "question_ids": ones, "question_mask": ones.clone()}


def export_vision_encoder(family: Family, file: Path, fused: bool = True) -> None:
    """Write the vision encoder as a graph, with the connector unless that reads the question.

    Args:
        family: the model.
        file: where to write the graph.
        fused: whether to use onnxruntime's own operators, which TensorRT lacks. Default True.
    """
    output = "image_features" if family.reads_question else "image_embeds"
    config = VisionEncoderConfig(config_of(family), family.pixel_format.size, family.encoder_batches, output)
    with fused_vision_encoder(family.model) if fused else plain_vision_encoder():
        write_graph(VisionEncoder(family), config, file)
    if fused:
        rewrite(file, fuse_gelu)


def export_connector(family: QuestionAwareFamily, file: Path) -> None:
    """Write a connector that reads the question as a graph."""
    size = family.pixel_format.size
    with torch.no_grad():
        features = family.encode(torch.zeros(2, 3, size, size))
    write_graph(Connector(family), ConnectorConfig(family.model.config, features), file)


@torch.no_grad()
def export_embeddings(family: GenerativeFamily, file: Path) -> None:
    """Write the token embeddings to a NumPy file, float32 (n_vocab, n_text), that the sdk maps into memory."""
    np.save(file, embeddings_of(family).cpu().numpy().astype(np.float32), allow_pickle=False)


def embeddings_of(family: GenerativeFamily, ids: Tensor | None = None) -> Tensor:
    """Return the embeddings of token ids, by default of all; some models multiply the table (Gemma 3, BioGPT)."""
    table = family.embed_tokens
    if ids is None and type(table) is nn.Embedding:
        return table.weight.detach()
    ids = torch.arange(len(table.weight)) if ids is None else ids  # type: ignore[arg-type]
    return table(ids.to(family.device)).detach()  # type: ignore[no-any-return]


def config_of(family: Family) -> Any:
    """Return the model's configuration for Optimum; an empty one for open_clip's models, which have none."""
    return getattr(family.model, "config", None) or PretrainedConfig()


@torch.no_grad()
def cache_shape(family: GenerativeFamily) -> tuple[int, int]:
    """Return the number of key and value heads, and the size of a head in the cache.

    Raises:
        ModelError: they differ from layer to layer.
    """
    config = family.text_config
    if isinstance(family, CausalFamily) and family.scorer is not None:
        inputs = family.embed_tokens.weight[:2][None]  # type: ignore[index]
        with observed_heads(family.decoder) as found:
            family.own_logits(inputs, 2, 0, 1)
        if len(set(found)) > 1:
            raise ModelError(f"its layers have key and value heads of different numbers or sizes: {sorted(set(found))}")
        if found:
            return found[0]
        raise ModelError(
            f"the attention of {type(family.decoder).__name__} does not use transformers' attention interface"
        )
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    if hasattr(config, "d_kv"):  # T5
        return n_kv_heads, config.d_kv
    return n_kv_heads, getattr(config, "head_dim", None) or config.hidden_size // n_heads


def write_graph(module: nn.Module, config: OnnxConfig, file: Path) -> None:
    """Trace a module with Optimum and write its graph.

    Args:
        module: the module, on the CPU in fp32.
        config: names, dynamic axes and example inputs.
        file: where to write the graph.
    """
    # Where an operator is missing, torch prints the whole graph, although its log is off (it asks a function's name
    # instead of calling it, in setup_onnx_logging of its utils.py).
    quiet = mock.patch.object(torch._C, "_jit_onnx_log", return_value=None)
    torch.onnx.register_custom_op_symbolic("aten::expm1", _expm1_symbol, OPSET)  # type: ignore[attr-defined]
    with _keep_configs(module), warnings.catch_warnings(), quiet:
        # Tracing warns about every Python number. The parity gate decides whether the graph is right.
        warnings.simplefilter("ignore")
        optimum_export(module, config, file, opset=OPSET, disable_dynamic_axes_fix=True)


def _is_config(value: Any) -> bool:
    return isinstance(value, PretrainedConfig)


def _expm1_symbol(g: Any, values: Any) -> Any:
    one = g.op("Constant", value_t=torch.tensor(1.0))
    return g.op("Sub", g.op("Exp", values), one)


@contextmanager
def _keep_configs(module: nn.Module) -> Iterator[None]:
    """Restore the configurations at the end: Optimum changes use_cache and return_dict and leaves them so."""
    found = [m.config for m in module.modules() if hasattr(m, "config")]
    for config in found:  # those inside others too, which stay the same objects
        found += [
            value for value in config.__dict__.values() if _is_config(value) and not any(value is c for c in found)
        ]
    before = [
        (config, {name: v if _is_config(v) else copy.deepcopy(v) for name, v in config.__dict__.items()})
        for config in {id(config): config for config in found}.values()
    ]
    try:
        yield
    finally:
        for config, state in before:
            config.__dict__.clear()
            config.__dict__.update(state)
