"""ChatGLM-6B's decoder against a slow re-statement in numpy, and what its two-way prompt means."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from tests.glm import prefix_layout
from tvp.sdk.errors import ModelError
from tvp.trainer.families.chatglm import (
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    _rotate,
    _rotations,
)

N_LAYERS, N_HEADS, HEAD, WIDTH, N_VOCAB = 3, 2, 8, 16, 40
CONTEXT, LENGTH = 5, 9


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ChatGLMConfig(
        vocab_size=N_VOCAB,
        hidden_size=WIDTH,
        num_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        inner_hidden_size=24,
        max_sequence_length=64,
        bos_token_id=36,
        eos_token_id=37,
        mask_token_id=34,
        gmask_token_id=35,
    )
    model = ChatGLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # small starts make every attention flat
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (parameter.ndim == 1) * 0.5)
    return model


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(0).integers(0, N_VOCAB, (2, LENGTH)))


def logits(model, ids, context=CONTEXT):
    mask, positions = prefix_layout([context] * len(ids), ids.shape[1])
    with torch.no_grad():
        return model(ids, attention_mask=mask, position_ids=positions)


def turn(pair, position, frequency):
    """Rotate a point of the plane by position · frequency."""
    point = complex(*pair) * np.exp(1j * position * float(np.float16(frequency)))
    return point.real, point.imag


def turned(head, place, block):
    """Rotary positions of one head of one token: the first half by its place, the second by its block."""
    head, half = head.copy(), len(head) // 2
    for offset, position in ((0, place), (half, block)):
        for i in range(half // 2):
            j = offset + i
            pair = head[j], head[j + half // 2]
            head[j], head[j + half // 2] = turn(pair, position, 10000 ** (-2 * i / half))
    return head


def normal(row, weight, bias):
    return (row - row.mean()) / math.sqrt(row.var() + 1e-5) * weight + bias


def one_layer(weights, index, rows, context):
    """One block, token by token, with positions and visibility spelt out."""
    w = {k.removeprefix(f"transformer.layers.{index}."): v for k, v in weights.items()}
    alpha = math.sqrt(2 * N_LAYERS)
    ins = [normal(row, w["input_layernorm.weight"], w["input_layernorm.bias"]) for row in rows]
    fused = [w["attention.query_key_value.weight"] @ row + w["attention.query_key_value.bias"] for row in ins]
    out = []
    for i, row in enumerate(ins):
        read = []
        for h in range(N_HEADS):
            seen, scores = [], []
            for j, other in enumerate(fused):
                if j > i and j >= context:
                    continue
                places = [(k, 0) if k < context else (context - 1, k - context + 1) for k in (i, j)]
                start = h * 3 * HEAD
                query = turned(fused[i][start : start + HEAD], *places[0])
                key = turned(other[start + HEAD : start + 2 * HEAD], *places[1])
                scores.append(query @ key / math.sqrt(HEAD))
                seen.append(other[start + 2 * HEAD : start + 3 * HEAD])
            share = np.exp(np.array(scores) - max(scores))
            read.append(share / share.sum() @ np.array(seen))
        states = alpha * row + w["attention.dense.weight"] @ np.concatenate(read) + w["attention.dense.bias"]
        states = normal(states, w["post_attention_layernorm.weight"], w["post_attention_layernorm.bias"])
        inner = w["mlp.dense_h_to_4h.weight"] @ states + w["mlp.dense_h_to_4h.bias"]
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        out.append(alpha * states + w["mlp.dense_4h_to_h.weight"] @ inner + w["mlp.dense_4h_to_h.bias"])
    return out


def test_logits_equal_a_token_by_token_restatement(model, ids):
    weights = {k: v.double().numpy() for k, v in model.state_dict().items()}
    for row, context in zip(ids, (CONTEXT, 1), strict=True):
        states = list(weights["transformer.word_embeddings.weight"][row.numpy()])
        for index in range(N_LAYERS):
            states = one_layer(weights, index, states, context)
        norm = [weights[f"transformer.final_layernorm.{part}"] for part in ("weight", "bias")]
        expected = np.array([weights["lm_head.weight"] @ normal(state, *norm) for state in states])
        np.testing.assert_allclose(logits(model, row[None], context)[0], expected, rtol=2e-5, atol=2e-5)


def test_far_positions_turn_as_in_the_release():
    head = np.random.default_rng(1).normal(size=16)
    positions = torch.tensor([[[1500], [700]]])
    ours = _rotate(torch.from_numpy(head).float().view(1, 1, 1, 16), _rotations(positions, 16))
    np.testing.assert_allclose(ours.view(-1), turned(head, 1500, 700), atol=1e-3)  # float32 angles near 1500


def test_the_names_are_the_releases(model):
    layer = [
        *(f"{n}.{p}" for n in ("input_layernorm", "post_attention_layernorm") for p in ("weight", "bias")),
        *(f"attention.{n}.{p}" for n in ("query_key_value", "dense") for p in ("weight", "bias")),
        *(f"mlp.{n}.{p}" for n in ("dense_h_to_4h", "dense_4h_to_h") for p in ("weight", "bias")),
    ]
    expected = {f"transformer.layers.{i}.{name}" for i in range(N_LAYERS) for name in layer}
    expected |= {"transformer.word_embeddings.weight", "lm_head.weight"}
    expected |= {"transformer.final_layernorm.weight", "transformer.final_layernorm.bias"}
    assert set(model.state_dict()) == expected


def test_a_release_with_its_rotary_buffers_loads(model, ids, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file) | {"transformer.layers.0.attention.rotary_emb.inv_freq": torch.zeros(2)}
    save_file(tensors, file, {"format": "pt"})
    again, report = ChatGLMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(again, ids), logits(model, ids))


@pytest.mark.parametrize("first", [CONTEXT + 1, LENGTH - 1])
def test_decoding_with_a_cache_equals_the_full_forward(model, ids, first):
    whole = logits(model, ids)
    cache, seen, start = DynamicCache(), [], 0
    with torch.no_grad():
        for end in range(first, LENGTH + 1):
            mask, positions = prefix_layout([CONTEXT] * 2, end, start=start)
            seen.append(
                model(
                    ids[:, start:end],
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
            )
            start = end
    assert cache.get_seq_length() == LENGTH
    assert cache.layers[0].keys.shape == (2, N_HEADS, LENGTH, HEAD)
    torch.testing.assert_close(torch.cat(seen, 1), whole, rtol=1e-4, atol=1e-4)


def test_a_float_mask_means_the_same_as_a_bool_one(model, ids):
    mask, positions = prefix_layout([CONTEXT] * 2, LENGTH)
    floats = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    with torch.no_grad():
        ours = model(ids, attention_mask=floats, position_ids=positions)
    torch.testing.assert_close(ours, logits(model, ids))


@pytest.mark.parametrize("changed", [CONTEXT, CONTEXT + 2, LENGTH - 1])
def test_nothing_sees_a_later_answer_token(model, ids, changed):
    other = ids.clone()
    other[:, changed] = (other[:, changed] + 1) % N_VOCAB
    before, after = logits(model, ids), logits(model, other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).any(-1).all()


def test_the_context_sees_its_own_later_tokens(model, ids):
    other = ids.clone()
    other[:, CONTEXT - 1] = (other[:, CONTEXT - 1] + 1) % N_VOCAB
    assert (logits(model, ids) - logits(model, other)).abs().amax(-1).min() > 1e-4


def test_padding_on_the_left_changes_nothing(model, ids):
    plain = logits(model, ids)
    padded = torch.cat([torch.full((2, 3), 7), ids], 1)
    mask, positions = prefix_layout([CONTEXT] * 2, LENGTH + 3, padding=[3, 3])
    with torch.no_grad():
        ours = model(padded, attention_mask=mask, position_ids=positions)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours[:, 3:], plain, rtol=1e-4, atol=1e-4)


def test_the_layout_is_the_one_of_the_paper():
    mask, positions = prefix_layout([3, 2], 6, padding=[0, 1])
    assert positions.tolist() == [
        [[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]],
        [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 2, 3]],
    ]
    assert mask[:, 0].int().tolist() == [
        [[1, 1, 1, 0, 0, 0]] * 3 + [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1] * 6],
        [[0] * 6] + [[0, 1, 1, 0, 0, 0]] * 2 + [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]],
    ]


def test_gradients_reach_the_embeddings(model, ids):
    embeddings = model.transformer.word_embeddings(ids).detach().requires_grad_()
    mask, positions = prefix_layout([CONTEXT] * 2, LENGTH)
    states = model.transformer(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions)
    states.last_hidden_state[:, -1].square().sum().backward()
    assert (embeddings.grad.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("wrong", [{"quantization_bit": 8}, {"position_encoding_2d": False}, {"pre_seq_len": 4}])
def test_other_chatglms_are_refused(wrong):
    with pytest.raises(ModelError, match="only True, 0 and None"):
        ChatGLMConfig(**wrong)
