"""Weights of fewer bits: what --precision does to the graphs of a base."""

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

from .fuse import NORM, SKIP_NORM, fuse_norms, rewrite, save

# Bytes of a weight of a language model; blocks of 128 share a scale of four bytes.
BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1 + 4 / 128, "int4": 0.5 + 4 / 128}
PRECISIONS = tuple(BYTES)
DEVICES = ("cpu", "cuda", "tensorrt")
MAX_LOSS = 0.1  # of answers, below fp32
BLOCK = 128
LANGUAGE = ("decoder_model_merged.onnx", "encoder_model.onnx")


def made_for(device: str, precision: str) -> str:
    """The device that decides what a base's graphs are: one of DEVICES, `cpu` where a GPU's would be the same."""
    return "cpu" if device == "cuda" and precision in ("fp32", "fp16") else device


def lower(folder: Path, precision: str, device: str = "cpu") -> None:
    """Give the graphs in a folder and its token embeddings another precision than fp32.

    fp16: everything but what graphs take and give; keys and values too.
    int8, int4: a language model's matrices in blocks of 128 weights (MatMulNBits), and on a CPU a vision encoder's
    with one
        scale a column (dynamic int8, of 7 bits); of a model that only chooses among labels both encoders so, in int4
        as in int8. On a GPU, which has nothing for dynamic int8, and its attention in fp16 only, all else is in fp16.
    device: what `made_for` says.
    """
    if precision == "fp32":
        return
    for file in sorted(folder.glob("*.onnx")):
        if precision == "fp16" or device != "cpu":
            _halve(file, fused=device != "tensorrt" or file.name in LANGUAGE)
        if precision != "fp16" and file.name in LANGUAGE:
            _block(file, 4 if precision == "int4" else 8)
        elif precision != "fp16" and device == "cpu":
            _dynamic(file)
    for file in folder.glob("embed_tokens.npy"):
        np.save(file, np.load(file).astype(np.float16), allow_pickle=False)


def size_in_encoder(name: str, weight: Tensor, precision: str) -> int:
    """Bytes that a weight takes in the graph of an encoder. What is no matrix that is multiplied by stays whole below
    fp16."""
    multiplied = weight.ndim == 2 and "embedding" not in name
    return weight.numel() * {"fp32": 4, "fp16": 2}.get(precision, 1 if multiplied else 4)


def _block(file: Path, bits: int) -> None:
    with _root_logger_kept():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)  # a line for every node
    # The accuracy level lets the kernels multiply in int8: with the default, 8 bits are 20 times slower than fp32.
    quantizer = MatMulNBitsQuantizer(onnx.load(file), bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.model.replace_gemm_with_matmul()  # OPT's, which the quantiser would leave as they are
    quantizer.process()
    save(quantizer.model.model, file)


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Take back what onnxruntime's quantisers, when imported or run, do to the root logger of a user's program."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _dynamic(file: Path) -> None:
    # Not the convolution of the patches: its integer kernel is slow, and it is little of the vision encoder.
    work = file.with_name(f"{file.name}.int8")
    with _root_logger_kept():
        logging.getLogger().setLevel(logging.ERROR)  # its advice is for those who calibrate
        quantize_dynamic(
            onnx.load(file),
            work,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            # 7 bits: without VNNI two products of 8 bits are summed in 16 and cut off, and vision encoders were 2 to
            # 4 times further from fp32's than they are with 7, at the same speed.
            reduce_range=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what fused operators give
        )
    save(onnx.load(work), file)
    work.unlink()


def _halve(file: Path, fused: bool) -> None:
    if fused:  # the norms that are none yet: T5's, and some vision encoders'
        rewrite(file, fuse_norms)
    # Squares of large activations overflow in fp16: norms, and what onnxruntime fuses to one, stay in fp32, and with
    # them the sum of what the layers give. So do angles by which tokens are turned: at place 1,000 fp16 is a quarter
    # of a radian apart. And so does what T5's own code keeps in fp32: the product that ends a layer.
    graph = onnx.load(file, load_external_data=False).graph
    whole = _angles(graph) | {node.name for node in graph.node if "/DenseReluDense/wo/" in node.name}
    norms = {node.name for node in graph.node if node.op_type in (NORM, SKIP_NORM)}
    model = convert_float_to_float16(
        os.fspath(file),  # of a path, and of nothing else, it takes graphs of more than 2 GiB
        keep_io_types=["pixel_values", "image_features", "image_embeds", "inputs_embeds", "logits", "text_features"],
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Pow", "ReduceMean", "LayerNormalization", NORM, SKIP_NORM],
        node_block_list=list(whole),
    )
    _join(model.graph, whole | norms)
    save(model, file)


def _angles(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that make cosines and sines, from positions on."""
    maker = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    left = [node for node in graph.node if node.op_type in ("Cos", "Sin")]
    while left:
        node = left.pop()
        if node.op_type != "Shape" and node.name not in found:  # a shape is a number whatever it is of
            found.add(node.name)
            left += [maker[name] for name in node.input if name in maker]
    return found


def _join(graph: onnx.GraphProto, names: set[str]) -> None:
    """Let nodes of these names, all in fp32, read each other without the converter's two casts in between."""
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
    for _ in range(2):  # the casts that nothing reads any more, and what only those read
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]:
            graph.node.remove(node)
