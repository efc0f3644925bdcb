"""Positions of tokens, for decoders that take them as an input."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def positions_of(
    axes: int, n_before: int, n_image: int, order: NDArray[np.int64], firsts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the positions of tokens.

    Args:
        axes: positions of one token, 1 to 3.
            1: the token's place in its sequence.
            2: ChatGLM's. The place and 0; behind the tokens that see each other, the place of the last of them and
            1, 2, 3 …
            3: Qwen2-VL's for one square picture (`get_rope_index` of transformers): time, row and column. The
            picture's tokens have their own; the text goes on behind the largest of them.
        n_before: number of tokens before the picture.
        n_image: number of the picture's tokens.
        order: places of tokens in sequences (n_rows, n).
        firsts: number of tokens that see each other at the start of each sequence (n_rows,).

    Returns:
        (n_rows, n) for one axis, else (axes, n_rows, n).
    """
    if axes == 1:
        return order
    if axes == 2:
        last = firsts[:, None] - 1
        return np.stack([np.minimum(order, last), (order - last).clip(0)])
    side = math.isqrt(n_image)
    place = (order - n_before).clip(0, n_image - 1)
    in_image = (order >= n_before) & (order < n_before + n_image)
    text = np.where(order < n_before, order, order - n_image + side)
    parts = (np.zeros_like(place), place // side, place % side)
    return np.stack([np.where(in_image, n_before + part, text) for part in parts])
