"""How many scenes one core draws and asks about in a second: `python -m benchmarks.scenes`.

The pictures are 64 x 64, with one question of every topic. Prints the median of five runs, and writes scenes.json
beside this file.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from tvp.trainer import scenes

N_PICTURES, N_RUNS = 2000, 5


def main() -> None:
    rates = []
    for run in range(N_RUNS):
        rng = np.random.default_rng(run)
        began = time.perf_counter()
        for _ in range(N_PICTURES):
            scene = scenes.make_scene(rng)
            scenes.draw(scene, 64)
            for topic in scenes.TOPICS:
                scenes.ask(scene, rng, topic)
        rates.append(N_PICTURES / (time.perf_counter() - began))
    row = {
        "pictures_per_second": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "questions_per_picture": len(scenes.TOPICS),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    print(f"{row['pictures_per_second']:,} pictures a second ({row['lowest']:,} to {row['highest']:,})")
    Path(__file__).with_suffix(".json").write_text(json.dumps(row, indent=2) + "\n")


if __name__ == "__main__":
    main()
