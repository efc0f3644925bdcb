"""The places that a graph reads weights from, wherever in a model onnx's format allows a tensor."""

from __future__ import annotations

import contextlib
import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import reads_weights_from
from tvp.sdk.errors import BundleError
from tvp.sdk.formats.external_data import locations


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
    found = locations(memoryview(data), "model.onnx")
    assert found == PLACES
    # A parser merges a graph that comes in two pieces.
    twice = onnx.ModelProto(graph=onnx.GraphProto(initializer=[elsewhere("second")])).SerializeToString()
    assert locations(memoryview(data + twice), "model.onnx") == found | {"second"}


def test_a_model_without_other_files():
    model = onnx.ModelProto(ir_version=10, producer_name="location")
    assert locations(memoryview(model.SerializeToString()), "model.onnx") == set()


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
        assert seen <= locations(memoryview(whole), "model.onnx")


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
            locations(memoryview(data), "model.onnx")
    many = b"\x3a\x00" * 1_000_000  # a million graphs, of which each is empty
    tracemalloc.start()
    assert locations(memoryview(many), "model.onnx") == set()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
