"""A lens as nodes of the preprocessing graph: the same mathematics as tvp.trainer.lens, in an order that costs less.

Measured with benchmarks/lens_speed.py, these matter:

- The colour matrix is part of the convolution before it, as nothing bends between the two. So a kernel a channel and a
  matrix are one convolution, and of `conv` the picture that the network is added to passes through the matrix alone.
- onnxruntime computes output channels in blocks of 16 (8 without AVX-512), and a lens ends in three. So its last
  convolution gives the pixels of a small square at once, as channels, with a stride; DepthToSpace puts them in place.
- Edges are repeated once, for all convolutions together.
- A power is the exponential of a multiple of the logarithm, and none where the exponent is one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tvp.trainer.lens import FLOOR, LEAST_SPREAD, MEAN, REACH, SPREAD, Lens

from .nodes import Nodes

# Sides, px, of the squares whose pixels are computed at once. A larger square multiplies more zeros, which cost little
# where three channels come in and much where sixteen do.
KERNEL_SQUARE, CONV_SQUARE = 4, 2


def add_lens(g: Nodes, picture: str, lens: Lens, side: int) -> str:
    """Add a lens to a graph.

    Args:
        g: the graph.
        picture: name of float32 (1, 3, side, side), values in [0, 1].
        lens: the lens.
        side: of the picture, px.

    Returns:
        The name of the picture behind the lens, of the same shape, values in [0, 1].
    """
    values = {name: value.detach().cpu().double().numpy() for name, value in lens.values.items()}
    matrix, bias, design = values["matrix"], values["bias"], lens.design
    if design.normalise:
        picture = _normalised(g, picture)
    if design.kind == "conv":
        picture = _network(g, picture, values, design.depth, side)
    elif design.kind == "kernel":
        weight = np.einsum("dc,chw->dchw", matrix, values["kernel"])
        picture = _convolved(g, _with_edges(g, picture, 1, side, KERNEL_SQUARE), weight, bias, KERNEL_SQUARE)
        picture = _in_place(g, picture, side, KERNEL_SQUARE)
    else:
        picture = g.op("Conv", picture, g.real(matrix[:, :, None, None]), g.real(bias))
    return _toned(g, picture, np.exp(values["tone"]))


def _network(g: Nodes, picture: str, values: dict[str, NDArray[np.float64]], depth: int, side: int) -> str:
    """Add the convolutions of `conv`, what they are added to, and the colour matrix."""
    square, matrix = CONV_SQUARE, values["matrix"]
    features = _with_edges(g, picture, depth + 1, side, square)
    for i in range(depth):
        features = g.op("Conv", features, g.real(values[f"weight_{i}"]), g.real(values[f"bias_{i}"]))
        features = g.op("Relu", features)
    weight = np.einsum("dc,cihw->dihw", matrix, values[f"weight_{depth}"])
    learned = _convolved(g, features, weight, matrix @ values[f"bias_{depth}"] + values["bias"], square)
    picture = _with_edges(g, picture, 0, side, square)
    coloured = _convolved(g, picture, matrix[:, :, None, None], np.zeros(3), square)
    return _in_place(g, g.op("Add", learned, coloured), side, square)


def _with_edges(g: Nodes, picture: str, n_layers: int, side: int, square: int) -> str:
    """Repeat the pixels at the edges for n convolutions in a row, and on to whole squares at the right and below."""
    before = n_layers * REACH
    after = before + -side % square
    if not after:
        return picture
    return g.op("Pad", picture, g.constant([0, 0, before, before, 0, 0, after, after]), mode="edge")


def _convolved(g: Nodes, features: str, weight: NDArray[np.float64], bias: NDArray[np.float64], square: int) -> str:
    """Convolve, with the pixels of a square as channels: in the order of its rows, its columns, and the colours."""
    n_out, n_in, height, width = weight.shape
    grown = np.zeros((square, square, n_out, n_in, height + square - 1, width + square - 1))
    for row in range(square):
        for column in range(square):
            grown[row, column, :, :, row : row + height, column : column + width] = weight
    grown = grown.reshape(-1, *grown.shape[3:])
    return g.op("Conv", features, g.real(grown), g.real(np.tile(bias, square**2)), strides=[square, square])


def _in_place(g: Nodes, squares: str, side: int, square: int) -> str:
    """Put the pixels of squares where they belong; returns (1, 3, side, side)."""
    picture = g.op("DepthToSpace", squares, blocksize=square)
    if side % square:
        picture = g.op("Slice", picture, g.constant([0, 0]), g.constant([side, side]), g.constant([2, 3]))
    return picture


def _normalised(g: Nodes, picture: str) -> str:
    """As `normalised` of tvp.trainer.lens.

    The means are means of rows' means: onnxruntime adds up values one after the other, and through fog a sum over
    150,000 of them was half an 8-bit level off.
    """
    centred = g.op("Sub", picture, _mean(g, picture))
    variance = _mean(g, g.op("Mul", centred, centred))
    spread = g.op("Sqrt", g.op("Max", variance, g.real(LEAST_SPREAD**2)))
    return g.op("Add", g.op("Mul", centred, g.op("Div", g.real(SPREAD), spread)), g.real(MEAN))


def _mean(g: Nodes, values: str) -> str:
    return g.op("ReduceMean", g.op("ReduceMean", values, g.constant([3])), g.constant([1, 2]))


def _toned(g: Nodes, picture: str, exponents: NDArray[np.float64]) -> str:
    """Bend values below FLOOR as `above_zero` of tvp.trainer.lens, clip them at white, and raise them to a power."""
    bent = g.op("Sub", g.real(2 * FLOOR), g.op("Min", picture, g.real(FLOOR)))
    picture = g.op("Max", picture, g.op("Div", g.real(FLOOR**2), bent))
    picture = g.op("Min", picture, g.real(1))
    if (exponents == 1).all():
        return picture
    power = g.op("Mul", g.op("Log", picture), g.real(exponents[None, :, None, None]))
    return g.op("Exp", power)
