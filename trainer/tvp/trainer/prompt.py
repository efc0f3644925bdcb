"""The visual prompt: a learned frame of pixels around a shrunk picture, and the file that holds it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tvp.sdk.errors import DataError, RequestError

from .files import write_whole

FORMAT = 2  # 2 knows frames that lie over the picture
IN_FILE = {"placement": "layout"}  # fields of the geometry that format 2 calls otherwise
Fit = Literal["crop", "pad"]
Placement = Literal["around", "over"]
PixelRange = Literal["free", "image"]
NEUTRAL = 128 / 255  # what changes nothing where a picture of a frame is merged with the picture below it
DARK = 5 / 255  # close to the black that Feature Consistency Alignment holds a frame to, but not in its corner


@dataclass(frozen=True)
class Geometry:
    """Where the picture sits on the canvas.

    canvas: side of the square that the model is shown, px. Default 224, as in the paper.
    inner: side of the square inside the frame, px; `inner == canvas` leaves no frame.
    fit: what happens to a picture that is not square: `crop` keeps the middle square,
        `pad` keeps everything between black bars.
    placement: the frame lies `around` a picture that is shrunk to the inner size, or `over` the edges of one
        that fills the canvas.
    """

    canvas: int = 224
    inner: int = 164
    fit: Fit = "crop"
    placement: Placement = "around"

    def __post_init__(self) -> None:
        if not 0 < self.inner <= self.canvas or (self.canvas - self.inner) % 2:
            raise RequestError(
                f"A picture of {self.inner} px does not sit in the middle of a canvas of {self.canvas} px; "
                "the inner size must be at most the canvas and differ from it by an even number."
            )
        if self.fit not in ("crop", "pad"):
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
        """1 on the frame, 0 where the picture is."""
        return F.pad(torch.zeros(1, self.inner, self.inner), [self.edge] * 4, value=1.0)

    def shrink(self, picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fit a picture into its square on the canvas: uint8 (side, side, 3), Pillow's bicubic."""
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image = image.convert("RGB")
        width, height = fitted_size(image.width, image.height, self.side, self.fit)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        # Outside of the image, crop() fills with black: that is the padding.
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))

    def show(
        self, pictures: Sequence[Image.Image | NDArray[np.uint8]], device: torch.device | str = "cpu"
    ) -> Float[Tensor, "n 3 canvas canvas"]:
        """Fit pictures and put them on a black canvas, in [0, 1]."""
        return self.place(torch.from_numpy(np.stack([self.shrink(picture) for picture in pictures])).to(device))

    def place(self, pictures: UInt8[Tensor, "n side side 3"]) -> Float[Tensor, "n 3 canvas canvas"]:
        """Put fitted pictures on a black canvas, in [0, 1]."""
        canvas = pictures.permute(0, 3, 1, 2).float() / 255  # (n, h, w, 3) -> (n, 3, h, w)
        return F.pad(canvas, [(self.canvas - self.side) // 2] * 4)


def fitted_size(width: int, height: int, side: int, fit: Fit) -> tuple[int, int]:
    """Size (width, height) to which a picture is resized before it is cut or padded to a square."""
    reference = min(width, height) if fit == "crop" else max(width, height)
    # Integer arithmetic, rounding half up, so that the exported graph computes the same numbers.
    return tuple(max(1, (length * side * 2 + reference) // (2 * reference)) for length in (width, height))  # type: ignore[return-value]


@dataclass
class Prompt:
    """A learned frame.

    frame: float32 (3, canvas, canvas) in [0, 1] units, zero where the picture is.
    pixel_range: `free`, or `image` for values kept in [0, 1] and shown on the 8-bit grid, so that the
        PNG is the prompt.
    facts: where it comes from: task, source models, method, hyper-parameters, metrics, versions.
    """

    frame: Tensor
    geometry: Geometry
    pixel_range: PixelRange = "free"
    facts: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def start(geometry: Geometry, pixel_range: PixelRange) -> Prompt:
        """The frame before training, which is inside of its range: in a corner of the box, as black is in the
        `image` range around a picture, half of all steps lead nowhere."""
        inside = {"around": DARK, "over": NEUTRAL}[geometry.placement]
        frame = geometry.mask().expand(3, -1, -1) * (inside if pixel_range == "image" else 0.0)
        return Prompt(frame.clone(), geometry, pixel_range)

    def on(self, canvas: Float[Tensor, "n 3 canvas canvas"]) -> Float[Tensor, "n 3 canvas canvas"]:
        """Show the frame on canvases from `Geometry.show`; differentiable in `frame`."""
        prompted = canvas + self.added().to(canvas.device)
        return prompted.clamp(0, 1) if self.merges else prompted

    def added(self) -> Float[Tensor, "3 canvas canvas"]:
        """What is added to a canvas: the frame, as in the papers; where it merges, its distance from neutral."""
        mask = self.geometry.mask().to(self.frame)
        frame = self.frame * mask
        if self.pixel_range == "image":
            # What is seen is what an 8-bit picture holds; the gradient passes straight through.
            frame = frame + ((frame * 255).round() / 255 - frame).detach()
        return frame - NEUTRAL * mask if self.merges else frame

    @property
    def merges(self) -> bool:
        """Whether the frame is a picture over another picture: it is merged as image editors' *grain merge* does,
        picture + frame - 128 in 8-bit levels, cut off at black and white, since adding alone could only brighten."""
        return self.pixel_range == "image" and self.geometry.placement == "over"

    def picture(self) -> Image.Image:
        """The frame as an 8-bit picture; in the `image` range nothing is lost, and merging all of it is `on`."""
        levels = (self.frame.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        if self.merges:
            levels = torch.where(self.geometry.mask() > 0, levels, round(NEUTRAL * 255)).to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).numpy())  # (3, h, w) -> (h, w, 3)

    def save(self, path: str | Path) -> None:
        """Write `path` (safetensors) and a PNG beside it, each whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "format": str(FORMAT),
            "geometry": json.dumps({IN_FILE.get(name, name): value for name, value in vars(self.geometry).items()}),
            "pixel_range": self.pixel_range,
            "facts": json.dumps(self.facts),
        }
        data = save({"frame": self.frame.detach().cpu().contiguous()}, metadata=about)
        write_whole(path, data)
        picture = io.BytesIO()
        self.picture().save(picture, format="PNG")
        write_whole(path.with_suffix(".png"), picture.getvalue())

    @staticmethod
    def load(path: str | Path) -> Prompt:
        """Read a prompt file; raises DataError for one that is missing, damaged or of a newer format."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"There is no prompt file {path}. `tvp train` writes one as prompt.safetensors.")
        try:
            with safe_open(path, "pt") as file:
                about: Mapping[str, str] = file.metadata() or {}
                frame = file.get_tensor("frame")
            version = int(about["format"])
            if version > FORMAT:
                raise DataError(f"{path} is of prompt format {version}; this TVP reads up to {FORMAT}. Update TVP.")
            names = {stored: name for name, stored in IN_FILE.items()}
            geometry = Geometry(**{names.get(key, key): value for key, value in json.loads(about["geometry"]).items()})
            facts = json.loads(about["facts"])
            pixel_range = about["pixel_range"]
        except (SafetensorError, KeyError, ValueError, TypeError, RequestError) as error:
            raise DataError(f"{path} is not an intact prompt file: {error}") from error
        side = geometry.canvas
        if frame.shape != (3, side, side) or not torch.isfinite(frame).all() or pixel_range not in ("free", "image"):
            raise DataError(f"{path} is not an intact prompt file: its frame must be finite, (3, {side}, {side}).")
        return Prompt(frame.float(), geometry, pixel_range, facts)  # type: ignore[arg-type]
