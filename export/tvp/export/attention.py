"""Attention of an exported decoder: onnxruntime's GroupQueryAttention, through transformers' own door.

transformers lets an attention implementation be registered by name. The one here calls a torch
operator whose ONNX symbol is `com.microsoft::GroupQueryAttention`, so that Optimum's export writes
the fused operator: keys and values live in one buffer that is written in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface

NAME = "tvp_group_query_attention"


@torch.library.custom_op("tvp::group_query_attention", mutates_args=())
def group_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What onnxruntime's operator computes, in PyTorch: the reference, and what tracing runs.

    query (n, n_new, num_heads * head), key and value (n, n_new, kv_num_heads * head); past (n,
    kv_num_heads, capacity, head); seqlens_k (n,) is the total length minus one.
    """
    n, n_new, _ = query.shape
    total = int(total_sequence_length)
    head = past_key.shape[-1]
    start = total - n_new
    split = [t.view(n, n_new, -1, head).transpose(1, 2) for t in (query, key, value)]
    present_key, present_value = past_key.clone(), past_value.clone()
    present_key[:, :, start:total], present_value[:, :, start:total] = split[1], split[2]
    rows, columns = torch.arange(start, total)[:, None], torch.arange(total)[None, :]
    # Repeated here, and not by enable_gqa, which Optimum's patch of this function drops while it traces.
    n_repeats = num_heads // kv_num_heads
    attended = F.scaled_dot_product_attention(
        split[0],
        present_key[:, :, :total].repeat_interleave(n_repeats, 1),
        present_value[:, :, :total].repeat_interleave(n_repeats, 1),
        attn_mask=columns <= rows,
        scale=scale,
    )
    return attended.transpose(1, 2).reshape(n, n_new, -1), present_key, present_value


@group_query_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_: Any) -> Any:
    return torch.empty_like(query), torch.empty_like(past_key), torch.empty_like(past_value)


def _symbol(
    g: Any,
    query: Any,
    key: Any,
    value: Any,
    past_key: Any,
    past_value: Any,
    seqlens_k: Any,
    total_sequence_length: Any,
    num_heads: Any,
    kv_num_heads: Any,
    scale: Any,
) -> Any:
    from torch.onnx import symbolic_helper

    constant: Any = symbolic_helper._get_const
    outputs = g.op(
        "com.microsoft::GroupQueryAttention",
        query,
        key,
        value,
        past_key,
        past_value,
        seqlens_k,
        total_sequence_length,
        num_heads_i=constant(num_heads, "i", "num_heads"),
        kv_num_heads_i=constant(kv_num_heads, "i", "kv_num_heads"),
        scale_f=constant(scale, "f", "scale"),
        outputs=3,
    )
    for output, like in zip(outputs, (query, past_key, past_value), strict=True):
        output.setType(like.type())
    return outputs


class NewKeyValues(DynamicCache):  # type: ignore[misc]
    """A cache that hands a layer its new keys and values only, and keeps what the operator returns."""

    def __init__(self, past: list[tuple[Tensor, Tensor]], seqlens_k: Tensor, total: Tensor) -> None:
        super().__init__()
        self.past, self.seqlens_k, self.total = past, seqlens_k, total
        self.present: list[tuple[Tensor, Tensor] | None] = [None] * len(past)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, cache_position: Tensor, layer_idx: int) -> tuple[int, int]:
        return cache_position.shape[0], 0


_current: list[NewKeyValues] = []


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    cache, layer = _current[-1], int(module.layer_idx)  # type: ignore[arg-type]
    n, num_heads, n_new, _head = query.shape
    # (n, heads, n_new, head) -> (n, n_new, heads * head)
    flat = [t.transpose(1, 2).reshape(n, n_new, -1) for t in (query, key, value)]
    attended, *present = group_query_attention(
        *flat, *cache.past[layer], cache.seqlens_k, cache.total, num_heads, key.shape[1], float(scaling)
    )
    cache.present[layer] = (present[0], present[1])
    return attended.view(n, n_new, num_heads, -1), None


@contextmanager
def fused_attention(decoder: nn.Module) -> Iterator[None]:
    """Let a decoder run with the fused operator; its own attention comes back at the end."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
        "tvp::group_query_attention", _symbol, 18
    )
    configs: list[Any] = list({id(m.config): m.config for m in decoder.modules() if hasattr(m, "config")}.values())
    before = [(config, config._attn_implementation) for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


@contextmanager
def current_cache(cache: NewKeyValues) -> Iterator[None]:
    """Make a cache the one that the attention reads and writes."""
    _current.append(cache)
    try:
        yield
    finally:
        _current.pop()
