"""The base of a causal model: a decoder that writes keys and values into a buffer, in place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx import OnnxConfig
from optimum.utils import NormalizedConfig
from torch import Tensor, nn

from tvp.sdk.errors import ModelError
from tvp.sdk.formats.manifest import CausalManifest
from tvp.trainer.families.causal import CausalFamily

from ..attention import NewKeyValues, current_cache, fused_attention, rotary_angles
from ..fuse import fuse_attention, fuse_norms, rewrite
from ..graphs import N_DUMMY, Traced, cache_shape, write_graph
from ..trial import (
    N_IMAGE,
    N_READ,
    N_STEPS,
    different,
    refusals,
    refuse_unknown_positions,
    session,
    shortened,
    trial_inputs,
)
from .generative import about, cases, facts, measure, n_positions, tokenizer_texts, weight_sizes, write_shared

__all__ = ["about", "cases", "check", "measure", "sizes", "tokenizer_texts", "write"]

CAPACITY_DUMMY = 16  # tokens that the traced buffers can hold; the axis is dynamic


def write(family: CausalFamily, folder: Path, fused: bool) -> CausalManifest:
    """See `Kind.write`."""
    write_shared(family, folder, fused)
    export_decoder(family, folder / "decoder_model_merged.onnx")
    return CausalManifest(
        **facts(family),
        n_layers=family.text_config.num_hidden_layers,
        position_axes=family.position_axes,
        n_causal=-1 if family.n_causal is None else family.n_causal,
    )


def check(family: CausalFamily) -> None:
    """See `Kind.check`."""
    with refusals(family), torch.no_grad():
        refuse_unknown_positions(family)
        # Where the operator's rotation gives other scores, the model rotates by itself.
        may_rotate = not _why_different(family, True)
        if not may_rotate and (why := _why_different(family, False)):
            raise ModelError(f"{_attention_of(family)} computes something else than the operator does: {why}")
        with shortened(family, family.decoder), tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "decoder.onnx"
            export_decoder(family, file, may_rotate)
            if why := _compared(family, _session_run(family, file)):
                raise ModelError(f"in onnxruntime, {why}")


def sizes(family: CausalFamily, precision: str, encoder_precision: str) -> dict[str, int]:
    """See `Kind.sizes`."""
    head = family.head if family.head is not None else nn.Identity()
    return weight_sizes(family, [family.decoder, head], head, precision, encoder_precision)


class Decoder(nn.Module):
    """The decoder: inputs_embeds, past keys and values -> logits of the last tokens, present keys and values."""

    def __init__(self, family: CausalFamily, may_rotate: bool = True) -> None:
        super().__init__()
        self.decoder, self._score = family.decoder, family.to_logits
        self.head = family.head if family.head_is_last else family.scorer  # the weights that make logits
        self.config = family.model.config
        self.prefix, self._with_positions = family.n_causal is not None, family.with_positions
        angles = None
        if may_rotate and family.position_axes == 1 and not self.prefix:
            angles = rotary_angles(family.decoder, n_positions(family))
        self.operator_rotates = angles is not None
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
        angles: Any = (self.cos_cache, self.sin_cache) if self.operator_rotates else None
        cache = NewKeyValues(past_key_values, seqlens_k, total_sequence_length, angles, self.prefix)
        with current_cache(cache):
            hidden = self.decoder(
                inputs_embeds=inputs_embeds,
                past_key_values=cache,
                use_cache=True,
                **self._with_positions(self.decoder, position_ids),
            ).last_hidden_state
        n_new = inputs_embeds.shape[1]
        first: Any = n_new - num_logits_to_keep  # a tensor, so that it stays an input of the traced graph
        kept = torch.arange(first, n_new)  # the head is slow, so it runs on these tokens only
        logits = self._score(hidden.index_select(1, kept))
        present = [pair for pair in cache.present if pair is not None]
        if len(present) < len(cache.present):
            raise ModelError(
                f"the attention of {type(self.decoder).__name__} does not use transformers' attention interface"
            )
        return (logits, *(tensor for pair in present for tensor in pair))


class DecoderConfig(OnnxConfig):  # type: ignore[misc]
    """Optimum's configuration of a decoder that reads embeddings and has buffers for keys and values.

    Args:
        config: the model's configuration.
        n_layers: number of layers.
        n_kv_heads: number of key and value heads.
        head_size: size of a head.
        n_text: size of a token's embedding.
        position_axes: number of positions of a token.
    """

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


def export_decoder(family: CausalFamily, file: Path, may_rotate: bool | None = None) -> None:
    """Write the language model as one graph, for the first run (many tokens) and for single tokens after it.

    Args:
        family: the model.
        file: where to write the graph.
        may_rotate: whether the operator may rotate queries and keys. Default: where that gives the model's own scores.
    """
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
    decoder = Decoder(family, may_rotate=not _why_different(family, True) if may_rotate is None else may_rotate)
    with fused_attention(family.decoder, decoder.operator_rotates):
        write_graph(decoder, onnx_config, file)
    rewrite(file, fuse_attention, fuse_norms)


def _attention_of(family: CausalFamily) -> str:
    names = [type(m).__name__ for m in family.decoder.modules() if hasattr(m, "layer_idx") and hasattr(m, "q_proj")]
    return f"its {names[0]}" if names else "its attention"


Run = Callable[[dict[str, Any], Sequence[tuple[Tensor, Tensor]]], Sequence[Tensor]]


def _why_different(family: CausalFamily, may_rotate: bool) -> str:
    """Return in words how the scores with the fused operator, in PyTorch, differ from the model's own; '' for equal."""
    decoder = Decoder(family, may_rotate)

    def run(inputs: dict[str, Any], past: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = decoder(**inputs, past_key_values=past)
        return outputs

    with torch.no_grad():
        return _compared(family, run, fused_attention(family.decoder, decoder.operator_rotates))


def _compared(family: CausalFamily, run: Run, around: AbstractContextManager[None] | None = None) -> str:
    """Return in words how the scores of `run` differ from the model's own; '' for equal.

    Args:
        family: the model.
        run: runs the decoder.
        around: what holds while it runs, and not while the model's own forward does. Default: nothing.
    """
    fed = _fed(family)
    with around or nullcontext():
        mine = _run_all(family, fed, run)
    return different(mine, _own(family, fed)[:, -mine.shape[1] :])


def _session_run(family: CausalFamily, file: Path) -> Run:
    opened = session(file)
    taken = {value.name for value in opened.get_inputs()}

    def run(inputs: dict[str, Any], past: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
        named = dict(inputs)
        for layer, pair in enumerate(past):
            named |= {f"past_key_values.{layer}.key": pair[0], f"past_key_values.{layer}.value": pair[1]}
        arrays = {name: value.contiguous().numpy() for name, value in named.items() if name in taken}
        return [torch.from_numpy(array) for array in opened.run(None, arrays)]

    return run


def _fed(family: CausalFamily) -> Tensor:
    most = n_positions(family)
    n = N_READ + N_STEPS
    return trial_inputs(family, min(n, most) if most else n)


def _own(family: CausalFamily, fed: Tensor) -> Tensor:
    n_read = fed.shape[1] - N_STEPS
    return family.own_logits(fed, n_read, 0, N_IMAGE)


def _run_all(family: CausalFamily, fed: Tensor, run: Run) -> Tensor:
    """Read all but the last tokens at once, and those one by one; returns the logits of the last N_STEPS + 1."""
    n, config = fed.shape[1], family.text_config
    n_kv_heads, head_size = cache_shape(family)
    empty = torch.zeros(1, n_kv_heads, n, head_size)
    past = [(empty.clone(), empty.clone()) for _ in range(config.num_hidden_layers)]
    real = torch.ones(1, n, dtype=torch.long)
    positions = family.positions(real, torch.tensor([n - N_STEPS]), 0, N_IMAGE)
    parts = []
    # Tokens that may see each other. The sdk reads the others by themselves.
    first = n - N_STEPS - (family.n_causal or 0)
    for start, stop in [(0, first), *((i, i + 1) for i in range(first, n))]:
        inputs = {
            "inputs_embeds": fed[:, start:stop],
            "position_ids": positions[..., start:stop],
            "seqlens_k": torch.tensor([stop - 1], dtype=torch.int32),
            "total_sequence_length": torch.tensor(stop, dtype=torch.int32),
            "num_logits_to_keep": torch.tensor(1),
        }
        logits, *present = run(inputs, past)
        past = list(zip(present[::2], present[1::2], strict=True))
        parts.append(logits)
    return torch.cat(parts, 1)
