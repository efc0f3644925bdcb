"""What this installation can run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from ._sessions import choose_providers, onnxruntime
from ._task import home, tasks
from .errors import ProviderError


def doctor() -> dict[str, Any]:
    """Versions, providers, where each part of a bundle would run, cores and known tasks."""
    facts: dict[str, Any] = {
        "tvp": version("tvp"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    try:
        facts["onnxruntime"] = onnxruntime().__version__
        facts["providers"] = ", ".join(onnxruntime().get_available_providers())
        facts["auto runs on"] = ", ".join(choose_providers("auto"))
    except ProviderError as error:
        facts["onnxruntime"] = str(error)
    facts["home"] = str(home())
    facts["tasks"] = ", ".join(tasks()) or "none"
    return facts
