"""The visual prompt: a lens before the picture, a learned frame around or over it, and the file that holds both."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tvp.sdk.errors import DataError, RequestError

from .files import write_whole
from .geometry import Fit as Fit
from .geometry import Geometry as Geometry
from .geometry import PixelRange as PixelRange
from .geometry import Placement as Placement
from .geometry import fitted_size as fitted_size
from .lens import Lens, LensDesign

FORMAT = 3  # of prompt files; 2 has frames that lie over the picture, 3 has lenses
LENS = "lens."  # what the names of a lens's tensors begin with
IN_FILE = {"placement": "layout"}  # a field of Geometry -> its name in files of format 2
NEUTRAL = 128 / 255  # the value that changes nothing where a frame of 8-bit pixels is merged with a picture
DARK = 5 / 255  # nearly the black that Feature Consistency Alignment compares with, but inside the range


def start_frame(geometry: Geometry, pixel_range: PixelRange) -> Float[Tensor, "3 canvas canvas"]:
    """Return a frame before training.

    It starts inside its range: from the edge of the range, as black is in the `image` range, half of all steps would
    lead nowhere.
    """
    inside = {"around": DARK, "over": NEUTRAL}[geometry.placement]
    return (geometry.mask().expand(3, -1, -1) * (inside if pixel_range == "image" else 0.0)).clone()


@dataclass
class Prompt:
    """What is done to every picture before a model sees it: a lens, a frame, or both.

    Args:
        frame: float32 (3, canvas, canvas), with 1 for white; zero inside the frame. None for no frame.
        geometry: where the picture and the frame lie. Without a frame, the picture fills the canvas.
        pixel_range: of the frame: `free`, or `image` for values that stay in [0, 1] and are rounded to 8 bits when
            shown, so that the PNG is the whole frame. Default `free`.
        facts: where it comes from: task, source models, method, configuration, validation, versions.
        lens: acts on the picture in its place on the canvas, before the frame. Default: none.
    """

    frame: Tensor | None
    geometry: Geometry
    pixel_range: PixelRange = "free"
    facts: dict[str, Any] = field(default_factory=dict)
    lens: Lens | None = None

    @staticmethod
    def start(geometry: Geometry, pixel_range: PixelRange) -> Prompt:
        """The prompt of a frame before training."""
        return Prompt(start_frame(geometry, pixel_range), geometry, pixel_range)

    def on(self, canvas: Float[Tensor, "n 3 canvas canvas"]) -> Float[Tensor, "n 3 canvas canvas"]:
        """Put the prompt on canvases from `Geometry.show`; differentiable in the frame and in the lens's values."""
        if self.lens is not None:
            edge, side = (self.geometry.canvas - self.geometry.side) // 2, self.geometry.side
            canvas = F.pad(self.lens(canvas[..., edge : edge + side, edge : edge + side]), [edge] * 4)
        if self.frame is None:
            return canvas
        prompted = canvas + self.added().to(canvas.device)
        return prompted.clamp(0, 1) if self.merges else prompted

    def to(self, device: torch.device | str) -> Prompt:
        """Return the same prompt on another device."""
        frame = None if self.frame is None else self.frame.to(device)
        return replace(self, frame=frame, lens=self.lens.to(device) if self.lens else None)

    def added(self) -> Float[Tensor, "3 canvas canvas"]:
        """Return what `on` adds to a canvas: the frame, as in the papers, or if it merges its distance from neutral."""
        mask = self.geometry.mask()
        if self.frame is None:
            return torch.zeros_like(mask).expand(3, -1, -1)
        mask = mask.to(self.frame)
        frame = self.frame * mask
        if self.pixel_range == "image":
            # Models see what an 8-bit picture can hold; the gradient passes through the rounding unchanged.
            frame = frame + ((frame * 255).round() / 255 - frame).detach()
        return frame - NEUTRAL * mask if self.merges else frame

    @property
    def merges(self) -> bool:
        """Whether the frame is merged with the picture below it instead of added.

        That is so for frames in the `image` range that lie over the picture, because adding could only brighten.
        Merging is image editors' *grain merge*: picture + frame - 128 in 8-bit levels, clipped at black and white.
        """
        return self.frame is not None and self.pixel_range == "image" and self.geometry.placement == "over"

    def picture(self) -> Image.Image | None:
        """The frame as an 8-bit picture; in the `image` range nothing is lost. None where there is no frame."""
        if self.frame is None:
            return None
        levels = (self.frame.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        if self.merges:
            levels = torch.where(self.geometry.mask() > 0, levels, round(NEUTRAL * 255)).to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).numpy())  # (3, h, w) -> (h, w, 3)

    def save(self, path: str | Path) -> None:
        """Write the prompt to `path` (safetensors) and a frame's picture to a PNG beside it, each whole or not at all.

        A prompt that needs nothing newer is written in format 2, which earlier versions read.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "format": str(FORMAT if self.lens or self.frame is None else 2),
            "geometry": json.dumps({IN_FILE.get(name, name): value for name, value in vars(self.geometry).items()}),
            "pixel_range": self.pixel_range,
            "facts": json.dumps(self.facts),
        }
        tensors = {} if self.frame is None else {"frame": self.frame}
        if self.lens is not None:
            about["lens"] = json.dumps(self.lens.describe())
            tensors |= {LENS + name: value for name, value in self.lens.values.items()}
        write_whole(path, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, about))
        if picture := self.picture():
            data = io.BytesIO()
            picture.save(data, format="PNG")
            write_whole(path.with_suffix(".png"), data.getvalue())

    @staticmethod
    def load(path: str | Path) -> Prompt:
        """Read a prompt file.

        Raises:
            DataError: the file is missing, damaged or of a newer format.
        """
        path = Path(path)
        if not path.is_file():
            rejected = path.with_name("rejected.safetensors")
            beside = f" {rejected} is there: a prompt that was not shown to help." if rejected.exists() else ""
            raise DataError(f"There is no prompt file {path}. `tvp train` writes one as prompt.safetensors.{beside}")
        try:
            with safe_open(path, "pt") as file:
                about: Mapping[str, str] = file.metadata() or {}
                version = int(about["format"])
                if version > FORMAT:
                    raise DataError(f"{path} is of prompt format {version}; this TVP reads up to {FORMAT}. Update TVP.")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            names = {stored: name for name, stored in IN_FILE.items()}
            geometry = Geometry(**{names.get(key, key): value for key, value in json.loads(about["geometry"]).items()})
            facts = json.loads(about["facts"])
            json.dumps(facts, ensure_ascii=False).encode()  # JSON can spell half a character, which no file can hold
            pixel_range = about["pixel_range"]
            design = LensDesign(**json.loads(about["lens"])) if "lens" in about else None
        except RecursionError as error:
            raise DataError(f"{path} is not an intact prompt file: it is nested too deeply.") from error
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, RequestError) as error:
            raise DataError(f"{path} is not an intact prompt file: {error}") from error
        side = geometry.canvas
        if type(side) is not int or type(geometry.inner) is not int or not isinstance(facts, dict):
            raise DataError(f"{path} is not an intact prompt file: sizes are whole numbers, and facts a table.")
        if pixel_range not in get_args(PixelRange):
            raise DataError(f"{path} is not an intact prompt file: the pixel range {pixel_range!r} is unknown.")
        wanted = {LENS + name: value.shape for name, value in design.start().items()} if design else {}
        if "frame" in tensors or design is None:
            wanted["frame"] = torch.Size((3, side, side))
        if {name: value.shape for name, value in tensors.items()} != wanted:
            spelt = ", ".join(f"{name} {tuple(shape)}" for name, shape in wanted.items())
            raise DataError(f"{path} is not an intact prompt file: its tensors must be {spelt}.")
        for name, value in tensors.items():
            if not value.is_floating_point() or not torch.isfinite(value.float()).all():
                raise DataError(f"{path} is not an intact prompt file: the values of its {name} must be finite.")
        if design is not None and "frame" not in tensors and geometry.inner != geometry.canvas:
            raise DataError(f"{path} is not an intact prompt file: without a frame the picture fills the canvas.")
        values = {name.removeprefix(LENS): value.float() for name, value in tensors.items() if name != "frame"}
        frame = tensors["frame"].float() if "frame" in tensors else None
        lens = Lens(design, values) if design else None
        return Prompt(frame, geometry, pixel_range, facts, lens)  # type: ignore[arg-type]


def lens_of(path: str | Path) -> Lens:
    """Read the lens of a prompt file.

    Raises:
        DataError: the file is missing or damaged.
        RequestError: it has no lens.
    """
    lens = Prompt.load(path).lens
    if lens is None:
        raise RequestError(f"{path} has no lens; it is a frame alone. Name a prompt with a lens.")
    return lens


def eight_bit(prompt: Prompt) -> Prompt:
    """Return the prompt in 8 bits: the frame that its PNG holds, and a lens whose result is rounded."""
    if prompt.lens is not None:
        prompt = replace(prompt, lens=replace(prompt.lens, eight_bit=True))
    picture = prompt.picture()
    if picture is None:
        return prompt
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    levels = torch.from_numpy(np.array(Image.open(buffer)))
    return replace(prompt, frame=levels.permute(2, 0, 1) / 255)  # (h, w, 3) -> (3, h, w)


def compose(lens: Prompt, frame: Prompt) -> Prompt:
    """Put the lens of one prompt before the frame of another.

    The picture lies as the frame wants it. A kernel counts pixels of the canvas, so a lens does most on pictures of
    the size at which it was learned.

    Raises:
        RequestError: the first prompt has no lens, or the second one no frame or a lens of its own.
    """
    if lens.lens is None:
        raise RequestError("The prompt that was given as the lens has none; it is a frame alone.")
    if frame.frame is None or frame.lens is not None:
        has = "a lens of its own" if frame.frame is not None else "none; it is a lens alone"
        raise RequestError(
            f"The prompt that was given as the frame has {has}. Give one that was learned without a lens."
        )
    return replace(frame, lens=lens.lens, facts={"lens": lens.facts, "frame": frame.facts})
