"""Fewer bits for the graphs of a base: fp16, int8 and int4."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from torch import Tensor

from .choices import BYTES as BYTES
from .choices import DEVICES as DEVICES
from .choices import MAX_LOSS as MAX_LOSS
from .choices import PRECISIONS as PRECISIONS
from .fuse import NORM, SKIP_NORM, fuse_norms, rewrite, save

BLOCK = 128  # weights that share a scale
LANGUAGE = ("decoder_model_merged.onnx", "encoder_model.onnx")


def made_for(device: str, precision: str) -> str:
    """Return the device that a base's graphs are made for: `device`, or `cpu` if the graphs would be the same."""
    return "cpu" if device == "cuda" and precision in ("fp32", "fp16") else device


def reduce_precision(folder: Path, precision: str, device: str = "cpu") -> None:
    """Reduce the precision of a base's graphs and token embeddings, in place.

    - `fp16`: weights, computation, and the keys and values of the cache. Other inputs and outputs stay in fp32.
    - `int8`, `int4`: the matrices of the language model, in blocks of 128 weights (MatMulNBits). Matrices of encoders
      are in int8 with both, with one scale for each column (dynamic quantization to 7 bits). On a GPU, everything but
      the language model's matrices is in fp16: GPUs lack dynamic int8, and their fused attention takes fp16 only.

    Args:
        folder: the base, in fp32.
        precision: one of PRECISIONS; `fp32` changes nothing.
        device: what `made_for` returns. Default `cpu`.
    """
    if precision == "fp32":
        return
    for file in sorted(folder.glob("*.onnx")):
        if precision == "fp16" or device != "cpu":
            _to_fp16(file, fused=device != "tensorrt" or file.name in LANGUAGE)
        if precision != "fp16" and file.name in LANGUAGE:
            _quantize_blocks(file, 4 if precision == "int4" else 8)
        elif precision != "fp16" and device == "cpu":
            _quantize_dynamic(file)
    for file in folder.glob("embed_tokens.npy"):
        np.save(file, np.load(file).astype(np.float16), allow_pickle=False)


def size_in_encoder(name: str, weight: Tensor, precision: str) -> int:
    """Return the bytes of a weight in the graph of an encoder. int8 and int4 leave all but matrices in fp32."""
    is_matrix = weight.ndim == 2 and "embedding" not in name
    return weight.numel() * {"fp32": 4, "fp16": 2}.get(precision, 1 if is_matrix else 4)


def _quantize_blocks(file: Path, bits: int) -> None:
    with _keep_root_logger():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)  # it logs a line for every node
    # With accuracy level 4 the kernels multiply in int8. With the default, 8 bits are 20 times slower than fp32.
    quantizer = MatMulNBitsQuantizer(onnx.load(file), bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.model.replace_gemm_with_matmul()  # for OPT: the quantizer skips Gemm
    quantizer.process()
    save(quantizer.model.model, file)


@contextmanager
def _keep_root_logger() -> Iterator[None]:
    """Restore the root logger at the end: onnxruntime's quantizers change it when they are imported or run."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _quantize_dynamic(file: Path) -> None:
    # The convolution of the patches stays in fp32: its integer kernel is slow, and its share of the work is small.
    work = file.with_name(f"{file.name}.int8")
    with _keep_root_logger():
        logging.getLogger().setLevel(logging.ERROR)  # its warnings advise on calibration, which is not done here
        quantize_dynamic(
            onnx.load(file),
            work,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # 7 bits. A CPU without VNNI sums two products of 8 bits in 16 bits, and cuts the sum off. With 8 bits,
            # vision encoders were 2 to 4 times further from fp32 than with 7, at the same speed.
            reduce_range=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of the outputs of fused operators
        )
    save(onnx.load(work), file)
    work.unlink()


def _to_fp16(file: Path, fused: bool) -> None:
    if fused:  # T5's norms, and those of some vision encoders, are not fused yet
        rewrite(file, fuse_norms)
    # These stay in fp32:
    # - norms, the operators that onnxruntime fuses to norms, and the sum of the layers' outputs: squares of large
    #   activations overflow in fp16;
    # - rotary angles: at position 1,000, neighbouring fp16 numbers are half a radian apart;
    # - the last product of each T5 layer, as in T5's own code.
    graph = onnx.load(file, load_external_data=False).graph
    kept = _rotary_nodes(graph) | {node.name for node in graph.node if "/DenseReluDense/wo/" in node.name}
    norms = {node.name for node in graph.node if node.op_type in (NORM, SKIP_NORM)}
    model = convert_float_to_float16(
        os.fspath(file),  # it takes graphs above 2 GiB only as a path
        keep_io_types=["pixel_values", "image_features", "image_embeds", "inputs_embeds", "logits", "text_features"],
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Pow", "ReduceMean", "LayerNormalization", NORM, SKIP_NORM],
        node_block_list=list(kept),
    )
    _remove_casts_between(model.graph, kept | norms)
    save(model, file)


def _rotary_nodes(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the nodes that compute cosines and sines of rotary angles, beginning at the positions."""
    maker = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    left = [node for node in graph.node if node.op_type in ("Cos", "Sin")]
    while left:
        node = left.pop()
        if node.op_type != "Shape" and node.name not in found:  # the precision of a tensor does not change its shape
            found.add(node.name)
            left += [maker[name] for name in node.input if name in maker]
    return found


def _remove_casts_between(graph: onnx.GraphProto, names: set[str]) -> None:
    """Connect fp32 nodes of these names directly. The converter puts a cast to fp16 and one back between them."""
    maker = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        for i, name in enumerate(node.input if node.name in names else ()):
            up = maker.get(name)
            down = maker.get(up.input[0]) if up is not None and up.op_type == "Cast" else None
            if up is None or down is None or down.op_type != "Cast" or {up.name, down.name} & names:
                continue
            origin = maker.get(down.input[0])
            if origin is not None and origin.name in names:
                node.input[i] = down.input[0]
    for _ in range(2):  # first the casts that nothing reads any more, then those that only they read
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]:
            graph.node.remove(node)
