"""Memory of loaded tasks.

    python -m benchmarks.memory BUNDLE …

Each bundle is measured in processes of its own: the resident memory that loading and one question add, beside the size
of its base's files; then the same with ten tasks on its base. Figures are medians of five processes. Prints a table and
writes memory.json beside this file.

`python -m benchmarks.speed --against CHECKOUT` measures memory beside another checkout's.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine

N_RUNS = 5
PROBE = """
import sys
from pathlib import Path
def resident():
    text = Path("/proc/self/status").read_text()
    return {k: int(text.split(k + ":")[1].split()[0]) for k in ("VmRSS", "VmHWM")}
import numpy, onnxruntime
from tvp import sdk
before = resident()["VmRSS"]
tasks = [sdk.load(folder, providers="cpu") for folder in sys.argv[1:]]
loaded = resident()["VmRSS"] - before
picture = numpy.zeros((480, 640, 3), numpy.uint8)
for task in tasks:
    task.ask(picture, "How many objects are there?", max_new_tokens=2)
after = resident()
print(loaded, after["VmRSS"] - before, after["VmHWM"] - before)
"""


def probe(*folders: Path) -> list[float]:
    """MiB that these bundles add to a process: once loaded, after a question each, and at the highest."""
    call = [sys.executable, "-c", PROBE, *map(str, folders)]
    runs = [subprocess.run(call, check=True, capture_output=True, text=True).stdout.split() for _ in range(N_RUNS)]
    return [statistics.median(map(int, values)) / 1024 for values in zip(*runs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    arguments = parser.parse_args()
    rows = {}
    for bundle in arguments.bundles:
        weights = sum(file.stat().st_size for file in (bundle / "base").iterdir()) / 2**20
        loaded, asked, most = probe(bundle)
        with tempfile.TemporaryDirectory(dir=bundle.parent) as place:
            ten = [Path(place) / str(i) for i in range(10)]
            for copy in ten:  # hard links, as an export makes them
                shutil.copytree(bundle, copy, copy_function=os.link)
            of_ten = probe(*ten)
        rows["/".join(bundle.parts[-2:])] = row = {
            "weights_mib": round(weights, 1),
            "loaded_mib": round(loaded, 1),
            "after_a_question_mib": round(asked, 1),
            "peak_mib": round(most, 1),
            "loaded_by_weights": round(loaded / weights, 3),
            "ten_tasks_by_one": round(of_ten[0] / loaded, 3),
            "ten_tasks_by_one_after_questions": round(of_ten[1] / asked, 3),
        }
        print("/".join(bundle.parts[-2:]), row)
    command = shlex.join(["python", "-m", "benchmarks.memory", *("/".join(b.parts[-2:]) for b in arguments.bundles)])
    report = {"command": command, "machine": machine("onnxruntime"), "bundles": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
