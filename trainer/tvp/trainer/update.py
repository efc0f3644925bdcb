"""How the learned values follow their gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .choices import UpdateRule as UpdateRule


class Update:
    """Steps against the gradient. The learning rate rises in a warm-up, then falls with a cosine.

    Args:
        rule: `normalized` is p - lr · g / |g|, with the norm over the frame. This is the paper's update; its
            release takes the norm over the whole canvas, which makes every step shorter than lr. `adam` is Adam, and
            `sign` is p - lr · sign(g).
        lr: the highest learning rate, where white is 1: the length of a whole step for `normalized`, the step of
            one value for the others.
        n_steps: number of steps in all.
        n_warm_up: steps in which the rate rises. Default 0.

    Attributes:
        moments: for each tensor Adam's two means; a checkpoint needs them, so that a resumed run has the same bits.
    """

    def __init__(self, rule: UpdateRule, lr: float, n_steps: int, n_warm_up: int = 0) -> None:
        self.rule, self.lr, self.n_steps, self.n_warm_up = rule, lr, n_steps, n_warm_up
        self.moments: list[tuple[Tensor, Tensor]] = []

    def rate(self, step: int) -> float:
        """The learning rate of a step; the first step is 0."""
        if step < self.n_warm_up:
            return self.lr * (step + 1) / self.n_warm_up
        done = (step - self.n_warm_up) / max(1, self.n_steps - self.n_warm_up)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def apply(self, values: Sequence[Tensor], gradients: Sequence[Tensor], step: int) -> list[Tensor]:
        """Return the values after a step; values and gradients have the same shapes."""
        rate = self.rate(step)
        return [v - rate * d for v, d in zip(values, self._directions(gradients, step), strict=True)]

    def _directions(self, gradients: Sequence[Tensor], step: int) -> list[Tensor]:
        if self.rule == "sign":
            return [g.sign() for g in gradients]
        if self.rule == "normalized":
            length = torch.stack([g.norm() for g in gradients]).norm()
            return [g / length if length > 0 else g for g in gradients]
        if not self.moments:
            self.moments = [(torch.zeros_like(g), torch.zeros_like(g)) for g in gradients]
        directions = []
        n_seen = step + 1
        for gradient, (first, second) in zip(gradients, self.moments, strict=True):
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.01)
            directions.append((first / (1 - 0.9**n_seen)) / ((second / (1 - 0.99**n_seen)).sqrt() + 1e-8))
        return directions
