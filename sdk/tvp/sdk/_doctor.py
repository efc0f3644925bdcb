"""What this installation can run: `doctor`."""

from __future__ import annotations

import base64
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ._runtime.machine import memory, usable_cores
from ._runtime.providers import CPU, ON_CPU, PARTS, choose_providers, with_cuda
from ._runtime.sessions import open_session
from ._store import home, tasks
from .errors import ProviderError

# An ONNX model that adds a number to itself (opset 18). It shows whether a provider starts.
MODEL = base64.b64decode("CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAS")


def doctor() -> dict[str, str]:
    """Describe this installation and machine, as `tvp doctor` does.

    Returns:
        Texts by name: versions, cores and memory that this process may use, onnxruntime's providers and devices, where
        `auto` would run each part of a bundle, $TVP_HOME, its cache and its tasks.
    """
    facts = {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("tvp-edge", "numpy", "pillow", "tokenizers")},
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        "memory": ", ".join(f"{n / 2**30:.1f} GiB {name}" for name, n in memory().items()) or "unknown",
    }
    try:
        ort = with_cuda()  # as `load` does, so that the same providers are found
        facts["onnxruntime"] = ort.__version__
        facts["providers"] = ", ".join(ort.get_available_providers())
        facts["devices"] = ", ".join(_devices(ort)) or "not reported"
        facts["auto"] = _auto()
    except ProviderError as error:
        facts["onnxruntime"] = str(error)
    facts["home"] = str(home())
    facts["cache"] = f"{_size(home() / 'cache') / 1e6:.1f} MB in {home() / 'cache'}"
    facts["tasks"] = ", ".join(tasks()) or "none"
    return facts


def _auto() -> str:
    """Return where `auto` would run each part, and the error of each provider that does not start."""
    places: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "add.onnx"
        file.write_bytes(MODEL)
        for part in PARTS:
            chosen = choose_providers("auto", part, home() / "cache")
            name = chosen[0][0]
            if chosen != ON_CPU and name not in reasons:
                try:
                    open_session(file, chosen)
                    reasons[name] = ""
                except ProviderError as error:
                    reasons[name] = str(error)
            places.setdefault(CPU if reasons.get(name) else name, []).append(part)
    lines = [f"{', '.join(parts)} on {name}" for name, parts in places.items()]
    return "; ".join(lines + [reason for reason in reasons.values() if reason])


def _devices(ort: object) -> Iterator[str]:
    """Yield the devices that onnxruntime reports; none where it cannot report them."""
    try:
        found = ort.get_ep_devices()  # type: ignore[attr-defined]
    except Exception:  # a new function, whose errors are not documented
        return
    for item in found:
        yield f"{item.device.vendor or 'unknown'} {item.device.type.name} ({item.ep_name})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _size(folder: Path) -> int:
    """Return the bytes of the files in a folder. A file with several links counts once; a file that vanishes, not."""
    sizes: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
                sizes[status.st_dev, status.st_ino] = status.st_size
            except OSError:
                continue
    return sum(sizes.values())
