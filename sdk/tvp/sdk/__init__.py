"""TVP's client: it loads a task bundle and answers questions about pictures, without PyTorch.

    from tvp import sdk
    task = sdk.load("count")
    print(task.ask("shelf.jpg", "How many objects are there?"))

The import itself loads no other package. numpy, pillow, tokenizers and onnxruntime are imported at the first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from ._doctor import doctor
    from ._generation import Options
    from ._image import ImageLike, read_image
    from ._image_limits import ImageLimits
    from ._load import load
    from ._results import Answer, Ranked
    from ._store import home, tasks
    from ._task import Task
    from ._view import View, unlikeness

# onnxruntime reads this when it is imported. Without it, recent wheels write a device id under the user's cache folder
# and report to their maker. Who wants that sets ORT_DISABLE_TELEMETRY=0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Answer",
    "ImageLike",
    "ImageLimits",
    "Options",
    "Ranked",
    "Task",
    "View",
    "doctor",
    "errors",
    "home",
    "load",
    "read_image",
    "tasks",
    "unlikeness",
]

_HOMES = {
    "_doctor": ("doctor",),
    "_image": ("ImageLike", "read_image"),
    "_image_limits": ("ImageLimits",),
    "_generation": ("Options",),
    "_load": ("load",),
    "_results": ("Answer", "Ranked"),
    "_store": ("home", "tasks"),
    "_task": ("Task",),
    "_view": ("View", "unlikeness"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
