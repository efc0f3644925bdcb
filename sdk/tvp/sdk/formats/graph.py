"""What a graph would do, found without onnx: the files that it reads weights from, and the operators that it runs.

A bundle may come from a stranger. onnxruntime reads every file that a graph names: before version 1.24 any file of the
machine, and today any file beside the graph, whether its digest was checked or not. So a graph is opened only if its
manifest lists every file that it names. And a loop in a graph may never end, while nothing outside can stop it. So a
graph is opened only if each of its operators is one of `OPERATORS`, which compute something once.
"""

from __future__ import annotations

import mmap
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BundleError

# onnx's own operators, but those that run other graphs, or make sequences, optional values, texts, pictures or chance.
_STANDARD = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike CausalConvWithState Ceil Celu
    CenterCropPad Clip Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd
    CumSum DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike
    Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf
    IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual LinearAttention Log LogSoftmax LpNormalization LpPool
    MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu
    Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    RotaryEmbedding Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign SimplifiedLayerNormalization
    Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum SwiGLU Swish Tan Tanh
    TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
# onnxruntime's own, fused and quantised.
_CONTRIBUTED = """
    Attention BiasGelu BiasSplitGelu DequantizeLinear DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul
    GatherBlockQuantized Gelu GroupNorm GroupQueryAttention LayerNormalization MatMulBnb4 MatMulIntegerToFloat
    MatMulNBits MultiHeadAttention PackedAttention PackedMultiHeadAttention QAttention QGemm QLinearAdd QLinearMul
    QLinearSigmoid QLinearSoftmax QMoE MoE QuantizeLinear QuickGelu RelativePositionBias RotaryEmbedding
    SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization
"""
_OF_ONNX = frozenset(_STANDARD.split())
OPERATORS = {"": _OF_ONNX, "ai.onnx": _OF_ONNX, "com.microsoft": frozenset(_CONTRIBUTED.split())}  # by domain
FUNCTION = "a function of the graph's own"
# The messages of onnx.proto that may contain weights or operators: number and meaning of each field that leads there.
FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {4: "operator", 5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
KEY, VALUE = 1, 2  # fields of an entry of a tensor's external data
FIXED = {1: 8, 5: 4}  # bytes of a value, for the wire types of a fixed size
MAX_DEPTH = 100  # of messages in messages: protobuf's own bound
MAX_ENTRY = 4096  # bytes; an entry is a name or a number
MAX_FIELDS = 10_000_000  # takes some seconds; the graph of a large model has some ten thousand
Buffer = memoryview | mmap.mmap


@dataclass(eq=False, repr=False)
class Graph:
    """What a graph would do.

    Attributes:
        locations: the files that it reads weights from.
        operators: domain and name of every operator in it. A function that it defines is one, of the domain FUNCTION.
    """

    locations: set[str] = field(default_factory=set)
    operators: set[tuple[str, str]] = field(default_factory=set)

    def refuse_unusual(self, name: str, listed: Container[str]) -> None:
        """Raise BundleError where it reads other files or runs other operators than a bundle's graphs do.

        Args:
            name: of the graph, for messages.
            listed: names of the files beside it that it may read.
        """
        for location in sorted(self.locations):
            if set(location) & set("/*") or location not in listed:  # onnxruntime marks an address in memory by a `*`
                raise BundleError(
                    f"{name} reads its weights from {location!r}, which is not a file that its manifest lists. "
                    "Export or copy the bundle again."
                )
        for domain, operator in sorted(self.operators):
            if operator not in OPERATORS.get(domain, ()):
                raise BundleError(
                    f"{name} has the operator {operator!r} of {domain or 'onnx'!r}, which no bundle of TVP has. "
                    "A graph may only compute: a loop in it could never be stopped. Export the bundle again."
                )


def check_graph(file: Path, listed: Container[str]) -> None:
    """Read a graph's file and raise BundleError where `Graph.refuse_unusual` does."""
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graph = read_graph(data, str(file))
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise BundleError(f"{file} cannot be read: {error}.") from error
    graph.refuse_unusual(str(file), listed)


def read_graph(data: Buffer, name: str) -> Graph:
    """Find the `location` of every tensor that lies in another file, and every operator.

    Args:
        data: a serialised onnx model.
        name: of the model, for messages.

    Raises:
        BundleError: the bytes are not an onnx model.
    """
    found = Graph()
    left = [MAX_FIELDS]
    # A message's kind, its fields, and what is known of it if it is a node.
    stack: list[tuple[str, Iterator[tuple[int, int, int]], dict[str, str]]] = []
    stack.append(("model", _fields(data, 0, len(data), left), {}))
    try:
        while stack:
            kind, fields, node = stack[-1]
            entry = next(fields, None)
            if entry is None:
                stack.pop()
                if kind == "node":
                    found.operators.add((node.get("domain", ""), node.get("operator", "")))
                continue
            number, begin, end = entry
            deeper = FIELDS[kind].get(number)
            if deeper == "entry":
                found.locations.update(_location(data, begin, end))
            elif deeper in ("operator", "domain"):
                node[deeper] = bytes(data[begin : min(end, begin + MAX_ENTRY)]).decode()
            elif deeper:
                stack.append((deeper, _fields(data, begin, end, left), {}))
                if deeper == "function":
                    found.operators.add((FUNCTION, "call"))
            if len(stack) > MAX_DEPTH:
                raise ValueError("messages are nested too deeply")
    except (ValueError, IndexError) as error:
        raise BundleError(f"{name} is damaged: it is not an onnx model. Export or copy the bundle again.") from error
    return found


def _location(data: Buffer, start: int, end: int) -> Iterator[str]:
    """Yield the location that an entry of a tensor's external data holds; nothing for other entries."""
    if end - start > MAX_ENTRY:
        raise ValueError("an entry is too long for a name")
    entry = {number: bytes(data[begin:stop]) for number, begin, stop in _fields(data, start, end, [MAX_ENTRY])}
    if entry.get(KEY) == b"location":
        yield entry.get(VALUE, b"").decode()


def _fields(data: Buffer, start: int, end: int, left: list[int]) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field that has a length; other fields are skipped.

    Args:
        data: the model.
        start, end: where the message lies in it.
        left: one number: how many more fields may be read. Every message that is given the same list counts it down.
    """
    while start < end:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("there are more fields than in any graph")
        tag, start = _varint(data, start)
        if tag >> 32:  # protobuf's own parser would drop the upper bits
            raise ValueError("a field's number has more than 32 bits")
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, start = _varint(data, start)
        elif wire in FIXED:
            start += FIXED[wire]
        elif wire == 2:
            size, start = _varint(data, start)
            if size > end - start:
                raise ValueError("a field is longer than its message")
            yield number, start, start + size
            start += size
        else:
            raise ValueError(f"the wire type {wire} is unknown")
    if start != end:
        raise ValueError("a field is longer than its message")


def _varint(data: Buffer, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start += 1
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
