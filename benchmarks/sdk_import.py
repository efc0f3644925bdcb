"""How long `from tvp import sdk` takes in new processes.

    python -m benchmarks.sdk_import

Prints the median and spread, and those of an empty interpreter, whose start-up the import's own time leaves out. Writes
JSON where --output says. `python -m benchmarks.speed --against CHECKOUT` measures imports beside another checkout's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=11)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    codes = {"python": "pass", "numpy": "import numpy", "from tvp import sdk": "from tvp import sdk"}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(arguments.n + 1):
        for name, code in codes.items():
            times[name].append(seconds(code))
    rows = {}
    for name, values in times.items():
        values = sorted(values[1:])
        rows[name] = {"median_s": statistics.median(values), "min_s": values[0], "max_s": values[-1]}
        print(f"{name:<20} median {rows[name]['median_s']:.3f} s  ({values[0]:.3f} … {values[-1]:.3f})")
    own = rows["from tvp import sdk"]["median_s"] - rows["python"]["median_s"]
    print(f"{'the import alone':<20} {own:.3f} s")
    if arguments.output:
        about = {"machine": platform.machine(), "python": platform.python_version()}
        arguments.output.write_text(json.dumps({**about, "rows": rows, "import_s": own}, indent=2) + "\n")


if __name__ == "__main__":
    main()
