"""The machine that a benchmark's figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

# onnxruntime chooses its kernels for matrix products by these; int8 is twice as fast with VNNI as with AVX2 alone.
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")


def machine(*packages: str) -> dict[str, Any]:
    """Processor, its instructions, cores, their load, and the versions of Python and of packages."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", platform.processor()),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": os.cpu_count(),
        "load_average_before": load_average(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def load_average() -> list[float]:
    return [round(load, 2) for load in os.getloadavg()]
