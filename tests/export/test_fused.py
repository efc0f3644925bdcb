"""What onnxruntime's own operators replace, and that they compute the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers as hf
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.tiny import save_tiny
from tvp.export import graphs
from tvp.export.attention import rotary_angles
from tvp.export.kinds import causal
from tvp.export.operators import group_query_attention, multi_head_attention
from tvp.trainer import families

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}


def operators(file):
    return Counter(node.op_type for node in onnx.load(file).graph.node)


def test_the_operator_turns_by_places_as_llama_does():
    decoder = hf.LlamaModel(hf.LlamaConfig(**SMALL, rope_theta=100.0))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 6, 32, generator=generator) for _ in range(3))
    cos, sin = rotary_angles(decoder, 64)
    empty, lengths = torch.zeros(2, 2, 9, 16), torch.full((2,), 5, dtype=torch.int32)
    total = torch.tensor(6, dtype=torch.int32)
    by_places, *_ = group_query_attention(query, key, value, empty, empty, lengths, total, cos, sin, 2, 2, 0.25)
    heads = [t.view(2, 6, 2, 16).transpose(1, 2) for t in (query, key)]
    turned = apply_rotary_pos_emb(*heads, *decoder.rotary_emb(value, torch.arange(6)[None]))
    flat = [t.transpose(1, 2).reshape(2, 6, 32) for t in turned]
    before, *_ = group_query_attention(*flat, value, empty, empty, lengths, total, None, None, 2, 2, 0.25)
    torch.testing.assert_close(by_places, before)
    assert not torch.allclose(
        by_places, group_query_attention(query, key, value, empty, empty, lengths, total, None, None, 2, 2, 0.25)[0]
    )


def test_angles_that_depend_on_the_length_are_left_to_the_model():
    assert rotary_angles(hf.LlamaModel(hf.LlamaConfig(**SMALL)), 64) is not None
    assert (
        rotary_angles(hf.LlamaModel(hf.LlamaConfig(**SMALL, rope_scaling={"rope_type": "dynamic", "factor": 2.0})), 64)
        is None
    )
    assert rotary_angles(hf.LlamaModel(hf.LlamaConfig(**SMALL)), None) is None  # as many places as there may be
    opt = hf.OPTConfig(hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    assert rotary_angles(hf.OPTModel(opt), 64) is None


def test_a_decoder_is_as_few_operators_as_can_be(tmp_path):
    """One projection into attention, none of the reshapes around it, no angle that is computed again, and every sum
    in the norm behind it."""
    family = families.load(save_tiny("llava", tmp_path / "model"))
    causal.export_decoder(family, tmp_path / "decoder.onnx")
    n_layers = family.text_config.num_hidden_layers
    found = operators(tmp_path / "decoder.onnx")
    assert found["GroupQueryAttention"] == n_layers
    assert found["MatMul"] == 5 * n_layers + 1  # in and out of attention, three of the MLP; the head
    assert found["SkipSimplifiedLayerNormalization"] == 2 * n_layers  # the last is the decoder's own norm
    assert found["SimplifiedLayerNormalization"] == 1
    assert not {"Cos", "Sin", "Transpose", "Reshape", "Cast", "Identity", "ReduceMean", "Add"} & set(found)
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx", providers=["CPUExecutionProvider"])
    assert "position_ids" not in {value.name for value in session.get_inputs()}


@pytest.mark.parametrize("equal", [False, True])
def test_biases_are_packed_too(equal, tmp_path):
    """Qwen2 adds to its projections; packed or not, the sdk's answers are PyTorch's (test_every_family_exports).

    equal: as in a model that was not trained, whose biases are all zero; tracing keeps one of equal weights.
    """
    family = families.load(save_tiny("internvl", tmp_path / "model"))
    for name, weight in family.decoder.named_parameters():
        if equal and name.endswith("proj.bias"):
            weight.data.zero_()
    causal.export_decoder(family, tmp_path / "decoder.onnx")
    weights = {weight.name: weight for weight in onnx.load(tmp_path / "decoder.onnx").graph.initializer}
    packed = [name for name in weights if name.endswith("qkv_bias")]
    assert operators(tmp_path / "decoder.onnx")["MatMul"] == 5 * family.text_config.num_hidden_layers + 1
    assert len(packed) == family.text_config.num_hidden_layers
    attention = family.decoder.layers[0].self_attn
    expected = torch.cat([attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias])
    arrays = [onnx.numpy_helper.to_array(weights[name]) for name in packed]
    assert any(np.array_equal(array, expected.numpy()) for array in arrays)


@pytest.mark.parametrize("name", ["llava", "smolvlm", "blip2"])
def test_a_vision_encoder_is_fused_unless_tensorrt_is_meant_to_run_it(name, tmp_path):
    family = families.load(save_tiny(name, tmp_path / "model"))
    size = family.pixel_format.size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = family.see(pixels).numpy()
    for fused in (True, False):
        file = tmp_path / f"{fused}.onnx"
        graphs.export_vision_encoder(family, file, fused)
        found = operators(file)
        assert bool(found["MultiHeadAttention"]) == fused
        assert {node.domain for node in onnx.load(file).graph.node} == ({"", "com.microsoft"} if fused else {""})
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"pixel_values": pixels.numpy()})[0], expected, atol=1e-4)


def test_every_token_of_a_vision_encoder_sees_every_one():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 5, 8, generator=generator) for _ in range(3))
    heads = [t.view(2, 5, 2, 4).transpose(1, 2) for t in (query, key, value)]
    expected = (heads[0] @ heads[1].mT * 0.3).softmax(-1) @ heads[2]
    torch.testing.assert_close(
        multi_head_attention(query, key, value, 2, 0.3), expected.transpose(1, 2).reshape(2, 5, 8)
    )
