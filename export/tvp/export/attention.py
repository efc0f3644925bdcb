"""Attention of exported models: implementations that call the fused operators of `operators.py`.

transformers lets us register an attention implementation by name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from tvp.sdk.errors import ModelError
from tvp.trainer.families.chatglm import ChatGLMAttention

from .operators import group_query_attention, group_query_symbol, multi_head_attention, multi_head_symbol

NAME = "tvp_group_query_attention"
OBSERVER = "tvp_observer"
ENCODER_NAME = "tvp_multi_head_attention"
own_repeat: Any = torch.repeat_interleave
# Rotary embeddings whose angles depend on a token's position alone, and not on the length of the text.
FIXED_ANGLES = ("default", "linear", "llama3", "yarn")
HEAD_MULTIPLE = 8  # the operator takes heads of a multiple of so many values; others are padded with zeros


class NewKeyValues(DynamicCache):  # type: ignore[misc]
    """A cache that gives a layer its new keys and values only. The operator reads and returns the whole buffers.

    Args:
        past: a buffer of keys and one of values for each layer, (n, kv_num_heads, capacity, head).
        seqlens_k: the total length minus one, int32 (n,).
        total: tokens in the buffers, the new ones included; int32, a scalar.
        angles: cosines and sines (n_positions, head / 2) by which the operator rotates queries and keys. Default: None,
            the model itself rotates them.
        prefix: whether the tokens of the first run see each other (prefix attention). Default False.
    """

    def __init__(
        self,
        past: list[tuple[Tensor, Tensor]],
        seqlens_k: Tensor,
        total: Tensor,
        angles: tuple[Tensor, Tensor] | None = None,
        prefix: bool = False,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.past, self.seqlens_k, self.total = past, seqlens_k, total
        self.angles = angles or (None, None)
        # The buffers that the operator returned; None for a layer that has not run.
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


def _decoder_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    if more.get("s_aux") is not None:
        raise ModelError("its attention has sinks, which the operator lacks")
    cache, layer = _current[-1], int(module.layer_idx)  # type: ignore[arg-type]
    n, num_heads, n_new, _head = query.shape
    n_key, n_value = int(query.shape[-1]), int(value.shape[-1])
    scaling = n_key**-0.5 if scaling is None else scaling
    head = padded_head(n_key, n_value)
    if n_key < head:
        query, key = F.pad(query, (0, head - n_key)), F.pad(key, (0, head - n_key))
    if n_value < head:
        value = F.pad(value, (0, head - n_value))
    # (n, heads, n_new, head) -> (n, n_new, heads * head)
    flat = [t.transpose(1, 2).reshape(n, n_new, -1) for t in (query, key, value)]
    attended, *present = group_query_attention(
        *flat, *cache.past[layer], cache.seqlens_k, cache.total, *cache.angles, num_heads, key.shape[1], float(scaling)
    )
    cache.present[layer] = (present[0], present[1])
    if cache.prefix:
        # The operator is causal; only recent versions of onnxruntime can switch that off. Its output is right for
        # single tokens after a prompt. For the prompt itself, attention of every token to every token replaces it.
        key, value = (repeat_kv(t, num_heads // t.shape[1]) for t in (key, value))
        flat = [flat[0], *(t.transpose(1, 2).reshape(n, n_new, -1) for t in (key, value))]
        attended = torch.where(cache.total == n_new, multi_head_attention(*flat, num_heads, float(scaling)), attended)
    attended = attended.view(n, n_new, num_heads, -1)
    return attended[..., :n_value] if n_value < head else attended, None


def padded_head(*sizes: int) -> int:
    """Return the size of the heads that the operator is given for keys and values of these sizes."""
    largest = max(int(size) for size in sizes)  # int: numbers, also while a graph is traced
    return (largest + HEAD_MULTIPLE - 1) // HEAD_MULTIPLE * HEAD_MULTIPLE


@contextmanager
def observed_heads(decoder: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Note the number of key and value heads, and their size in the cache, of each layer that a decoder runs."""
    found: list[tuple[int, int]] = []

    def observe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **more: Any) -> Any:
        found.append((key.shape[1], padded_head(key.shape[-1], value.shape[-1])))
        return sdpa_attention_forward(module, query, key, value, *args, **more)

    AttentionInterface.register(OBSERVER, observe)
    AttentionMaskInterface.register(OBSERVER, sdpa_mask)
    with _use(decoder, OBSERVER):
        yield found


def _glm_attention(module: ChatGLMAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    attended, _ = _decoder_attention(module, query, key, value, mask, query.shape[-1] ** -0.5)
    return attended.transpose(1, 2)  # (n, n_new, heads, head) -> (n, heads, n_new, head)


def _encoder_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    n, num_heads, n_tokens, head = query.shape
    if attention_mask is not None or getattr(module, "is_causal", False) or key.shape != query.shape:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
    # (n, heads, n_tokens, head) -> (n, n_tokens, heads * head)
    flat = [t.transpose(1, 2).reshape(n, n_tokens, -1) for t in (query, key, value)]
    attended = multi_head_attention(*flat, num_heads, float(head**-0.5 if scaling is None else scaling))
    return attended.view(n, n_tokens, num_heads, -1), None


def rotary_angles(decoder: nn.Module, n_positions: int | None) -> tuple[Tensor, Tensor] | None:
    """Return the rotary angles of a decoder, if the fused operator can apply them.

    Args:
        decoder: the decoder, without its head.
        n_positions: number of positions that the model knows; None if it says no number.

    Returns:
        Cosines and sines, each (n_positions, head / 2). None for a decoder that does not rotate in Llama's way, or
        whose angles depend on more than the position.
    """
    rotary: Any = getattr(decoder, "rotary_emb", None)
    known = rotary is not None and getattr(rotary, "rope_type", None) in FIXED_ANGLES
    if not known or not n_positions or _rotary_module(decoder) is None:
        return None
    with torch.no_grad():
        found = rotary(torch.zeros(1, 1, 1), torch.arange(n_positions)[None])
    cos, sin = (angles[0, :, : angles.shape[-1] // 2].contiguous() for angles in found)
    # Of half a head, the operator takes a multiple of 8.
    if cos.shape[-1] % HEAD_MULTIPLE or not torch.equal(torch.cat([cos, cos], -1), found[0][0]):
        return None
    return cos, sin


def _rotary_module(decoder: nn.Module) -> Any:
    """Return the module of transformers whose `apply_rotary_pos_emb` this decoder's attention calls, or None."""
    for layer in decoder.modules():
        if hasattr(layer, "layer_idx") and hasattr(layer, "q_proj"):
            module = sys.modules[type(layer).__module__]
            return module if hasattr(module, "apply_rotary_pos_emb") else None
    return None


@contextmanager
def fused_attention(decoder: nn.Module, operator_rotates: bool = False) -> Iterator[None]:
    """Make a decoder use the fused operator; restore its own attention at the end.

    Args:
        decoder: the decoder.
        operator_rotates: whether the operator rotates queries and keys by their positions, instead of the model.
            Default False.
    """
    AttentionInterface.register(NAME, _decoder_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    for operator, symbol in (("group_query", group_query_symbol), ("multi_head", multi_head_symbol)):
        torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
            f"tvp::{operator}_attention", symbol, 18
        )
    rotation: Any = nullcontext()
    if operator_rotates:
        rotation = mock.patch.object(_rotary_module(decoder), "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))
    with (
        _use(decoder, NAME),
        mock.patch.object(ChatGLMAttention, "attend", _glm_attention),
        mock.patch.object(torch, "repeat_interleave", _repeat),
        mock.patch.object(torch.Tensor, "repeat_interleave", _repeat),
        rotation,
    ):
        yield


def _repeat(values: Tensor, n: Any, dim: int | None = None, **more: Any) -> Tensor:
    """Repeat values as torch does. torch itself writes the lengths of the traced tokens into the graph."""
    if not isinstance(n, int) or dim is None:
        return own_repeat(values, n, dim, **more)  # type: ignore[no-any-return]
    place = dim % values.ndim
    return torch.stack([values] * n, place + 1).flatten(place, place + 1)


@contextmanager
def fused_vision_encoder(encoder: nn.Module) -> Iterator[None]:
    """Make a vision encoder use the fused operator in every layer where each token sees all tokens."""
    AttentionInterface.register(ENCODER_NAME, _encoder_attention)
    AttentionMaskInterface.register(ENCODER_NAME, sdpa_mask)
    torch.onnx.register_custom_op_symbolic(  # type: ignore[attr-defined]
        "tvp::multi_head_attention", multi_head_symbol, 18
    )
    with _use(encoder, ENCODER_NAME), _torch_attention(fused=True):
        yield


@contextmanager
def plain_vision_encoder() -> Iterator[None]:
    """Make a vision encoder use standard ONNX operators. Only torch's own attention module needs a change for this."""
    with _torch_attention(fused=False):
        yield


@contextmanager
def _torch_attention(fused: bool) -> Iterator[None]:
    """Make torch's own attention module, which open_clip uses, compute with the batch as its first axis.

    Unpatched, it calls an operator that ONNX lacks, or it writes transposes with which onnxruntime crashes in fp16:
    https://github.com/microsoft/onnxruntime/issues/28392
    """
    own = nn.MultiheadAttention.forward

    def forward(
        module: nn.MultiheadAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        weight, bias, n_heads = module.in_proj_weight, module.in_proj_bias, module.num_heads
        if key_padding_mask is not None or weight is None or module.bias_k is not None or not module.batch_first:
            return own(module, query, key, value, key_padding_mask, need_weights, attn_mask, **more)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        # (n, n_tokens, n_heads * head)
        flat = [F.linear(*parts) for parts in zip((query, key, value), weight.chunk(3), biases, strict=True)]
        scale = module.head_dim**-0.5
        if attn_mask is None and fused:
            return module.out_proj(multi_head_attention(*flat, n_heads, scale)), None
        if attn_mask is not None:
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask
            attn_mask = attn_mask.view(-1, n_heads, *attn_mask.shape[1:]) if attn_mask.ndim == 3 else attn_mask
        split = [t.view(*t.shape[:2], n_heads, -1).transpose(1, 2) for t in flat]
        attended = F.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask, scale=scale)
        return module.out_proj(attended.transpose(1, 2).flatten(2)), None

    with mock.patch.object(nn.MultiheadAttention, "forward", forward):
        yield


@contextmanager
def _use(model: nn.Module, name: str) -> Iterator[None]:
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    configs = [config for config in configs if hasattr(config, "_attn_implementation")]
    before = [(config, config._attn_implementation) for config in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


@contextmanager
def current_cache(cache: NewKeyValues) -> Iterator[None]:
    """Make decoders read and write this cache."""
    _current.append(cache)
    try:
        yield
    finally:
        _current.pop()
