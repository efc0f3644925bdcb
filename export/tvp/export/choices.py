"""The values that an export chooses among. They are apart from the modules that act on them, which import torch."""

from __future__ import annotations

# Bytes for each weight of a language model. In int8 and int4, 128 weights share a scale of four bytes.
BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1 + 4 / 128, "int4": 0.5 + 4 / 128}
PRECISIONS = tuple(BYTES)
DEVICES = ("cpu", "cuda", "tensorrt")
MAX_LOSS = 0.1  # share of the answers that may differ from PyTorch's, below fp32
N_PICTURES = 64  # benchmarks/unlikeness.json: 16 are enough to tell cameras apart, 64 to know what 1 is within a tenth
