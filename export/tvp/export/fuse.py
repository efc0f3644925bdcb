"""Fusions in a traced graph that onnxruntime does not do by itself: projections before attention, RMS norms, GELU.

Tracing writes reshapes between each projection and the fused attention. They change nothing, but onnxruntime runs all
of them for every token. Without them, the three projections can become one.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnxruntime.transformers.fusion_fastgelu import FusionFastGelu
from onnxruntime.transformers.fusion_simplified_layernorm import FusionSimplifiedLayerNormalization
from onnxruntime.transformers.fusion_skiplayernorm import FusionSkipLayerNormalization
from onnxruntime.transformers.onnx_model import OnnxModel

NORM, SKIP_NORM = "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"
MAX_PROTOBUF = 2**31 - 2**24  # bytes; larger weights go into a second file


class Graph:
    """An index of a graph.

    Attributes:
        graph: the graph itself.
        maker: the node that makes a value, by the value's name.
        weights: the constants, by name.
        readers: number of nodes and graph outputs that read a value, by its name.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.maker = {output: node for node in graph.node for output in node.output}
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(output.name for output in graph.output)

    def source(self, name: str, *through: str) -> str:
        """Go back from a value over nodes of these operators, by their first input; return the value before them."""
        while (node := self.maker.get(name)) is not None and node.op_type in through:
            name = node.input[0]
        return name

    def projection(self, name: str) -> tuple[NodeProto, NodeProto | None] | None:
        """Return the nodes that make a value, if they are a linear layer.

        Returns:
            The MatMul by a constant, and the Add of a constant after it (None if there is no bias). None for any
            other value.
        """
        node, add = self.maker.get(name), None
        if node is not None and node.op_type == "Add":
            constant = next((i for i in node.input if i in self.weights), None)
            other = next((i for i in node.input if i not in self.weights), None)
            if constant is None or other is None or self.readers[other] != 1:
                return None
            node, add = self.maker.get(other), node
        if node is None or node.op_type != "MatMul" or node.input[1] not in self.weights:
            return None
        return node, add

    def array(self, name: str) -> np.ndarray:
        array: np.ndarray = numpy_helper.to_array(self.weights[name])
        return array

    def bias(self, add: NodeProto) -> np.ndarray:
        return self.array(next(i for i in add.input if i in self.weights))


def rewrite(file: Path, *changes: Callable[[onnx.ModelProto], None]) -> None:
    """Apply changes to a graph on disk.

    Args:
        file: the graph.
        changes: functions that change a model in place.
    """
    model = onnx.load(file)
    # Of equal weights (biases of zeros, for instance) tracing keeps one, with an Identity node for each of the others.
    _redirect(model.graph, {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity"})
    for change in changes:
        change(model)
    _drop_unused(model.graph)
    save(model, file)


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a model to a file, or replace it. Weights that are too large for one file go into `FILE_data` beside it."""
    for old in (file, file.with_name(f"{file.name}_data")):
        old.unlink(missing_ok=True)
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > MAX_PROTOBUF
    onnx.save(model, file, save_as_external_data=large, location=f"{file.name}_data")
    if large:
        make_readable(file)


def make_readable(file: Path) -> None:
    """Give a graph's file of weights the graph's permissions: onnx makes it readable for its owner only."""
    data = file.with_name(f"{file.name}_data")
    if data.exists():
        shutil.copymode(file, data)


def merge(preprocess: Path, encoder: Path, file: Path) -> None:
    """Join a preprocessing graph and a vision encoder to one graph.

    Args:
        preprocess: the graph `image` uint8 (height, width, 3) -> `pixel_values`.
        encoder: the graph `pixel_values` -> the encoder's output.
        file: where to write the joined graph.
    """
    first, second = onnx.load(preprocess), _load_with_weights(encoder)
    versions = {opset.domain: opset.version for model in (first, second) for opset in model.opset_import}
    ir_version = max(first.ir_version, second.ir_version)
    onnx.compose.add_prefix(second, "encoder.", rename_outputs=False, inplace=True)
    # merge_models would check the result, and its check fails above 2 GiB.
    graph = onnx.compose.merge_graphs(first.graph, second.graph, [("pixel_values", "encoder.pixel_values")])
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
    save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), file)


def _load_with_weights(file: Path) -> onnx.ModelProto:
    """Read a model. onnx.load refuses a file of weights that has several hard links, which a shared base has."""
    model = onnx.load(file, load_external_data=False)
    for weight in model.graph.initializer:
        if uses_external_data(weight):
            place = ExternalDataInfo(weight)
            with open(file.parent / place.location, "rb") as stream:
                stream.seek(place.offset or 0)
                weight.raw_data = stream.read(place.length or -1)
            weight.data_location = onnx.TensorProto.DEFAULT
            del weight.external_data[:]
    return model


def fuse_attention(model: onnx.ModelProto) -> None:
    """Remove the reshapes around GroupQueryAttention, and make one projection of queries, keys and values.

    The operator then reads and writes (n, n_new, heads * head) directly.
    """
    graph = Graph(model.graph)
    for node in [n for n in model.graph.node if n.op_type == "GroupQueryAttention"]:
        for i in range(3):
            name = graph.source(node.input[i], "Reshape", "Transpose")
            # The output of a projection has the shape (n, n_new, heads * head). Any other value keeps its reshapes.
            if graph.projection(name):
                node.input[i] = name
        _merge_projections(graph, node)
        _remove_reshapes_after(graph, node)


def _merge_projections(graph: Graph, node: NodeProto) -> None:
    found = [graph.projection(name) for name in node.input[:3]]
    if any(pair is None for pair in found) or len(set(node.input[:3])) != 3:
        return
    matmuls, adds = zip(*[pair for pair in found if pair], strict=True)
    if len({matmul.input[0] for matmul in matmuls}) != 1 or len({add is None for add in adds}) != 1:
        return
    if any(graph.readers[matmul.output[0]] != 1 for matmul in matmuls):
        return
    first, prefix = matmuls[0], node.output[0]
    packed = np.concatenate([graph.array(matmul.input[1]) for matmul in matmuls], 1)
    made = [onnx.helper.make_node("MatMul", [first.input[0], f"{prefix}.qkv_weight"], [f"{prefix}.qkv"])]
    weights = [numpy_helper.from_array(packed, f"{prefix}.qkv_weight")]
    if adds[0] is not None:
        bias = np.concatenate([graph.bias(add) for add in adds])
        made.append(onnx.helper.make_node("Add", [f"{prefix}.qkv", f"{prefix}.qkv_bias"], [f"{prefix}.qkv_biased"]))
        weights.append(numpy_helper.from_array(bias, f"{prefix}.qkv_bias"))
    node.input[0], node.input[1], node.input[2] = made[-1].output[0], "", ""
    at = list(graph.graph.node).index(node)
    for offset, new in enumerate(made):
        graph.graph.node.insert(at + offset, new)
    graph.graph.initializer.extend(weights)


def _remove_reshapes_after(graph: Graph, node: NodeProto) -> None:
    """Remove two reshapes after a node: (n, n_new, heads * head) -> (…, heads, head) -> (n, n_new, heads * head)."""
    name, reshapes = node.output[0], []
    while graph.readers[name] == 1:
        reader = next(n for n in graph.graph.node if name in n.input)
        if reader.op_type != "Reshape" or reader.input[0] != name:
            break
        reshapes.append(reader)
        name = reader.output[0]
    if len(reshapes) == 2:
        _redirect(graph.graph, {name: node.output[0]})


def fuse_norms(model: onnx.ModelProto) -> None:
    """Fuse each RMS norm, with the sum before it, to one operator. onnxruntime itself fuses the norm only."""
    graph, known = model.graph, _infer_values(model)
    # Casts of float32 to float32 change nothing, but hide the pattern of a norm.
    idle = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast"
        and node.input[0] in known
        and known[node.input[0]].type.tensor_type.elem_type == onnx.helper.get_node_attr_value(node, "to")
    }
    _redirect(graph, idle)
    _drop_unused(graph)
    whole = OnnxModel(model)
    FusionSimplifiedLayerNormalization(whole).apply()
    FusionSkipLayerNormalization(whole, SKIP_NORM, NORM, shape_infer=False).apply()
    whole.topological_sort()
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    # The tools that reduce a graph's precision do not know these operators: they need the types of their outputs.
    made = [name for node in graph.node if node.op_type in (NORM, SKIP_NORM) for name in node.output]
    graph.value_info.extend(known[name] for name in made if name in known)


def _infer_values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Infer types and shapes of a graph's values, by name. The data of the weights is left out: it may be large."""
    graph = model.graph
    weights = [onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in graph.initializer]
    inputs = [*graph.input, *weights]
    bare = onnx.helper.make_graph(graph.node, "bare", inputs, graph.output, value_info=graph.value_info)
    found = onnx.shape_inference.infer_shapes(onnx.helper.make_model(bare, opset_imports=model.opset_import)).graph
    return {value.name: value for value in (*found.input, *found.output, *found.value_info)}


def fuse_gelu(model: onnx.ModelProto) -> None:
    """Fuse each tanh approximation of GELU to one operator. onnxruntime itself fuses the exact GELU only."""
    whole = OnnxModel(model)
    FusionFastGelu(whole).apply()
    whole.topological_sort()


def _redirect(graph: GraphProto, names: dict[str, str]) -> None:
    """Make every node that reads a value in `names` read the value that it maps to."""
    for node in graph.node:
        for i, name in enumerate(node.input):
            while name in names:
                name = names[name]
            node.input[i] = name


def _drop_unused(graph: GraphProto) -> None:
    """Remove nodes and weights that nothing reads."""
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [weight for weight in graph.initializer if weight.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(weights)
