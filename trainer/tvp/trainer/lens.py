"""The lens: a few learned numbers that act on the picture itself, before the frame, and put right what a camera spoilt.

A lens is a differentiable image-signal processor. In order, with the parts that its kind has:

1. normalise: the picture is brought to mean 0.5 and spread 0.2, by its own statistics over all pixels and channels;
2. `kernel`: each channel is filtered with a 5 x 5 kernel of its own; or `conv`: a small network of 5 x 5 convolutions
   adds to the picture what it has learned;
3. colour: a 3 x 3 matrix and a bias; values are clipped to [0, 1];
4. tone: each channel is raised to a power.

Every lens starts as the identity; with `normalise`, as the normalisation alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tvp.sdk.errors import RequestError

from .choices import LensKind as LensKind

REACH = 2  # px on each side of a kernel
SIDE = 2 * REACH + 1
MEAN, SPREAD = 0.5, 0.2  # of a normalised picture
LEAST_SPREAD = 1 / 255  # a picture of one colour stays one
FLOOR = 1 / 255  # below it the tone curve bends, so that its input never reaches zero
MOST_WIDTH, MOST_DEPTH = 64, 4


@dataclass(frozen=True)
class LensDesign:
    """Which parts a lens has.

    Args:
        kind: `colour`, `kernel` or `conv`. Default `conv`.
        normalise: bring every picture to one mean and spread first. Default False.
        width: channels between the convolutions of `conv`, 1 to 64. Default 16.
        depth: layers of such channels, 1 to 4. Default 1: two convolutions.

    Raises:
        RequestError: a value is out of its range.
    """

    kind: LensKind = "conv"
    normalise: bool = False
    width: int = 16
    depth: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(LensKind):
            raise RequestError(f"There is no lens {self.kind!r}. There are {', '.join(get_args(LensKind))}.")
        for name, most in (("width", MOST_WIDTH), ("depth", MOST_DEPTH)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise RequestError(f"The {name} of a lens is {value!r}; it must be a whole number from 1 to {most}.")
        if type(self.normalise) is not bool:
            raise RequestError(f"normalise is {self.normalise!r}; it must be true or false.")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels before, between and after the convolutions; only of `conv`."""
        return (3, *[self.width] * self.depth, 3)

    def start(self, seed: int = 0) -> dict[str, Tensor]:
        """Return the values that change no picture.

        Args:
            seed: of the convolutions whose output nothing reads yet.
        """
        values = {"matrix": torch.eye(3), "bias": torch.zeros(3), "tone": torch.zeros(3)}
        if self.kind == "kernel":
            values["kernel"] = F.pad(torch.ones(3, 1, 1), [REACH] * 4)
        if self.kind == "conv":
            generator = torch.Generator().manual_seed(seed)
            for i, (n_in, n_out) in enumerate(zip(self.channels, self.channels[1:], strict=False)):
                is_last = i == self.depth
                reach = 0.0 if is_last else (n_in * SIDE * SIDE) ** -0.5  # PyTorch's own start of a convolution
                shapes = {f"weight_{i}": (n_out, n_in, SIDE, SIDE), f"bias_{i}": (n_out,)}
                values |= {
                    name: (torch.rand(shape, generator=generator) * 2 - 1) * reach for name, shape in shapes.items()
                }
        return values


@dataclass(frozen=True)
class Lens:
    """A lens: its design and its values.

    Args:
        design: which parts it has.
        values: float32 tensors by name, as `LensDesign.start` returns them: `matrix` (3, 3), which takes and gives
            red, green and blue; `bias` (3); `tone` (3), the logarithm of each channel's exponent; of `kernel` also
            `kernel` (3, 5, 5); of `conv` also `weight_i` (out, in, 5, 5) and `bias_i` (out) of each convolution.
        eight_bit: round the result to 8 bits, as a camera pipeline would hand it on; then nothing is learned through
            it. Default False.
    """

    design: LensDesign
    values: Mapping[str, Tensor]
    eight_bit: bool = False

    def __call__(self, pictures: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 height width"]:
        """Return pictures behind the lens; values in [0, 1], differentiable in pictures and in the lens's values."""
        picture = normalised(pictures) if self.design.normalise else pictures
        if self.design.kind == "kernel":
            kernel = self._value("kernel", picture)
            picture = F.conv2d(_with_edges(picture, 1), kernel[:, None], groups=3)
        if self.design.kind == "conv":
            picture = picture + self._convolved(picture)
        matrix, bias, tone = (self._value(name, picture) for name in ("matrix", "bias", "tone"))
        picture = torch.einsum("dc,nchw->ndhw", matrix, picture) + bias.view(3, 1, 1)
        # A power keeps (0, 1] in (0, 1]: what is clipped before it need not be clipped behind it.
        picture = below_white(above_zero(picture)) ** tone.exp().view(3, 1, 1)
        return (picture * 255).round() / 255 if self.eight_bit else picture

    def to(self, device: torch.device | str) -> Lens:
        """Return the same lens on another device."""
        return replace(self, values={name: value.to(device) for name, value in self.values.items()})

    def _convolved(self, picture: Tensor) -> Tensor:
        n = self.design.depth + 1
        features = _with_edges(picture, n)
        for i in range(n):
            features = F.conv2d(features, self._value(f"weight_{i}", picture), self._value(f"bias_{i}", picture))
            if i < n - 1:
                features = features.relu()
        return features

    def _value(self, name: str, like: Tensor) -> Tensor:
        return self.values[name].to(like.device)

    @property
    def n_values(self) -> int:
        return sum(value.numel() for value in self.values.values())

    def describe(self) -> dict[str, Any]:
        """Return the facts that a file holds of the design."""
        return dict(vars(self.design))


def normalised(pictures: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n 3 height width"]:
    """Bring each picture to mean 0.5 and spread 0.2, over all pixels and channels together."""
    mean = pictures.mean((1, 2, 3), keepdim=True)
    variance = (pictures - mean).square().mean((1, 2, 3), keepdim=True)
    return (pictures - mean) * (SPREAD / variance.clamp(min=LEAST_SPREAD**2).sqrt()) + MEAN


def above_zero(values: Tensor) -> Tensor:
    """Bend values below FLOOR so that they stay above zero: FLOOR² / (2 FLOOR - value), with a continuous slope.

    With a hard bound no gradient would come back from a picture that became black.
    """
    return torch.maximum(values, FLOOR**2 / (2 * FLOOR - values.clamp(max=FLOOR)))


class _BelowWhite(torch.autograd.Function):
    """Clip values at 1. The gradient passes where a step against it leads back, and nowhere else above 1."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(max=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return gradient.masked_fill((values > 1) & (gradient < 0), 0)


def below_white(values: Tensor) -> Tensor:
    """Clip values at 1, so that a picture that became white can come back.

    A hard clip passes no gradient there. One that passes every gradient lets values grow without end, since what is
    white already can be made no whiter.
    """
    clipped: Tensor = _BelowWhite.apply(values)
    return clipped


def _with_edges(picture: Tensor, n_layers: int) -> Tensor:
    """Repeat the pixels at the edges, so that n convolutions in a row keep the picture's size."""
    return F.pad(picture, [n_layers * REACH] * 4, mode="replicate")
