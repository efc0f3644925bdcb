"""How a frame is changed by its gradient."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

UpdateRule = Literal["normalized", "adam"]


class Update:
    """Steps of a frame against its gradient, with a cosine rate after a warm-up.

    rule: `normalized` is p - lr · g / |g|, the norm taken over the frame (the paper's update; its
        release takes it over the whole canvas, which makes every step shorter than lr). `adam` is
        Adam, whose lr is per pixel.
    lr: the length of a step at its largest, in [0, 1] units of brightness.
    """

    def __init__(self, rule: UpdateRule, lr: float, n_steps: int, n_warm_up: int = 0) -> None:
        self.rule, self.lr, self.n_steps, self.n_warm_up = rule, lr, n_steps, n_warm_up
        self._moments: list[Tensor] | None = None

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.n_warm_up:
            return self.lr * (step + 1) / self.n_warm_up
        done = (step - self.n_warm_up) / max(1, self.n_steps - self.n_warm_up)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def apply(
        self,
        frame: Float[Tensor, "3 canvas canvas"],
        gradient: Float[Tensor, "3 canvas canvas"],
        mask: Float[Tensor, "1 canvas canvas"],
        step: int,
    ) -> Float[Tensor, "3 canvas canvas"]:
        """Return the frame after one step; pixels outside of the mask stay zero."""
        gradient = gradient * mask
        if self.rule == "normalized":
            length = gradient.norm()
            direction = gradient / length if length > 0 else gradient
        else:
            if self._moments is None:
                self._moments = [torch.zeros_like(frame), torch.zeros_like(frame)]
            first, second = self._moments
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.01)
            n_seen = step + 1
            direction = (first / (1 - 0.9**n_seen)) / ((second / (1 - 0.99**n_seen)).sqrt() + 1e-8)
        return (frame - self.rate(step) * direction) * mask

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to go on exactly."""
        return {"moments": self._moments}

    def restore(self, state: dict[str, Any]) -> None:
        self._moments = state["moments"]
