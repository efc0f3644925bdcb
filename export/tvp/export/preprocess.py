"""The preprocessing graph of a bundle: it turns a picture into pixel values, with the prompt baked in.

With the attributes below, onnxruntime's Resize on the CPU equals Pillow's bicubic filter on uint8 to within one level.
Other providers antialias wrongly or not at all, so the sdk always runs this graph on the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tvp.trainer.families.pixels import PixelFormat, resize_matrix
from tvp.trainer.prompt import Geometry, Prompt

from .lens import add_lens
from .nodes import Nodes

OPSET = 18
IR_VERSION = 10
# Pillow's bicubic filter: its coefficient, with antialiasing, and without weights outside the picture.
PILLOW_CUBIC: dict[str, Any] = {
    "mode": "cubic",
    "antialias": 1,
    "exclude_outside": 1,
    "cubic_coeff_a": -0.5,
    "coordinate_transformation_mode": "half_pixel",
}


def preprocess_graph(geometry: Geometry, pixel_format: PixelFormat, prompt: Prompt | None) -> onnx.ModelProto:
    """Build the graph `image` uint8 (height, width, 3) -> `pixel_values` float32 (1, 3, size, size).

    Args:
        geometry: canvas, inner size and fit.
        pixel_format: the size and the normalization that the vision encoder takes.
        prompt: the prompt to bake in; None for a black frame, or no frame if the inner size is the canvas.

    Returns:
        The checked model.
    """
    g = Nodes()
    side = geometry.side
    edge = (geometry.canvas - side) // 2
    shape = g.op("Shape", "image")
    two_sides = g.op("Slice", shape, g.constant([0]), g.constant([2]))  # (height, width)
    reference = g.op("ReduceMin" if geometry.fit == "crop" else "ReduceMax", two_sides, keepdims=1)
    # As `fitted_size` of tvp.trainer.prompt: (length * side * 2 + reference) // (2 * reference), at least 1
    doubled = g.op("Add", g.op("Mul", two_sides, g.constant([side * 2])), reference)
    fitted = g.op("Max", g.op("Div", doubled, g.op("Mul", reference, g.constant([2]))), g.constant([1]))
    picture = g.op("Transpose", "image", perm=[2, 0, 1])  # (H, W, C) -> (C, H, W)
    picture = g.op("Unsqueeze", picture, g.constant([0]))
    sizes = g.op("Concat", g.constant([1, 3]), fitted, axis=0)
    picture = g.op("Resize", picture, "", "", sizes, **PILLOW_CUBIC)
    if geometry.fit == "crop":
        start = g.op("Div", g.op("Sub", fitted, g.constant([side])), g.constant([2]))
        stop = g.op("Add", start, g.constant([side]))
        picture = g.op("Slice", picture, start, stop, g.constant([2, 3]))
    else:
        missing, none = g.op("Sub", g.constant([side]), fitted), g.constant([0, 0])
        first = g.op("Div", g.op("Add", missing, g.constant([1])), g.constant([2]))
        picture = g.op("Pad", picture, g.op("Concat", none, first, none, g.op("Sub", missing, first), axis=0))
    canvas = g.op("Div", g.op("Cast", picture, to=TensorProto.FLOAT), g.real(255))
    if prompt is not None and prompt.lens is not None:
        canvas = add_lens(g, canvas, prompt.lens, side)
    added = np.zeros((3, geometry.canvas, geometry.canvas)) if prompt is None else prompt.added().detach().cpu().numpy()
    if edge:  # the frame is around the picture: without its middle, each loaded task takes less memory
        before, inside, after = slice(edge), slice(edge, edge + side), slice(edge + side, None)
        parts = (added[:, inside, before], added[:, inside, after], added[:, before], added[:, after])
        left, right, top, bottom = (g.real(part[None]) for part in parts)
        canvas = g.op("Concat", top, g.op("Concat", left, canvas, right, axis=3), bottom, axis=2)
    elif prompt is not None and prompt.frame is not None:  # the frame is over the picture
        canvas = g.op("Add", canvas, g.real(added[None]))
        if prompt.merges:
            canvas = g.op("Clip", canvas, g.real(0), g.real(1))
    size = pixel_format.size
    if size != geometry.canvas:
        # As in `to_pixels`: the filter may overshoot. Clip at black and white, or at the canvas's own extremes.
        low = g.op("Min", g.op("ReduceMin", canvas, keepdims=0), g.real(0))
        high = g.op("Max", g.op("ReduceMax", canvas, keepdims=0), g.real(1))
        weights = resize_matrix(geometry.canvas, size, pixel_format.filter).numpy()
        canvas = g.op("Clip", g.op("MatMul", canvas, g.real(weights.T)), low, high)
        canvas = g.op("Clip", g.op("MatMul", g.real(weights), canvas), low, high)
    mean, std = (g.real(np.reshape(v, (1, 3, 1, 1))) for v in (pixel_format.mean, pixel_format.std))
    g.op("Div", g.op("Sub", canvas, mean), std, output="pixel_values")
    graph = helper.make_graph(
        g.nodes,
        "preprocess",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])],
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, size, size])],
        g.constants,
    )
    model = helper.make_model(
        graph, producer_name="tvp", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    onnx.checker.check_model(model)
    return model
