"""A camera and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvp.sdk.errors import RequestError, near

from .effects import expose
from .kinds import KINDS, SEVERITIES, Number, Value

Picture = NDArray[np.uint8]
Seed = int | Sequence[int] | np.random.Generator
NONE = "none"  # a camera without parts, in words


@dataclass(frozen=True)
class Part:
    """A part of a camera: a kind, and either its values or a severity.

    Args:
        kind: one of KINDS.
        values: of the kind, in its units; each a number, or a range (low, high) from which every picture draws its own
            value, all equally likely. Those that are left out have their defaults.
        severity: 1 to 5, or a range (low, high) of them. What it means depends on the kind and on the picture's size.

    Raises:
        RequestError: there is no such kind, or its values or its severity are wrong.
    """

    kind: str
    values: tuple[Number, ...] = ()
    severity: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestError(
                f"There is no camera part {self.kind!r}. There are {', '.join(KINDS)}.{near(self.kind, KINDS)}"
            )
        if bool(self.values) == (self.severity is not None):
            raise RequestError(f"{self.kind} needs a severity, such as {self.kind}:3, or values. {form(self.kind)}")
        if self.severity is not None:
            low, high = self.severity if isinstance(self.severity, tuple) else (self.severity, self.severity)
            if not (low in SEVERITIES and high in SEVERITIES and low <= high):
                raise wrong_severity(self.kind, _shown(self.severity))
            object.__setattr__(self, "severity", low if low == high else (low, high))
            return
        known = KINDS[self.kind].values
        values = KINDS[self.kind].filled(self.values)
        if len(values) != len(known):
            raise RequestError(f"{self.kind} has {len(self.values)} value(s). {form(self.kind)}")
        pairs = zip(values, known, strict=True)
        object.__setattr__(self, "values", tuple(_checked(self.kind, number, value) for number, value in pairs))

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[float, ...]:
        """Return the values for one picture of this size; only ranges draw from `rng`."""
        part = self
        if isinstance(self.severity, tuple):
            low, high = self.severity
            part = Part(self.kind, severity=int(rng.integers(low, high + 1)))
        numbers = part.at(height, width).values
        return tuple(float(rng.uniform(*number)) if isinstance(number, tuple) else number for number in numbers)

    def at(self, height: int, width: int) -> Part:
        """Return the part with the values that its severity has for pictures of this size; a range stays."""
        if not isinstance(self.severity, int):
            return self
        return Part(self.kind, KINDS[self.kind].at(self.severity, height, width))

    def __str__(self) -> str:
        if self.severity is not None:
            return f"{self.kind}:{_shown(self.severity)}"
        values, known = list(self.values), KINDS[self.kind].values
        while len(values) > 1 and values[-1] == known[len(values) - 1].default:
            values.pop()
        return f"{self.kind}={'/'.join(map(_shown, values))}"


@dataclass(frozen=True)
class Camera:
    """A camera: parts, which spoil a picture one after the other. Without parts it changes nothing.

    Attributes:
        parts: in their order.
    """

    parts: tuple[Part, ...] = ()

    def shoot(self, picture: Picture, seed: Seed) -> Picture:
        """Return what the camera records of a picture.

        Ranges are drawn first, in the order of the parts; then every part draws its own noise. So a stronger camera
        shows more of the same noise. Between parts nothing is rounded, except by JPEG, or cut off, except by JPEG and
        over-exposure; the end does both. Gains and casts and the noise right behind them are one step in float32;
        noise elsewhere is drawn in float64, and so has other values from the same seed.

        Args:
            picture: uint8 (height, width, 3).
            seed: of this picture, or the source of chance.

        Returns:
            uint8 (height, width, 3).
        """
        rng = np.random.default_rng(seed)
        height, width = picture.shape[:2]
        drawn = [(part.kind, part.draw(height, width, rng)) for part in self.parts]
        values: NDArray[Any] = picture
        white = 255.0
        gain: NDArray[np.float32] | None = None  # of gains and casts that are not applied yet

        def exposed(deviation: float) -> NDArray[np.float32]:
            assert gain is not None
            return expose((values * (255 / white)).astype(np.float32), gain, deviation, rng)

        for kind, strengths in drawn:
            effect, neutral = KINDS[kind].effect, KINDS[kind].neutral
            if effect is None:
                factors = np.asarray(strengths, np.float32)
                gain = factors if gain is None else gain * factors
            elif kind == "noise" and gain is not None:
                values, white, gain = exposed(*strengths), 255.0, None
            elif strengths[0] != neutral:
                if gain is not None:
                    values, white, gain = exposed(0.0), 255.0, None
                values, white = effect(values.astype(np.float64) / white, *strengths, rng), 1.0
        if gain is not None:
            values, white = exposed(0.0), 255.0
        levels: Picture = np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)
        return levels

    def at(self, height: int, width: int) -> Camera:
        """Return the camera with the values that its severities have for pictures of this size."""
        return Camera(tuple(part.at(height, width) for part in self.parts))

    def __str__(self) -> str:
        return ",".join(map(str, self.parts)) or NONE


def form(kind: str) -> str:
    """Say how a kind's values are written, as a sentence."""
    values = KINDS[kind].values
    names = "/".join(f"[{value.name}]" if value.default is None else f"[{value.name}, optional]" for value in values)
    return f"Write {kind}={names}; each is a number or a range, such as 0.2..0.8."


def wrong_severity(kind: str, shown: str) -> RequestError:
    return RequestError(
        f"The severity {shown!r} of {kind} is unknown. It is a whole number from 1 to 5, or a range of these, such as "
        "2..4."
    )


def _checked(kind: str, number: Number, value: Value) -> Number:
    low, high = number if isinstance(number, tuple) else (number, number)
    if not (value.low <= low <= value.high and value.low <= high <= value.high):  # NaN is refused too
        raise RequestError(
            f"{kind} has {_shown(number)} as its {value.name}; it must lie between {_shown(value.low)} and "
            f"{_shown(value.high)}."
        )
    if low > high:
        raise RequestError(f"{kind} has the range {_shown(number)}; its lower end comes first.")
    if value.whole and (low % 1 or high % 1):
        raise RequestError(f"{kind} has {_shown(number)} as its {value.name}; it must be a whole number.")
    return float(low) if low == high else (float(low), float(high))


def _shown(number: float | tuple[float, float]) -> str:
    """Write a number, or a range, so that it is read as the very same."""
    if isinstance(number, tuple):
        return "..".join(map(_shown, number))
    return repr(float(number)).removesuffix(".0")
