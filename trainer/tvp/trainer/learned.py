"""What a run learns: a lens, a frame, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import TrainConfig
from .frame import Frame
from .lens import Lens, LensDesign
from .prompt import Geometry, Prompt
from .update import Update


class Learned:
    """A prompt as a function of the learned `values`, which every step replaces: those of a lens, then of a frame.

    Args:
        geometry: where the picture and the frame lie.
        frame: the frame that is learned; None for none.
        design: of the lens that is learned; None for none.
        start: values that the lens starts from, by name.
        behind: a lens that stays as it is, before the frame. Default: none.
    """

    def __init__(
        self,
        geometry: Geometry,
        frame: Frame | None,
        design: LensDesign | None = None,
        start: Mapping[str, Tensor] | None = None,
        behind: Lens | None = None,
    ) -> None:
        self.geometry, self.frame, self.design, self._behind = geometry, frame, design, behind
        self._lens = dict(start or {})

    def to(self, device: torch.device | str) -> Learned:
        if self.frame:
            self.frame.to(device)
        self._lens = {name: value.to(device) for name, value in self._lens.items()}
        return self

    @property
    def device(self) -> torch.device:
        return self.values[0].device

    @property
    def values(self) -> list[Tensor]:
        return [*self._lens.values(), *(self.frame.values if self.frame else [])]

    @values.setter
    def values(self, values: Sequence[Tensor]) -> None:
        n = len(self._lens)
        self._lens = dict(zip(self._lens, values[:n], strict=True))
        if self.frame:
            self.frame.values = list(values[n:])

    @property
    def groups(self) -> list[slice]:
        """The places of the lens's and of the frame's values; each group has an update rule of its own."""
        n = len(self._lens)
        found = [slice(0, n)] if n else []
        return [*found, slice(n, None)] if self.frame else found

    def updates(self, config: TrainConfig, n_steps: int) -> list[Update]:
        """Return the update of each group."""
        rules = [(config.lens_update, config.lens_lr)] if self._lens else []
        rules += [(config.update, config.lr)] if self.frame else []
        return [Update(rule, lr, n_steps, config.warm_up) for rule, lr in rules]

    def shown(self) -> Prompt:
        """The prompt that the values make; differentiable in `values`."""
        lens = Lens(self.design, self._lens) if self.design else self._behind
        pixel_range: Any = self.frame.pixel_range if self.frame else "free"
        return Prompt(self.frame.pixels() if self.frame else None, self.geometry, pixel_range, lens=lens)

    @torch.no_grad()
    def prompt(self) -> Prompt:
        """The prompt that the values make now, on its own."""
        shown = self.shown()
        lens = Lens(shown.lens.design, {k: v.detach() for k, v in shown.lens.values.items()}) if shown.lens else None
        frame = shown.frame.detach() if shown.frame is not None else None
        return Prompt(frame, self.geometry, shown.pixel_range, lens=lens)

    def move(self, updates: Sequence[Update], gradients: Sequence[Tensor], step: int) -> None:
        """Take a step: each group follows its gradient by its own rule, and the frame stays in its range."""
        values = self.values
        moved: list[Tensor] = []
        for group, update in zip(self.groups, updates, strict=True):
            moved += update.apply(values[group], gradients[group], step)
        self.values = moved
        if self.frame:
            self.frame.settle()
