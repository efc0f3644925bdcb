"""The golden pixels of a lens bundle: what PyTorch made of one picture at the export.

`golden/pixels.json` names a picture beside it that needs no resizing, and holds every n-th pixel value.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BundleError
from ._fields import number, of_type, read_versioned, whole

FORMAT = 2
PICTURE, FILE = "golden/0.png", "golden/pixels.json"
MAX_BYTES = 2**22  # of the file; a real one has some ten thousand
MOST = 16  # pixels of a row, or of a column, that are kept
A_LEVEL = 1.001 / 255  # the largest difference that is allowed; rounding may add a little


@dataclass(frozen=True)
class GoldenPixels:
    """What PyTorch made of one picture.

    Attributes:
        size: side of the pixel values, px.
        every: rows and columns 0, n, 2 n … of the pixel values are kept.
        values: those, in the order channel, row, column.
    """

    size: int
    every: int
    values: tuple[float, ...]

    @staticmethod
    def of(pixel_values: NDArray[np.float32]) -> GoldenPixels:
        """Keep some of the pixel values (1, 3, size, size)."""
        size = pixel_values.shape[-1]
        every = math.ceil(size / MOST)
        kept = pixel_values[0, :, ::every, ::every].ravel()
        return GoldenPixels(size, every, tuple(float(f"{value:.7g}") for value in kept.tolist()))

    def gap(self, pixel_values: NDArray[np.float32], std: tuple[float, ...]) -> float:
        """Return the largest difference from pixel values (1, 3, size, size), where 1 is from black to white."""
        given = pixel_values[0, :, :: self.every, :: self.every].reshape(3, -1)
        expected = np.reshape(self.values, (3, -1))
        return float(np.max(np.abs(given - expected) * np.reshape(std, (3, 1))))  # of NaN too


def write_golden_pixels(folder: Path, picture: NDArray[np.uint8], golden: GoldenPixels) -> None:
    """Write golden pixels into a lens bundle, and the picture, uint8 (height, width, 3), that they are of."""
    (folder / FILE).parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(folder / PICTURE)
    text = json.dumps({"format": FORMAT, **asdict(golden)}, allow_nan=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_golden_pixels(folder: Path) -> GoldenPixels:
    """Read the golden pixels of a lens bundle; raises BundleError for anything else."""
    file = folder / FILE
    content = read_versioned(file, "golden pixels", MAX_BYTES, FORMAT, "Export the lens again.")
    size, every = (whole(1, 2**16)(content.get(name), f"{file}: {name}") for name in ("size", "every"))
    values = [number()(value, f"{file}: values") for value in of_type(content.get("values"), f"{file}: values", list)]
    if len(values) != 3 * math.ceil(size / every) ** 2:
        raise BundleError(f"{file}: values has {len(values)} numbers, which size and every do not ask for.")
    return GoldenPixels(size, every, tuple(values))
