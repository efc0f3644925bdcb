"""onnxruntime's fused attention operators, computed in PyTorch and written by the tracer.

`com.microsoft::GroupQueryAttention` is for decoders, and writes keys and values into a buffer in place.
`com.microsoft::MultiHeadAttention` is for vision encoders. Source of both: onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("tvp::group_query_attention", mutates_args=())
def group_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos_cache: Tensor | None,
    sin_cache: Tensor | None,
    num_heads: int,
    kv_num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute onnxruntime's operator in PyTorch. Tracing runs this function, and tests compare with it.

    Args:
        query: (n, n_new, num_heads * head).
        key, value: (n, n_new, kv_num_heads * head).
        past_key, past_value: the buffers, (n, kv_num_heads, capacity, head).
        seqlens_k: the total length minus one, int32 (n,).
        total_sequence_length: tokens in the buffer, the new ones included; int32, a scalar.
        cos_cache, sin_cache: of the rotary angles, (n_positions, head / 2); None if the model itself rotates queries
            and keys.
        num_heads: number of query heads.
        kv_num_heads: number of key and value heads; it divides `num_heads`.
        scale: factor of the products of queries and keys.

    Returns:
        The attention's output (n, n_new, num_heads * head), and the buffers with the new keys and values in them.
    """
    n, n_new, _ = query.shape
    total = int(total_sequence_length)
    head = past_key.shape[-1]
    start = total - n_new
    split = [t.view(n, n_new, -1, head).transpose(1, 2) for t in (query, key, value)]
    if cos_cache is not None and sin_cache is not None:
        cos, sin = cos_cache[start:total], sin_cache[start:total]
        for i, (a, b) in enumerate(t.chunk(2, -1) for t in split[:2]):
            split[i] = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    present_key, present_value = past_key.clone(), past_value.clone()
    present_key[:, :, start:total], present_value[:, :, start:total] = split[1], split[2]
    rows, columns = torch.arange(start, total)[:, None], torch.arange(total)[None, :]
    # enable_gqa would repeat them too, but Optimum patches this function for tracing and drops that argument.
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


def group_query_symbol(
    g: Any,
    query: Any,
    key: Any,
    value: Any,
    past_key: Any,
    past_value: Any,
    seqlens_k: Any,
    total_sequence_length: Any,
    cos_cache: Any,
    sin_cache: Any,
    num_heads: Any,
    kv_num_heads: Any,
    scale: Any,
) -> Any:
    from torch.onnx import symbolic_helper

    constant: Any = symbolic_helper._get_const
    rotates = not symbolic_helper._is_none(cos_cache)
    outputs = g.op(
        "com.microsoft::GroupQueryAttention",
        query,
        key,
        value,
        past_key,
        past_value,
        seqlens_k,
        total_sequence_length,
        *((cos_cache, sin_cache) if rotates else ()),
        num_heads_i=constant(num_heads, "i", "num_heads"),
        kv_num_heads_i=constant(kv_num_heads, "i", "kv_num_heads"),
        scale_f=constant(scale, "f", "scale"),
        do_rotary_i=int(rotates),
        outputs=3,
    )
    for output, like in zip(outputs, (query, past_key, past_value), strict=True):
        output.setType(like.type())
    return outputs


@torch.library.custom_op("tvp::multi_head_attention", mutates_args=())
def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float) -> Tensor:
    """Compute onnxruntime's operator in PyTorch: every token attends to every token.

    Args:
        query, key, value: (n, n_tokens, num_heads * head).
        num_heads: number of heads.
        scale: factor of the products of queries and keys.

    Returns:
        The attention's output, (n, n_tokens, num_heads * head).
    """
    n, n_tokens, _ = query.shape
    split = [t.view(n, t.shape[1], num_heads, -1).transpose(1, 2) for t in (query, key, value)]
    attended = F.scaled_dot_product_attention(split[0], split[1], split[2], scale=scale)
    return attended.transpose(1, 2).reshape(n, n_tokens, -1)


@multi_head_attention.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query)


def multi_head_symbol(g: Any, query: Any, key: Any, value: Any, num_heads: Any, scale: Any) -> Any:
    from torch.onnx import symbolic_helper

    constant: Any = symbolic_helper._get_const
    output = g.op(
        "com.microsoft::MultiHeadAttention",
        query,
        key,
        value,
        num_heads_i=constant(num_heads, "i", "num_heads"),
        scale_f=constant(scale, "f", "scale"),
    )
    output.setType(query.type())
    return output
