"""What a benchmark's figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, how busy they are, and the versions of Python and of packages."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average_before": load_average(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def load_average() -> list[float]:
    return [round(load, 2) for load in os.getloadavg()]
