"""The cores and the memory that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import RequestError

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
MOST_THREADS = 1024


def threads(wanted: int | None = None) -> int:
    """Return the number of threads of a graph; 0 lets onnxruntime choose, which takes one for each physical core.

    Args:
        wanted: by the caller; None for $TVP_THREADS or, where that is not set, as many as this process may use.
            onnxruntime looks at the whole machine, so it is told only where a process may not use all of it: then more
            threads than cores would take turns, and each product of matrices would wait for the last of them.

    Raises:
        RequestError: the number is none.
    """
    name, value = ("threads", wanted) if wanted is not None else ("TVP_THREADS", os.environ.get("TVP_THREADS") or None)
    if value is None:
        cores = usable_cores()
        return cores if cores < (os.cpu_count() or 1) else 0
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST_THREADS:
        raise RequestError(f"{name} is {value!r}; it must be a whole number from 1 to {MOST_THREADS}.")
    return number


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
