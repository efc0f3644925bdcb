"""The head of a NumPy file, read without believing it: what follows is read by whoever knows the shape."""

from __future__ import annotations

from typing import IO, Any

import numpy as np


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it is stored by columns, and type; raises any Exception for a damaged head."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(stream)]
    shape, by_columns, dtype = read(stream)
    return shape, by_columns, dtype
