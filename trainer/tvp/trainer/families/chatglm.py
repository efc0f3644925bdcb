"""The first ChatGLM-6B (not ChatGLM2): a decoder that reads its prompt in both directions.

transformers does not have this model. Its release (`modeling_chatglm.py` beside the weights of THUDM/chatglm-6b) is
written for the transformers of early 2023. The arithmetic and the names of the weights are the release's, so that its
files load as they are; the caches are today's. It differs from other decoders:

- A prompt ends with [gMASK] <sop>. The tokens before <sop> all see each other; <sop> and the answer see only the
  tokens before them (Du et al., GLM, arXiv 2103.10360).
- Every token has two positions. In the prompt they are its place, and 0. From <sop> on they are the place of [gMASK],
  and 1, 2, 3 …  Each position rotates one half of a head.
- A block adds to its *normalised* input, times sqrt(2 · layers).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from tvp.sdk.errors import ModelError


class ChatGLMConfig(PretrainedConfig):  # type: ignore[misc]
    """The fields of the release's config.json, with the values of ChatGLM-6B.

    Raises:
        ModelError: the configuration is not of the release's shape: its positions are not two-dimensional, its
            weights are quantised (`quantization_bit`), or it has a learned prefix (`pre_seq_len`).
    """

    model_type = "chatglm"
    attribute_map = {"max_position_embeddings": "max_sequence_length", "num_hidden_layers": "num_layers"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 130528,
        hidden_size: int = 4096,
        num_layers: int = 28,
        num_attention_heads: int = 32,
        inner_hidden_size: int = 16384,
        layernorm_epsilon: float = 1e-5,
        max_sequence_length: int = 2048,
        position_encoding_2d: bool = True,
        bos_token_id: int = 130004,  # <sop>
        eos_token_id: int = 130005,  # <eop>
        mask_token_id: int = 130000,  # [MASK]
        gmask_token_id: int = 130001,  # [gMASK]
        pad_token_id: int = 3,
        quantization_bit: int = 0,
        pre_seq_len: int | None = None,
        **more: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.inner_hidden_size = inner_hidden_size
        self.layernorm_epsilon = layernorm_epsilon
        self.max_sequence_length = max_sequence_length
        self.position_encoding_2d = position_encoding_2d
        self.mask_token_id = mask_token_id
        self.gmask_token_id = gmask_token_id
        self.quantization_bit = quantization_bit
        self.pre_seq_len = pre_seq_len
        if not position_encoding_2d or quantization_bit or pre_seq_len:
            raise ModelError(
                "This ChatGLM has "
                f"position_encoding_2d={position_encoding_2d}, quantization_bit={quantization_bit}, "
                f"pre_seq_len={pre_seq_len}; only True, 0 and None are supported. Use the plain ChatGLM-6B weights."
            )
        if hidden_size % (4 * num_attention_heads):
            raise ModelError(
                f"A ChatGLM of width {hidden_size} cannot have {num_attention_heads} heads: "
                "a head is cut into two halves, and each into pairs."
            )
        # The files hold lm_head.weight and the word embeddings; both are read.
        more["tie_word_embeddings"] = False
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, pad_token_id=pad_token_id, **more)


def _rotations(positions: Int[Tensor, "n 2 q"], size: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for both halves of a head of `size`, each (n, 1, q, size).

    The release rounds the frequencies to half precision ("inv_freq = inv_freq.half()"), and the model was trained so.
    At position 1000, exact frequencies would rotate a pair by up to 0.16 radian more or less. They are computed on the
    CPU, because the power function of another device may round differently.
    """
    half = size // 2
    frequencies = 1.0 / 10000 ** (torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half)
    frequencies = frequencies.half().float().to(positions.device)
    angles = positions[..., None].float() * frequencies  # (n, 2, q, half / 2)
    angles = torch.cat([angles, angles], -1)  # "torch.cat((freqs, freqs), dim=-1)"
    angles = torch.cat([angles[:, 0], angles[:, 1]], -1)[:, None]  # (n, 1, q, size)
    return angles.cos(), angles.sin()


def _rotate(states: Tensor, rotations: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each half of a head by its own position: "(q * cos) + (rotate_half(q) * sin)", twice."""
    cos, sin = (r.to(states.dtype) for r in rotations)
    a, b, c, d = states.chunk(4, -1)
    return states * cos + torch.cat([-b, a, -d, c], -1) * sin


class ChatGLMAttention(nn.Module):
    """Self-attention. A row of the fused projection holds query, key and value, head by head."""

    def __init__(self, config: ChatGLMConfig, index: int) -> None:
        super().__init__()
        self.layer_idx = index
        self.n_heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, states: Tensor, mask: Tensor | None, rotations: tuple[Tensor, Tensor], cache: Cache | None
    ) -> Tensor:
        n, length, width = states.shape
        fused = self.query_key_value(states).view(n, length, self.n_heads, -1).transpose(1, 2)
        query, key, value = fused.chunk(3, -1)  # each (n, heads, length, head)
        query, key = _rotate(query, rotations), _rotate(key, rotations)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        read = self.attend(query, key, value, mask)
        return self.dense(read.transpose(1, 2).reshape(n, length, width))  # type: ignore[no-any-return]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return what each query (n, heads, n_new, head) reads of all values (n, heads, length, head)."""
        # "query_layer / (sqrt(hidden_size) * coeff)", and "scores * coeff" in float32 before the softmax: exact
        # arithmetic would not change, but half-precision products stay in range.
        scale = float(self.layer_idx + 1)
        scores = (query / (math.sqrt(query.shape[-1]) * scale)) @ key.transpose(-1, -2)
        scores = scores.float() * scale
        if mask is not None:
            # The release writes -10000 here. Any finite lowest value keeps padding rows free of NaN.
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            else:
                scores = scores + mask
        return scores.softmax(-1).to(value.dtype) @ value


class ChatGLMMlp(nn.Module):
    """Two layers with the tanh form of GELU ("OpenAI's gelu implementation")."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        return self.dense_4h_to_h(gelu(self.dense_h_to_4h(states), approximate="tanh"))  # type: ignore[no-any-return]


class ChatGLMBlock(nn.Module):
    """Attention and MLP. Each adds to alpha times its normalised input, with alpha = sqrt(2 · layers)."""

    def __init__(self, config: ChatGLMConfig, index: int) -> None:
        super().__init__()
        self.alpha = math.sqrt(2 * config.num_layers)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, index)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMlp(config)

    def forward(
        self, states: Tensor, mask: Tensor | None, rotations: tuple[Tensor, Tensor], cache: Cache | None
    ) -> Tensor:
        # "attention_input * alpha + attention_output", then "mlp_input * alpha + mlp_output"
        normal = self.input_layernorm(states)
        states = normal * self.alpha + self.attention(normal, mask, rotations, cache)
        normal = self.post_attention_layernorm(states)
        return normal * self.alpha + self.mlp(normal)  # type: ignore[no-any-return]


class ChatGLMModel(nn.Module):
    """The stack of layers, from embeddings to normalised hidden states."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

    def forward(
        self,
        inputs_embeds: Float[Tensor, "n q hidden"],
        position_ids: Int[Tensor, "n 2 q"],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        """Run embeddings through all layers.

        Args:
            inputs_embeds: the embeddings.
            position_ids: place in the text, and place in the answer, as `VisualGlm.positions` makes them.
            attention_mask: (n, 1, q, k). bool: True where a query may see a key. float: 0 there, and a large negative
                number elsewhere. Default: every query sees every key.
            past_key_values: keys and values of earlier tokens, which grow in place.
            use_cache: without `past_key_values`, make a new cache and return it. Default False.
        """
        cache = DynamicCache() if past_key_values is None and use_cache else past_key_values
        rotations = _rotations(position_ids, self.head_size)
        states = inputs_embeds
        for layer in self.layers:
            states = layer(states, attention_mask, rotations, cache)
        return BaseModelOutputWithPast(last_hidden_state=self.final_layernorm(states), past_key_values=cache)


class ChatGLMForConditionalGeneration(PreTrainedModel):  # type: ignore[misc]
    """The stack with its head; its weights have the release's names."""

    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["ChatGLMBlock"]  # noqa: RUF012
    # Computed in `_rotations`; the release does not load them either.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]  # noqa: RUF012

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(self, input_ids: Int[Tensor, "n q"], **more: Any) -> Float[Tensor, "n q n_vocab"]:
        """Return the logits of token ids; `more` are arguments of `ChatGLMModel.forward`."""
        embeddings = self.transformer.word_embeddings(input_ids)
        return self.lm_head(self.transformer(embeddings, **more).last_hidden_state)  # type: ignore[no-any-return]
