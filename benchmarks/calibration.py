"""What calibration wins and costs: `python -m benchmarks.calibration --photos FOLDER`.

Three models of the zoo, photos of CIFAR-10 and counting in scenes, as they are and through the bad camera. A
calibration is learned from 512 training pictures and measured on 2,000 test pictures, in both ways that `tvp calibrate
--by` has. Prints a table, and writes calibration.json beside this file. It takes five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tvp.trainer import families, tasks
from tvp.trainer.calibration import By, applied, offsets_of
from tvp.trainer.data import Data, Subset
from tvp.trainer.evaluate import ask, judge
from tvp.trainer.metrics import gain
from tvp.trainer.prompt import Geometry

MODELS = ("zoo:blip2", "zoo:smolvlm", "zoo:qwen2vl")
TASKS = ("bad-camera-cifar10", "bad-camera-count", "cifar10", "count")
N_TRAIN, N_TEST, FULL = 512, 2000, Geometry(64, 64)


def drawn(source: str, task: tasks.TaskDefinition, split: str, n: int) -> Data:
    data = tasks.open_data(source, task, split, n, seed=0)
    return Subset(data, sorted(np.random.default_rng(0).permutation(len(data))[:n].tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True, help="folder of CIFAR-10: parquet, or as torchvision has it")
    photos = parser.parse_args().photos
    rows: list[dict[str, Any]] = []
    for name in TASKS:
        task = tasks.get(name)
        source = photos if task.published else ""
        train, test = drawn(source, task, "train", N_TRAIN), drawn(source, task, "test", N_TEST)
        for model in MODELS:
            family = families.load(model, canvas=FULL.canvas)
            usual, before = (ask(family, data, FULL, None, task) for data in (train, test))
            was = judge(before)
            for by in get_args(By):
                now = judge(applied(offsets_of(usual, by), before))
                won = gain(was.right, now.right, before.pictures)
                rows.append(
                    {"task": name, "model": model, "by": by, "before": was.accuracy, "after": now.accuracy}
                    | {"gain": won.value, "low": won.low, "high": won.high, "n": now.n}
                )
                print(f"{name:<20} {model:<12} {by:<6} {was.accuracy:6.1%} -> {now.accuracy:6.1%}  {won}", flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
