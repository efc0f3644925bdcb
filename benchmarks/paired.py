"""Measure this checkout beside another in turns, so that other work on the machine slows both.

A block measures each side twice, in the order this, other, other, this; every second block goes the other way round. A
steady change during a block cancels out, and so does an advantage of being first or second. Each block gives a ratio.
The result is the median of the ratios, and an interval that holds the true median with a probability of at least 95 %.
The interval's ends are two of the sorted ratios, which the binomial distribution chooses, so it needs no assumption
about how times are distributed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FEWEST, ENOUGH = 6, 20  # blocks: that an interval of 95 % needs, and that a figure to be stated needs
PACKAGES = ("sdk", "export", "trainer")
Measured = dict[str, float | None]


@dataclass(frozen=True)
class Checkout:
    """A folder with TVP's source. home: an empty folder that stands for ~/.tvp."""

    folder: Path
    home: Path

    def environment(self, *packages: str) -> dict[str, str]:
        """The environment of a process that imports these packages of the checkout.

        TVP_THREADS is left out, because older checkouts do not read it: both sides have the same threads.
        """
        inherited = {key: value for key, value in os.environ.items() if key != "TVP_THREADS"}
        paths = os.pathsep.join(str(self.folder / package) for package in packages)
        return inherited | {"PYTHONPATH": paths, "TVP_HOME": str(self.home)}

    def code(self) -> str:
        """A digest of the packages' source; bundles of different exporters are kept under it."""
        digest = hashlib.sha256()
        for package in PACKAGES:
            for file in sorted((self.folder / package).rglob("*.py")):
                digest.update(f"{file.relative_to(self.folder)}\n".encode() + file.read_bytes())
        return digest.hexdigest()[:12]

    def commit(self) -> str | None:
        """The commit that is checked out, where the folder is a checkout of git."""
        if not (self.folder / ".git").exists():
            return None
        call = ["git", "-C", str(self.folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True).stdout.strip() or None

    def tvp(self, *arguments: str | Path) -> None:
        """Run the checkout's own command `tvp`."""
        scripts = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
        module, function = scripts["tvp"].split(":")
        self.python(f"from {module} import {function}; sys.argv[0] = 'tvp'; sys.exit({function}())", *arguments)

    def python(self, code: str, *arguments: str | Path) -> None:
        """Run code with the checkout's packages; its arguments are in `sys.argv`."""
        call = [sys.executable, "-P", "-c", f"import sys; {code}", *map(str, arguments)]
        subprocess.run(call, check=True, env=self.environment(*PACKAGES))


class Process:
    """A process with a checkout's sdk; each call sends a request, one of the methods in benchmarks/side.py."""

    def __init__(self, checkout: Checkout) -> None:
        command = [sys.executable, "-P", str(Path(__file__).with_name("side.py"))]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=checkout.environment("sdk"), cwd=checkout.home
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._requests, self._replies = process, process.stdin, process.stdout
        self.imported = self("imports")
        if not Path(self.imported["sdk"]).is_relative_to(checkout.folder / "sdk"):
            self.close()
            raise RuntimeError(f"The sdk of {checkout.folder} was asked for, and {self.imported['sdk']} was imported.")

    def __call__(self, request: str, **details: Any) -> dict[str, Any]:
        reply = ""
        with contextlib.suppress(BrokenPipeError):  # of a process that has ended
            self._requests.write(json.dumps({"do": request, **details}) + "\n")
            self._requests.flush()
            reply = self._replies.readline()
        if not reply:
            raise RuntimeError(f"The process of a side ended at the request {request!r}; see above for its error.")
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def close(self) -> None:
        """End the process, which ends when there is nothing more to read."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._process.wait()
        self._replies.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def in_turns(this: Callable[[], Measured], other: Callable[[], Measured], n: int) -> list[tuple[Measured, Measured]]:
    """Measure n blocks, after one that warms up; returns both sides' means of each block.

    Args:
        this, other: measure a side once; a value by the name of what is measured.
        n: number of blocks.
    """
    blocks = []
    for block in range(n + 1):
        found: tuple[list[Measured], list[Measured]] = ([], [])
        for side in (0, 1, 1, 0) if block % 2 else (1, 0, 0, 1):
            found[side].append((this, other)[side]())
        if block:
            blocks.append((_mean(found[0]), _mean(found[1])))
    return blocks


def _mean(rows: Sequence[Measured]) -> Measured:
    """Means by name, without the names whose value is missing in a row."""
    known = [name for name in rows[0] if all(row.get(name) is not None for row in rows)]
    return {name: statistics.fmean(float(row[name] or 0) for row in rows) for name in known}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values, between which the true median lies with a probability of at least 95 %.

    With few values (under six) that cannot be had; then the lowest and the highest.
    """
    n, values = len(values), sorted(values)
    below = 0.0  # the probability that at most `rank` of n values are under the true median
    for rank in range(n // 2):
        below += math.comb(n, rank) / 2**n
        if 2 * below > 0.05:
            return values[max(0, rank - 1)], values[n - max(1, rank)]
    return values[0], values[-1]


def summary(blocks: Sequence[tuple[Measured, Measured]]) -> dict[str, dict[str, float]]:
    """Of each measure: both sides' medians, the median ratio this / other, and its interval."""
    rows = {}
    for name in blocks[0][0]:
        pairs = [(float(this[name] or 0), float(other[name] or 0)) for this, other in blocks if name in other]
        ratios = [this / other for this, other in pairs if other]
        if not ratios:
            continue
        low, high = interval(ratios)
        rows[name] = {
            "this": statistics.median(this for this, _ in pairs),
            "other": statistics.median(other for _, other in pairs),
            "ratio": round(statistics.median(ratios), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "n": len(ratios),
        }
    return rows
