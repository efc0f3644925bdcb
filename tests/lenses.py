"""Random lenses for tests: as a training might leave them, far from the identity and from each other."""

from __future__ import annotations

import torch

from tvp.trainer.lens import Lens, LensDesign
from tvp.trainer.prompt import Geometry, Prompt

# How far each value is moved from its start. A camera's inverse is a gain of up to three, some colour, some contrast.
SHAKE = {"matrix": 0.2, "bias": 0.1, "tone": 0.3, "kernel": 0.05}
DESIGNS = [
    LensDesign("colour"),
    LensDesign("colour", normalise=True),
    LensDesign("kernel"),
    LensDesign("kernel", normalise=True),
    LensDesign("conv"),
    LensDesign("conv", normalise=True),
    LensDesign("conv", width=5, depth=2),
]


def name_of(design: LensDesign) -> str:
    return "-".join([design.kind, *(["normalise"] if design.normalise else []), f"{design.width}x{design.depth}"])


def random_lens(design: LensDesign, seed: int = 0) -> Lens:
    generator = torch.Generator().manual_seed(seed)
    values = design.start(seed)
    last = f"weight_{design.depth}"
    for name, value in values.items():
        shake = 0.02 if name == last else SHAKE.get(name, 0.0)
        values[name] = value + shake * torch.randn(value.shape, generator=generator)
    return Lens(design, values)


def lens_prompt(design: LensDesign, canvas: int = 64, fit: str = "crop") -> Prompt:
    """A prompt with a random lens and no frame."""
    return Prompt(None, Geometry(canvas, canvas, fit), lens=random_lens(design), facts={"camera": "planted"})
