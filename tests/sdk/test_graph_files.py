"""The places that a graph reads weights from, wherever in a model onnx's format allows a tensor."""

from __future__ import annotations

import contextlib
import shutil
import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import listed_anew, reads_weights_from
from tvp import sdk
from tvp.sdk.errors import BundleError
from tvp.sdk.formats import archive
from tvp.sdk.formats.graph import FUNCTION, OPERATORS, read_graph


def elsewhere(place):
    tensor = onnx.TensorProto(name=place, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="location")
    tensor.external_data.add(key="location", value=place)
    return tensor


def node(**attribute):
    made = onnx.NodeProto(op_type="Constant", output=["y"])
    made.attribute.append(onnx.AttributeProto(name="value", **attribute))
    return made


PLACES = {
    "initializer", "sparse", "indices", "attribute", "list 1", "list 2", "sparse attribute", "sparse list",
    "branch of a branch", "list of graphs", "function", "default of a function", "training", "algorithm",
}  # fmt: skip


def every_place():
    model = onnx.ModelProto(ir_version=10, producer_name="location")
    graph = model.graph
    graph.initializer.append(elsewhere("initializer"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "here"))
    graph.sparse_initializer.append(onnx.SparseTensorProto(values=elsewhere("sparse"), indices=elsewhere("indices")))
    graph.node.append(node(t=elsewhere("attribute")))
    graph.node.append(node(tensors=[elsewhere("list 1"), elsewhere("list 2")]))
    graph.node.append(node(sparse_tensor=onnx.SparseTensorProto(values=elsewhere("sparse attribute"))))
    graph.node.append(node(sparse_tensors=[onnx.SparseTensorProto(values=elsewhere("sparse list"))]))
    inner = onnx.GraphProto(node=[node(g=onnx.GraphProto(initializer=[elsewhere("branch of a branch")]))])
    graph.node.append(node(g=inner))
    graph.node.append(node(graphs=[onnx.GraphProto(initializer=[elsewhere("list of graphs")])]))
    function = model.functions.add(name="f", domain="d", node=[node(t=elsewhere("function"))])
    function.attribute_proto.append(onnx.AttributeProto(name="default", t=elsewhere("default of a function")))
    model.training_info.add(initialization=onnx.GraphProto(initializer=[elsewhere("training")]))
    model.training_info[0].algorithm.initializer.append(elsewhere("algorithm"))
    return model


def test_every_place_is_found():
    data = every_place().SerializeToString()
    found = read_graph(memoryview(data), "model.onnx").locations
    assert found == PLACES
    # A parser merges a graph that comes in two pieces.
    twice = onnx.ModelProto(graph=onnx.GraphProto(initializer=[elsewhere("second")])).SerializeToString()
    assert read_graph(memoryview(data + twice), "model.onnx").locations == found | {"second"}


def test_a_model_without_other_files():
    model = onnx.ModelProto(ir_version=10, producer_name="location")
    assert read_graph(memoryview(model.SerializeToString()), "model.onnx").locations == set()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_what_onnx_can_read_is_read_alike(data):
    """A model with changed bytes: the places that onnx sees in it are seen, or it is refused."""
    whole = bytearray(reads_weights_from("elsewhere.bin"))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = onnx.ModelProto.FromString(bytes(whole))
    except Exception:  # not one
        model = onnx.ModelProto()
    seen = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    with contextlib.suppress(BundleError):
        assert seen <= read_graph(memoryview(whole), "model.onnx").locations


def test_what_is_deep_or_long_takes_no_memory():
    deep = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph …
        for number in (6, 5, 1):
            size = len(deep)
            length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
            deep = bytes([number << 3 | 2]) + length + deep
    long = onnx.ModelProto(graph=onnx.GraphProto(initializer=[elsewhere("x" * 10_000)])).SerializeToString()
    for data in (b"\x3a" + bytes([len(deep) & 0x7F | 0x80, len(deep) >> 7]) + deep, long):
        with pytest.raises(BundleError, match="not an onnx model"):
            read_graph(memoryview(data), "model.onnx")
    many = b"\x3a\x00" * 100_000  # a hundred thousand graphs, of which each is empty
    tracemalloc.start()
    assert read_graph(memoryview(many), "model.onnx").locations == set()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000


def made_of(*nodes, functions=()):
    graph = onnx.GraphProto(name="g", node=list(nodes))
    return onnx.ModelProto(ir_version=10, graph=graph, functions=list(functions)).SerializeToString()


def test_every_operator_is_found_at_any_depth():
    inner = onnx.GraphProto(node=[onnx.NodeProto(op_type="Loop"), onnx.NodeProto(op_type="Run", domain="custom")])
    branch = onnx.NodeProto(op_type="If", attribute=[onnx.AttributeProto(name="then_branch", g=inner)])
    function = onnx.FunctionProto(name="f", domain="d", node=[onnx.NodeProto(op_type="Scan")])
    data = made_of(onnx.NodeProto(op_type="Add", domain="ai.onnx"), branch, functions=[function])
    found = read_graph(memoryview(data), "model.onnx").operators
    assert found == {("ai.onnx", "Add"), ("", "If"), ("", "Loop"), ("custom", "Run"), (FUNCTION, "call"), ("", "Scan")}


@pytest.mark.parametrize(
    ("domain", "operator"),
    [("", "Loop"), ("", "If"), ("", "Scan"), ("", "SequenceMap"), ("", "ImageDecoder"), ("", "StringNormalizer"),
     ("ai.onnx.ml", "TreeEnsemble"), ("com.microsoft", "BeamSearch"), ("com.microsoft", "Loop"), ("mine", "Add"),
     ("com.microsoft", "EPContext"), ("", ""), ("", "RandomNormal")],
)  # fmt: skip
def test_other_operators_are_refused(domain, operator):
    data = made_of(onnx.NodeProto(op_type=operator, domain=domain))
    with pytest.raises(BundleError, match="which no bundle of TVP has"):
        read_graph(memoryview(data), "model.onnx").refuse_unusual("model.onnx", ())


def test_a_loop_that_never_ends_is_refused_before_it_runs(one_bundle, tmp_path):
    """onnxruntime would run it for ever: no time limit, no signal and no other thread could stop it."""
    body = onnx.parser.parse_graph("body (int64 i, bool c) => (bool d) { d = Identity(c) }")
    loop = onnx.helper.make_node("Loop", ["", "go"], [], body=body)
    go = onnx.helper.make_tensor("go", onnx.TensorProto.BOOL, [], [True])
    copy = tmp_path / "bundle"
    shutil.copytree(one_bundle, copy)
    model = onnx.load(copy / "preprocess.onnx")
    model.graph.node.append(loop)
    model.graph.initializer.append(go)
    content = model.SerializeToString()
    (copy / "preprocess.onnx").write_bytes(content)
    manifest = copy / "manifest.json"
    manifest.write_bytes(listed_anew(manifest.read_bytes(), "preprocess.onnx", content))
    with pytest.raises(BundleError, match="the operator 'Loop'"):
        sdk.load(copy)
    archive.pack(copy, tmp_path / "count.tvp")
    with pytest.raises(BundleError, match="the operator 'Loop'"):
        archive.unpack(tmp_path / "count.tvp", tmp_path / "out")


def test_the_operators_are_onnxs():
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert OPERATORS[""] - known <= {"SimplifiedLayerNormalization"}  # onnxruntime's, in onnx's domain
