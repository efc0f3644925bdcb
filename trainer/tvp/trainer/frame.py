"""What of a frame is learned: every pixel, or a product of two thin matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from .prompt import Geometry, PixelRange, Prompt


class Frame:
    """A frame as a function of the values that are learned; `values` are replaced after every step.

    rank: 0 learns the pixels; r > 0 learns, for each colour, the product of a (canvas, r) and an
        (r, canvas) matrix, added to the start, which leaves few values and smooth frames (LoR-VP,
        ICLR 2025, arXiv 2502.00896). The first factor starts at zero, so that the frame starts as others do.
    """

    def __init__(self, geometry: Geometry, pixel_range: PixelRange, rank: int, seed: int) -> None:
        self.geometry, self.pixel_range = geometry, pixel_range
        self.start = Prompt.start(geometry, pixel_range).frame
        self.mask = geometry.mask()
        self.low_rank = rank > 0
        if self.low_rank:
            side, generator = geometry.canvas, torch.Generator().manual_seed(seed)
            self.values = [torch.zeros(3, side, rank), torch.randn(3, rank, side, generator=generator) / rank**0.5]
        else:
            self.values = [self.start.clone()]

    def to(self, device: torch.device | str) -> Frame:
        self.start, self.mask = self.start.to(device), self.mask.to(device)
        self.values = [v.to(device) for v in self.values]
        return self

    def pixels(self) -> Tensor:
        """The frame (3, canvas, canvas), differentiable in `values`."""
        if not self.low_rank:
            return torch.mul(self.values[0], self.mask)
        frame: Tensor = (self.start + self.values[0] @ self.values[1]) * self.mask
        return frame.clamp(0, 1) if self.pixel_range == "image" else frame

    @torch.no_grad()
    def prompt(self) -> Prompt:
        """The prompt that the values make now."""
        return Prompt(self.pixels().detach(), self.geometry, self.pixel_range)

    def settle(self) -> None:
        """Bring values back to where they may be after a step: on the frame, in [0, 1] where they are pixels."""
        if not self.low_rank:
            frame = self.values[0] * self.mask
            self.values = [frame.clamp(0, 1) if self.pixel_range == "image" else frame]
