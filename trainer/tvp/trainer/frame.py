"""The frame during training: every pixel is learned, or a product of two thin matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from .prompt import Geometry, PixelRange, start_frame


class Frame:
    """A frame as a function of the learned `values`, which every step replaces.

    Args:
        geometry: where the frame lies.
        pixel_range: `free` or `image`, see `Prompt`.
        rank: 0 learns the pixels. r > 0 learns for each colour the product of a (canvas, r) and an (r, canvas)
            matrix, which is added to the start: few values, and a smooth frame (LoR-VP, ICLR 2025, arXiv 2502.00896).
            The first matrix starts at zero, so that the frame starts as it does with rank 0.
        seed: of the second matrix.
    """

    def __init__(self, geometry: Geometry, pixel_range: PixelRange, rank: int, seed: int) -> None:
        self.geometry, self.pixel_range = geometry, pixel_range
        self.start = start_frame(geometry, pixel_range)
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
        """The pixels of the frame, (3, canvas, canvas); differentiable in `values`."""
        if not self.low_rank:
            return torch.mul(self.values[0], self.mask)
        frame: Tensor = (self.start + self.values[0] @ self.values[1]) * self.mask
        return frame.clamp(0, 1) if self.pixel_range == "image" else frame

    def settle(self) -> None:
        """After a step, set values to zero inside the frame, and clip them to [0, 1] in the `image` range."""
        if not self.low_rank:
            frame = self.values[0] * self.mask
            self.values = [frame.clamp(0, 1) if self.pixel_range == "image" else frame]
