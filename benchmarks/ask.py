"""One question through the sdk beside PyTorch, in one run: `python benchmarks/ask.py BUNDLE MODEL`.

Both get the same picture and question and give the same number of new tokens, one at a time.
Prints medians and the ratio of each pair.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from tvp import sdk
from tvp.export.parity import pixel_values
from tvp.trainer import families
from tvp.trainer.prompt import Prompt


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=30)
    parser.add_argument("--new-tokens", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    family = families.load(arguments.model)
    prompt = Prompt.load(arguments.bundle / "prompt.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    question = "How many objects are there?"
    with sdk.load(arguments.bundle) as task:
        view = task.see(picture)
        view.ask(question)

        @torch.no_grad()
        def with_torch() -> None:
            pixels = pixel_values(family, prompt.geometry, prompt, picture)
            family.generate_tokens(family.see(pixels), [question], arguments.new_tokens)

        calls: dict[str, Callable[[], object]] = {
            "PyTorch": with_torch,
            "sdk ask": lambda: task.ask(picture, question, max_new_tokens=arguments.new_tokens),
            "sdk, second question": lambda: view.ask(question, max_new_tokens=arguments.new_tokens),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(arguments.n + 2):
            for name, call in calls.items():
                times[name].append(timed(call))
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["PyTorch"][2:], times["sdk ask"][2:], strict=True))
    for name, value in medians.items():
        print(f"{name:<22} {value * 1e3:8.2f} ms")
    print(f"PyTorch / sdk ask, median of pairs: {ratio:.2f}")
    if arguments.output:
        about = {"machine": platform.machine(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        arguments.output.write_text(json.dumps({**about, "median_s": medians, "ratio": ratio}, indent=2) + "\n")


if __name__ == "__main__":
    main()
