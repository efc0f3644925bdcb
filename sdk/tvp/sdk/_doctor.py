"""What this installation can run: `doctor`."""

from __future__ import annotations

import base64
import math
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ._runtime.providers import CPU, ON_CPU, PARTS, choose_providers, with_cuda
from ._runtime.sessions import open_session
from ._store import home, tasks
from .errors import ProviderError

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
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


def usable_cores() -> int:
    """Return the number of cores that this process may use: by its affinity and its container's limit, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups("cpu"):
        quota, period = [*_read(folder / "cpu.max").split(), "", ""][:2]
        if not quota:  # control groups of version 1
            quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit():
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def memory() -> dict[str, int]:
    """Return the bytes of memory that are `total` and `available` for this process, within its container's limit.

    Empty where the system does not report them.
    """
    lines = [line.split() for line in _read(PROC / "meminfo").splitlines()]
    kib = {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
    if "MemTotal:" in kib and "MemAvailable:" in kib:
        total, available = kib["MemTotal:"] * 2**10, kib["MemAvailable:"] * 2**10
    else:
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            total, available = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
        except (AttributeError, OSError, ValueError):  # Windows, macOS
            return {}
    for folder in _cgroups("memory"):
        for limit_file, used_file, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _read(folder / limit_file).strip(), _read(folder / used_file).strip()
            if limit.isdigit() and used.isdigit():
                stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                free = (
                    int(limit) - int(used) + int(stat.get(cached, 0))
                )  # the system drops cached files when memory is needed
                total, available = min(total, int(limit)), min(available, max(0, free))
    return {"total": total, "available": available}


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


def _cgroups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process, its own first; of versions 1 and 2."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        own = (CGROUP / controller if names else CGROUP) / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(CGROUP))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


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
