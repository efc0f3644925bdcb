"""What it costs that a picture is read apart from the first question about it, below fp32, in turns.

    python -m benchmarks.read_apart --folder DIR

SmolVLM-256M's shape in int8, see benchmarks/structured.py. A picture is encoded, and then asked once, for 16 tokens:
with the picture read by itself, as the sdk does, and with picture and question read together, as it does in fp32. Only
the question's time counts. `--folder` keeps model and bundle. Writes read_apart.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import paired
from benchmarks.machine import load_average, machine
from benchmarks.structured import QUESTION, prepare
from tvp import sdk

N_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where model and bundle are kept")
    parser.add_argument("-n", type=int, default=paired.ENOUGH, help=f"blocks of turns (default {paired.ENOUGH})")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.read_apart --folder DIR -n {arguments.n}",
        "machine": machine("onnxruntime"),
    }
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with sdk.load(prepare(arguments.folder), providers="cpu") as task:
        model: Any = task.model
        apart = model.manifest
        together = replace(apart, precision="fp32")

        def seconds(manifest: Any) -> paired.Measured:
            model.manifest = manifest
            view = task.see(picture)
            began = time.perf_counter()
            view.ask(QUESTION, max_new_tokens=N_TOKENS)
            return {"first_answer": time.perf_counter() - began}

        blocks = paired.in_turns(lambda: seconds(apart), lambda: seconds(together), arguments.n)
    report |= paired.summary(blocks)
    report["machine"]["load_average_after"] = load_average()
    print(json.dumps(report, indent=1))
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
