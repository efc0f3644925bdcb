"""Graphs of reduced precision: every matrix takes fewer bits, and no sum overflows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.export.test_fused import operators
from tests.tiny import save_tiny
from tvp import sdk
from tvp.export import bundle as bundle_module
from tvp.export import graphs, parity
from tvp.export.bundle import export
from tvp.export.kinds import causal, seq2seq
from tvp.export.precision import reduce_precision
from tvp.trainer import families, tasks


def test_products_of_the_largest_weights_are_not_cut_off(tmp_path):
    """On a machine without VNNI; others sum all products in 32 bits."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weights"], ["y"], name="product")],
        "vision_encoder",
        [value("x", onnx.TensorProto.FLOAT, [1, 64])],
        [value("y", onnx.TensorProto.FLOAT, [1, 16])],
        [onnx.numpy_helper.from_array(np.ones((64, 16), np.float32), "weights")],
    )
    file = tmp_path / "vision_encoder.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), file)
    reduce_precision(tmp_path, "int8")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.ones((1, 64), np.float32)})
    np.testing.assert_allclose(found, 64, rtol=0.01)
    stored = [onnx.numpy_helper.to_array(weight) for weight in onnx.load(file).graph.initializer]
    (weights,) = (array for array in stored if array.dtype == np.int8 and array.ndim == 2)
    assert np.abs(weights).max() <= 64  # which is what tells on the others


def test_a_program_keeps_its_own_logging():
    """onnxruntime's quantiser configures the root logger when it is imported."""
    code = (
        "import logging, pathlib, tempfile, numpy, onnx; from onnx import helper, numpy_helper as nh\n"
        "from tvp.export.precision import reduce_precision\n"
        "x = [helper.make_tensor_value_info(n, 1, [2, 4]) for n in 'xy']\n"
        "g = helper.make_graph([helper.make_node('MatMul', ['x', 'w'], ['y'])], 'g', x[:1], x[1:],\n"
        "    [nh.from_array(numpy.ones((4, 4), numpy.float32), 'w')])\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n"
        "onnx.save(helper.make_model(g, opset_imports=[helper.make_opsetid('', 18)]), folder / 'encoder_model.onnx')\n"
        "reduce_precision(folder, 'int8')\n"
        "assert 'MatMulNBits' in str(onnx.load(folder / 'encoder_model.onnx').graph.node)\n"
        "root = logging.getLogger(); assert not root.handlers and root.level == logging.WARNING, root.level\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sums_larger_than_half_precision_holds_stay_finite(tmp_path):
    """The layers of large models add up to more than 65,504."""
    family = families.load(save_tiny("llava", tmp_path / "model"))
    layers = family.decoder.layers
    given = []
    for layer in layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: given.append(output.abs().max()))
    inputs = torch.randn(1, 6, family.embed_tokens.embedding_dim, generator=torch.Generator().manual_seed(0))
    sums = []
    family.decoder.norm.register_forward_pre_hook(lambda module, inputs: sums.append(inputs[0].abs().max()))
    for i, layer in enumerate(layers):  # each gives as much as half precision holds
        given.clear()
        family.decoder(inputs_embeds=inputs)
        layer.mlp.down_proj.weight.data *= 6e4 / given[i]
    sums.clear()
    expected = family.head(family.decoder(inputs_embeds=inputs).last_hidden_state)[0, -1].detach().numpy()
    assert sums[0] > 7e4
    causal.export_decoder(family, tmp_path / "decoder_model_merged.onnx")
    reduce_precision(tmp_path, "fp16")
    session = onnxruntime.InferenceSession(tmp_path / "decoder_model_merged.onnx", providers=["CPUExecutionProvider"])
    n_heads, head = graphs.cache_shape(family)
    empty = np.zeros((1, n_heads, 8, head), np.float16)
    past = {value.name: empty for value in session.get_inputs() if value.name.startswith("past")}
    counts = {"seqlens_k": np.array([5], np.int32), "total_sequence_length": np.array(6, np.int32)}
    logits = session.run(
        ["logits"], {"inputs_embeds": inputs.numpy(), "num_logits_to_keep": np.array(1), **counts, **past}
    )[0][0, 0]
    np.testing.assert_allclose(logits, expected, atol=0.02 * np.abs(expected).max())


def test_every_layer_of_opt_takes_fewer_bits(tmp_path):
    """Its MLP is traced as Gemm, which the quantiser passes over by itself."""
    family = families.load(save_tiny("blip2", tmp_path / "model"))
    causal.export_decoder(family, tmp_path / "decoder_model_merged.onnx")
    before = operators(tmp_path / "decoder_model_merged.onnx")
    assert before["Gemm"] == 2 * family.text_config.num_hidden_layers
    reduce_precision(tmp_path, "int4")
    after = operators(tmp_path / "decoder_model_merged.onnx")
    assert after["Gemm"] == after["MatMul"] == 0
    assert after["MatMulNBits"] == before["Gemm"] + before["MatMul"]


def test_t5s_sums_larger_than_half_precision_holds_stay_finite(tmp_path):
    """Its norms are traced as products and means, and its own code keeps the product that ends a layer in fp32."""
    family = families.load(save_tiny("blip2-t5", tmp_path / "model"))
    encoder = family.language_model.encoder
    given, sums = [], []
    for block in encoder.block:
        block.layer[1].DenseReluDense.wo.register_forward_hook(
            lambda module, inputs, output: given.append(output.abs().max())
        )
    encoder.final_layer_norm.register_forward_pre_hook(lambda module, inputs: sums.append(inputs[0].abs().max()))
    inputs = torch.randn(1, 6, family.embed_tokens.embedding_dim, generator=torch.Generator().manual_seed(0))
    for i, block in enumerate(encoder.block):
        given.clear()
        encoder(inputs_embeds=inputs)
        block.layer[1].DenseReluDense.wo.weight.data *= 7e4 / given[i]
    sums.clear()
    with torch.no_grad():
        expected = seq2seq.Encoder(family)(inputs)[0].numpy()
    assert sums[0] > 7e4
    file = tmp_path / "encoder_model.onnx"
    seq2seq.export_encoder(family, file)
    reduce_precision(tmp_path, "fp16")
    found = operators(file)
    assert found["ReduceMean"] == 0
    assert found["SkipSimplifiedLayerNormalization"] == 2 * len(encoder.block)
    half = {w.name for w in onnx.load(file).graph.initializer if w.data_type == onnx.TensorProto.FLOAT16}
    ends = [node for node in onnx.load(file).graph.node if "/wo/MatMul" in node.name]
    assert len(ends) == len(encoder.block)
    assert not half.intersection(name for node in ends for name in node.input)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run([session.get_outputs()[0].name], {"inputs_embeds": inputs.numpy()})
    np.testing.assert_allclose(logits, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["blip2-t5", "instructblip", "clip"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_part_for_a_gpu_has_kernels_there(name, precision, tmp_path):
    """T5, a connector, two encoders: nothing of dynamic int8, and all that is left is in half precision."""
    export(
        save_tiny(name, tmp_path / "model"),
        tasks.get("count"),
        tmp_path / "out",
        precision=precision,
        device="cuda",
        n_cases=2,
        max_loss=1,
    )
    for file in (tmp_path / "out" / "base").glob("*.onnx"):
        assert not {"MatMulInteger", "DynamicQuantizeLinear"} & {*operators(file)}
        kinds = {w.data_type for w in onnx.load(file).graph.initializer if len(w.dims) == 2}
        assert onnx.TensorProto.FLOAT16 in kinds or operators(file)["MatMulNBits"]


def test_the_share_of_golden_cases_that_differ_is_allowed_where_all_were_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "MOST_GOLDEN", 2)
    real = parity.measure

    def first_two_differ(*arguments, **options):
        report = real(*arguments, **options)
        report.golden = [
            (picture, replace(case, tokens=(*case.tokens[:-1], case.tokens[-1] ^ 1))) for picture, case in report.golden
        ]
        report.n_golden_different = 2
        return report

    monkeypatch.setattr(parity, "measure", first_two_differ)
    export(
        save_tiny("llava", tmp_path / "model"),
        tasks.get("count"),
        tmp_path / "out",
        precision="fp16",
        n_cases=4,
        max_loss=0.5,
    )
    with sdk.load(tmp_path / "out") as task:
        assert task.check()["different"] == 2
