"""The values that settings choose among. They are apart from what they choose, which imports torch."""

from __future__ import annotations

from typing import Literal

LensKind = Literal["colour", "kernel", "conv"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]  # of frozen weights, see `precision.dtype_of`
UpdateRule = Literal["normalized", "adam", "sign"]  # see `update.Update`
CONVERTED = ("minigpt4", "vpgtrans", "bliva", "visualglm")  # the keys of `published.KINDS`
