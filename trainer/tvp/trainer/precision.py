"""The number format of frozen models' weights."""

from __future__ import annotations

import torch


def dtype_of(precision: str, device: str) -> torch.dtype:
    """The type of the weights.

    Args:
        precision: `fp32`, `bf16`, `fp16`; or `auto`: bf16 on a GPU that has it, fp32 elsewhere.
        device: where the model runs: `cpu`, `cuda`, `cuda:1`, or `auto`.
    """
    if precision == "auto":
        on_gpu = device.startswith(("cuda", "auto")) and torch.cuda.is_available()
        # Older GPUs emulate bf16, which is slow.
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
