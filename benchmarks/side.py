"""One checkout's sdk in a process of its own, which benchmarks/paired.py starts and sends requests to.

A request comes in as a line of JSON, and the reply goes out as one. PYTHONPATH says which checkout's sdk is imported.
Only public names of the sdk are used, so that checkouts of different ages can be measured.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUESTION = "How many objects are there?"
N_NEW = 16


def resident() -> dict[str, float]:
    """Resident memory of this process now and at most, in MiB; empty where the system has no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    text = status.read_text()
    return {key: int(text.split(f"{key}:")[1].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")}


def timed(call: Callable[[], Any], repeats: int = 1) -> tuple[dict[str, float], Any]:
    """Median seconds of a call that is repeated, by the clock and of processor time; and its last result."""
    spent, processor = [], []
    for _ in range(repeats):
        began, busy = time.perf_counter(), time.process_time()
        result = call()
        spent.append(time.perf_counter() - began)
        processor.append(time.process_time() - busy)
    return {"seconds": statistics.median(spent), "processor": statistics.median(processor)}, result


class Side:
    """The requests: a method for each, whose keywords and result are JSON."""

    def imports(self) -> dict[str, Any]:
        """Seconds of the import alone, and with all modules that a first load needs. Counts once in a process."""
        self._before = resident()
        began = time.perf_counter()
        from tvp import sdk

        light = time.perf_counter() - began
        self._load = sdk.load
        return {"import": light, "import for a load": time.perf_counter() - began, "sdk": str(sdk.__file__)}

    def load(self, bundle: str) -> dict[str, Any]:
        """Seconds of loading, and memory after it; the next requests are about this bundle."""
        import numpy as np

        times, self._task = timed(lambda: self._load(bundle, providers="cpu"))
        loaded = self._added()
        self._picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        return {**times, "memory": loaded.get("VmRSS")}

    def ask(self, n_new: int = N_NEW, repeats: int = 1) -> dict[str, Any]:
        """Seconds of `ask` about a new picture, and its tokens; memory after it and at most."""
        times, answer = timed(lambda: self._task.ask(self._picture, QUESTION, max_new_tokens=n_new), repeats)
        added = self._added()
        memory = {"memory": added.get("VmRSS"), "peak": added.get("VmHWM")}
        return {**times, "tokens": list(answer.tokens), **memory}

    def see(self, repeats: int = 1) -> dict[str, Any]:
        """Seconds of `see`: the prompt's graph and the vision encoder."""
        times, self._view = timed(lambda: self._task.see(self._picture), repeats)
        return dict(times)

    def token(self, repeats: int = 1) -> dict[str, Any]:
        """Seconds of a token behind the first, of a question about the picture that `see` saw last."""
        spent = []
        for _ in range(repeats):
            answer = self._view.ask(QUESTION, max_new_tokens=N_NEW)
            if len(answer.tokens) == 1:
                return {"seconds": None}
            seconds = answer.timing["total"] - answer.timing["see"] - answer.timing["first_token"]
            spent.append(seconds / (len(answer.tokens) - 1))
        return {"seconds": statistics.median(spent)}

    def _added(self) -> dict[str, float]:
        """MiB more than before the import."""
        return {key: value - self._before["VmRSS"] for key, value in resident().items()}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # a library that prints does not print among the replies
    side = Side()
    for line in sys.stdin:
        request = json.loads(line)
        replies.write(json.dumps(getattr(side, request.pop("do"))(**request)) + "\n")


if __name__ == "__main__":
    main()
