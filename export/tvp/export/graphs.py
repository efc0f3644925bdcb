"""A frozen model as ONNX graphs, through Optimum's export with configurations of our own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

from .attention import (
    NewKeyValues,
    angles_of,
    current_cache,
    fused_attention,
    fused_vision_encoder,
    plain_vision_encoder,
)
from .fuse import fuse_attention, fuse_gelu, fuse_norms, rewrite

OPSET = 18
N_DUMMY = 5  # tokens in the sequence that is traced; the axis is dynamic
CAPACITY_DUMMY = 16


class VisionEncoder(nn.Module):
    """pixel_values -> image_embeds: the vision encoder with everything up to the language model; or, where what
    comes next reads the question, pixel_values -> image_features: the vision encoder alone."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.model = family.model
        self.config = config_of(family)
        self._family = family

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self._family.encode(pixel_values) if self._family.reads_question else self._family.see(pixel_values)


class Connector(nn.Module):
    """image_features and a question in the connector's own tokens -> image_embeds."""

    def __init__(self, family: QuestionAwareFamily) -> None:
        super().__init__()
        self.model = family.model
        self.config = family.model.config
        self._family = family

    def forward(self, image_features: Tensor, question_ids: Tensor, question_mask: Tensor) -> Tensor:
        return self._family.connect_ids(image_features, question_ids, question_mask)


class Decoder(nn.Module):
    """inputs_embeds and past keys and values -> logits of the last positions, present keys and values."""

    def __init__(self, family: CausalFamily) -> None:
        super().__init__()
        self.decoder, self.head = family.decoder, family.head
        self.config = family.model.config
        self.prefix, self._positions = family.n_causal is not None, family.decoder_positions
        angles = None
        if family.position_axes == 1 and not self.prefix:
            angles = angles_of(family.decoder, family.n_positions)
        self.turned = angles is not None
        cos, sin = angles or (None, None)
        self.register_buffer("cos_cache", cos)
        self.register_buffer("sin_cache", sin)

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        num_logits_to_keep: Tensor,
        past_key_values: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, ...]:
        angles: Any = (self.cos_cache, self.sin_cache) if self.turned else None
        cache = NewKeyValues(past_key_values, seqlens_k, total_sequence_length, angles, self.prefix)
        with current_cache(cache):
            hidden = self.decoder(
                inputs_embeds=inputs_embeds,
                position_ids=self._positions(position_ids),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        n_new = inputs_embeds.shape[1]
        first: Any = n_new - num_logits_to_keep  # a tensor, so that tracing keeps it as an input
        kept = torch.arange(first, n_new)  # the head is costly: only where it is needed
        logits = self.head(hidden.index_select(1, kept))
        present = [pair for pair in cache.present if pair is not None]
        if len(present) < len(cache.present):
            raise ModelError(
                f"The attention of {type(self.decoder).__name__} does not go through transformers' attention "
                "interface, so it cannot be exported; it can be trained on and evaluated."
            )
        return (logits, *(tensor for pair in present for tensor in pair))


class Traced(ModelPatcher):  # type: ignore[misc]
    """Optimum's patches for tracing, without its conversion of caches and outputs: ours are tuples."""

    def __init__(self, config: OnnxConfig, model: nn.Module, model_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(config, model, model_kwargs)
        self.patched_forward = self.orig_forward


class VisionEncoderConfig(OnnxConfig):  # type: ignore[misc]
    """One picture at a time, or any number where the encoder allows it; the sides are fixed, which TensorRT wants."""

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
    """A connector that reads the question."""

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


class DecoderConfig(OnnxConfig):  # type: ignore[misc]
    """A decoder on embeddings, with keys and values in buffers that are longer than what they hold."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    _MODEL_PATCHER = Traced

    def __init__(
        self, config: Any, n_layers: int, n_kv_heads: int, head_size: int, n_text: int, position_axes: int
    ) -> None:
        super().__init__(config)
        self._n_layers, self._past_shape, self._n_text = n_layers, (n_kv_heads, CAPACITY_DUMMY, head_size), n_text
        self._position_axes = position_axes

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        tokens = {0: "batch_size", 1: "sequence_length"}
        named: dict[str, dict[int, str]] = {
            "inputs_embeds": tokens,
            "position_ids": tokens if self._position_axes == 1 else {1: "batch_size", 2: "sequence_length"},
            "seqlens_k": {0: "batch_size"},
            "total_sequence_length": {},
            "num_logits_to_keep": {},
        }
        for name in self._names("past_key_values"):
            named[name] = {0: "batch_size", 2: "capacity"}
        return named

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        named = {"logits": {0: "batch_size", 1: "num_logits_to_keep"}}
        return named | {name: {0: "batch_size", 2: "capacity"} for name in self._names("present")}

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        past = torch.zeros(2, *self._past_shape)
        positions = torch.arange(N_DUMMY).expand(2, -1)
        if self._position_axes > 1:
            positions = positions.expand(self._position_axes, -1, -1)
        return {
            "inputs_embeds": torch.randn(2, N_DUMMY, self._n_text),
            "position_ids": positions.contiguous(),
            "seqlens_k": torch.full((2,), N_DUMMY - 1, dtype=torch.int32),
            "total_sequence_length": torch.tensor(N_DUMMY, dtype=torch.int32),
            "num_logits_to_keep": torch.tensor(2),
            "past_key_values": [(past.clone(), past.clone()) for _ in range(self._n_layers)],
        }

    def _names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{i}.{kind}" for i in range(self._n_layers) for kind in ("key", "value")]


def export_vision_encoder(family: Family, file: Path, fused: bool = True) -> None:
    """Write the vision encoder as a graph, with the connector where it does not read the question.

    fused: with onnxruntime's own operators, which TensorRT has not.
    """
    output = "image_features" if family.reads_question else "image_embeds"
    config = VisionEncoderConfig(config_of(family), family.pixel_format.size, family.encoder_batches, output)
    with fused_vision_encoder(family.model) if fused else plain_vision_encoder():
        write(VisionEncoder(family), config, file)
    if fused:
        rewrite(file, fuse_gelu)


def export_connector(family: QuestionAwareFamily, file: Path) -> None:
    """Write a connector that reads the question."""
    size = family.pixel_format.size
    with torch.no_grad():
        features = family.encode(torch.zeros(2, 3, size, size))
    write(Connector(family), ConnectorConfig(family.model.config, features), file)


def export_decoder(family: CausalFamily, file: Path) -> None:
    """Write the language model as one graph for prompts and for single tokens."""
    config = family.text_config
    n_kv_heads, head_size = cache_shape(family)
    onnx_config = DecoderConfig(
        family.model.config,
        config.num_hidden_layers,
        n_kv_heads,
        head_size,
        family.embed_tokens.embedding_dim,  # type: ignore[arg-type]
        family.position_axes,
    )
    decoder = Decoder(family)
    with fused_attention(family.decoder, decoder.turned):
        write(decoder, onnx_config, file)
    rewrite(file, fuse_attention, fuse_norms)


def export_embeddings(family: GenerativeFamily, file: Path) -> None:
    """Write the token embeddings as an array that the sdk maps into memory."""
    weight = family.embed_tokens.weight.detach().cpu().numpy()  # type: ignore[operator]
    np.save(file, weight.astype(np.float32), allow_pickle=False)


def config_of(family: Family) -> Any:
    """The model's configuration, which Optimum wants; open_clip's models have none."""
    return getattr(family.model, "config", None) or PretrainedConfig()


def cache_shape(family: GenerativeFamily) -> tuple[int, int]:
    """Key/value heads and their size."""
    config = family.text_config
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    if hasattr(config, "d_kv"):  # T5
        return n_kv_heads, config.d_kv
    return n_kv_heads, getattr(config, "head_dim", None) or config.hidden_size // n_heads


def write(module: nn.Module, config: OnnxConfig, file: Path) -> None:
    """Let Optimum trace a module and write its graph."""
    with _untouched(module), warnings.catch_warnings():
        # Tracing warns of every Python number it meets; the parity gate is what tells right from wrong.
        warnings.simplefilter("ignore")
        optimum_export(module, config, file, opset=OPSET, disable_dynamic_axes_fix=True)


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Optimum changes configurations (use_cache, return_dict) for good; put them back."""
    configs = {id(m.config): m.config for m in module.modules() if hasattr(m, "config")}.values()
    before = [(config, copy.deepcopy(config.__dict__)) for config in configs]
    try:
        yield
    finally:
        for config, state in before:
            config.__dict__.clear()
            config.__dict__.update(state)
