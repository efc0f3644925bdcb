"""How long a second task takes to load on a base that is loaded: `python -m benchmarks.second_task`.

Two tasks are exported on the zoo's LLaVA, and on a wide LLaVA with random weights (--layers says how many layers of
about 50 MB; 0 leaves this model out). The second task shares the base of the first by hard links, as `tvp export` makes
it. New processes load the first task, the second, the second while the first is closed, and the second with a copy of
the base, whose files have to be hashed. They also load the second task with a lens bundle, and swap the lens of a
loaded task. Prints medians and spread, and the resident memory before, with both tasks, and
after closing them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvp.trainer.prompt import Prompt

SETTLED = 2.5  # seconds; the sdk hashes younger files again

MEASURE = """
import ctypes, gc, json, pathlib, sys, time
from tvp import sdk
import onnxruntime, tokenizers

def resident():
    gc.collect()
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

def load(folder):
    began = time.perf_counter()
    task = sdk.load(folder, providers="cpu")
    return time.perf_counter() - began, task

first, second, copied, lens = sys.argv[1:]
load(first)[1].close()  # a warm-up: imports, and the first reading of the files
memory = [resident()]
times = {}
times["first"], a = load(first)
times["second"], b = load(second)
assert a.model is b.model
memory.append(resident())
began = time.perf_counter()
a.use_lens(lens)
times["swap of the lens"] = time.perf_counter() - began
began = time.perf_counter()
sdk.load(second, providers="cpu", lens=lens).close()
times["second with a lens"] = time.perf_counter() - began
times["second, copied base"], c = load(copied)
a.close(), b.close(), c.close()
del a, b, c
memory.append(resident())
times["second alone"], b = load(second)
print(json.dumps([times, memory]))
"""


def make_wide(folder: Path, n_layers: int) -> Path:
    """The zoo's LLaVA with a language model of n_layers of width 1024, and random weights."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from tvp.trainer.zoo import locate

    zoo = locate("zoo:llava")
    shutil.copytree(zoo, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = LlavaConfig.from_pretrained(zoo)
    for key, value in {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 64,
        "num_hidden_layers": n_layers,
    }.items():
        setattr(config.text_config, key, value)
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def random_lens() -> Prompt:
    """A lens of the largest default kind, at the size of the zoo."""
    import torch

    from tvp.trainer.lens import Lens, LensDesign
    from tvp.trainer.prompt import Geometry, Prompt

    design, generator = LensDesign("conv"), torch.Generator().manual_seed(0)
    values = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in design.start().items()}
    return Prompt(None, Geometry(64, 64), lens=Lens(design, values))


def measure(model: str | Path, folder: Path, n: int) -> dict[str, object]:
    """Export a model's bundles to a folder, and load them in n processes."""
    import numpy as np

    from tvp.export.bundle import export
    from tvp.export.without_base import export_lens
    from tvp.trainer import tasks

    for name in ("count", "existence"):
        export(model, tasks.get(name), folder / name, n_cases=4)
    shutil.copytree(folder / "existence", folder / "copied")
    export_lens(model, folder / "lens", [np.zeros((48, 64, 3), np.uint8)], prompt=random_lens())
    files = [file.stat() for file in (folder / "existence" / "base").iterdir()]
    assert all(file.st_nlink > 1 for file in files if file.st_size > 10**5)
    time.sleep(SETTLED)
    environment = {**os.environ, "TVP_HOME": str(folder / "home")}
    places = [str(folder / name) for name in ("count", "existence", "copied", "lens")]
    seconds: dict[str, list[float]] = {}
    memory: list[list[float]] = []
    for _ in range(n):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *places], capture_output=True, text=True, check=True, env=environment
        )
        times, resident = json.loads(done.stdout)
        memory.append(resident)
        for name, value in times.items():
            seconds.setdefault(name, []).append(value)
    megabytes = sum(file.st_size for file in files) / 1e6
    print(f"{model if isinstance(model, str) else model.name}, a base of {megabytes:.0f} MB")
    rows = {}
    for name, values in seconds.items():
        rows[name] = {"median_s": statistics.median(values), "min_s": min(values), "max_s": max(values)}
        print(f"  {name:<22} median {rows[name]['median_s']:.3f} s  ({min(values):.3f} … {max(values):.3f})")
    before, both, after = (statistics.median(values) for values in zip(*memory, strict=True))
    print(f"  resident: {before:.0f} MiB before, {both:.0f} with both, {after:.0f} after closing them")
    return {"base_mb": megabytes, "rows": rows, "resident_mib": {"before": before, "both": both, "after": after}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=11)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    import onnxruntime

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        results["zoo:llava"] = measure("zoo:llava", Path(folder) / "zoo", arguments.n)
        if arguments.layers:
            model = make_wide(Path(folder) / "wide", arguments.layers)
            results["wide"] = measure(model, Path(folder) / "tasks", arguments.n)
    if arguments.output:
        about = {
            "command": "python -m benchmarks.second_task",
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
        }
        arguments.output.write_text(json.dumps({**about, "models": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
