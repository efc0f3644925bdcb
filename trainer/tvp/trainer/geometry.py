"""Where a picture and a frame lie on the canvas that models are shown.

Torch is imported where it is used: commands read sizes, and say what is wrong with them, before they wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvp.sdk import read_image
from tvp.sdk.errors import RequestError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, UInt8
    from torch import Tensor

Fit = Literal["crop", "pad"]
Placement = Literal["around", "over"]
PixelRange = Literal["free", "image"]
EDGE = 30, 224  # a frame's width on a canvas, px: the paper's


@dataclass(frozen=True)
class Geometry:
    """Where the picture and the frame lie on the canvas.

    Args:
        canvas: side of the square that models are shown, px. Default 224, as in the paper.
        inner: side of the square inside the frame, px; `inner == canvas` leaves no frame. Default 164.
        fit: how a picture becomes a square: `crop` keeps the middle, `pad` keeps everything between black bars.
        placement: the frame lies `around` a picture that is shrunk to the inner size, or `over` the edges of one
            that fills the canvas.

    Raises:
        RequestError: the sizes do not fit, or the fit or the placement is unknown.
    """

    canvas: int = 224
    inner: int = 164
    fit: Fit = "crop"
    placement: Placement = "around"

    def __post_init__(self) -> None:
        if not 0 < self.inner <= self.canvas or (self.canvas - self.inner) % 2:
            raise RequestError(
                f"A picture of {self.inner} px cannot lie in the middle of a canvas of {self.canvas} px. "
                "The inner size must be at most the canvas, and differ from it by an even number."
            )
        if self.fit not in get_args(Fit):
            raise RequestError(f"The fit {self.fit!r} is unknown; it is 'crop' or 'pad'.")
        if self.placement not in ("around", "over"):
            raise RequestError(f"The placement {self.placement!r} is unknown; it is 'around' or 'over'.")

    @property
    def edge(self) -> int:
        """Width of the frame, px."""
        return (self.canvas - self.inner) // 2

    @property
    def side(self) -> int:
        """Side of the picture on the canvas, px."""
        return self.canvas if self.placement == "over" else self.inner

    def mask(self) -> Float[Tensor, "1 canvas canvas"]:
        """1 on the frame, 0 inside it."""
        import torch
        import torch.nn.functional as F

        return F.pad(torch.zeros(1, self.inner, self.inner), [self.edge] * 4, value=1.0)

    def shrink(self, picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fit a picture into its square on the canvas with Pillow's bicubic filter; returns uint8 (side, side, 3)."""
        image = Image.fromarray(read_image(picture) if isinstance(picture, Image.Image) else picture)
        width, height = fitted_size(image.width, image.height, self.side, self.fit)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        # crop() fills with black outside of the image, which pads it.
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))

    def show(
        self, pictures: Iterable[Image.Image | NDArray[np.uint8]], device: torch.device | str = "cpu"
    ) -> Float[Tensor, "n 3 canvas canvas"]:
        """Fit pictures and put each on a black canvas; values in [0, 1]."""
        import torch

        return self.place(torch.from_numpy(np.stack([self.shrink(picture) for picture in pictures])).to(device))

    def place(self, pictures: UInt8[Tensor, "n side side 3"]) -> Float[Tensor, "n 3 canvas canvas"]:
        """Put pictures that are fitted already on a black canvas; values in [0, 1]."""
        import torch.nn.functional as F

        canvas = pictures.permute(0, 3, 1, 2).float() / 255  # (n, h, w, 3) -> (n, 3, h, w)
        return F.pad(canvas, [(self.canvas - self.side) // 2] * 4)


def fitted_size(width: int, height: int, side: int, fit: Fit) -> tuple[int, int]:
    """The size (width, height), in px, to which a picture is resized before it is cropped or padded to a square."""
    reference = min(width, height) if fit == "crop" else max(width, height)
    # Integer arithmetic, rounding half up, so that the exported graph computes the same numbers.
    return tuple(max(1, (length * side * 2 + reference) // (2 * reference)) for length in (width, height))  # type: ignore[return-value]


def usual_inner(canvas: int) -> int:
    """Return the side of the picture in a frame of the paper's width, in proportion to the canvas, px."""
    width, side = EDGE
    return canvas - 2 * (canvas * width // side)
