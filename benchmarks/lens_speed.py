"""What a lens adds to preprocess.onnx: `python -m benchmarks.lens_speed`.

Each lens has random values. Its graph and the graph without it are opened as the sdk opens them, on one thread, and run
in turns (a, b, b, a) on one picture; the difference of each turn is what the lens adds. Beside it stands a plain
torch.onnx export of the same lens, as a graph of its own. Prints medians and spread of processor time, which other
programs disturb less than the clock's, and the ratio to the plain export; writes JSON where --output says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks.machine import load_average, machine
from tvp.export.preprocess import preprocess_graph
from tvp.sdk._runtime.providers import ON_CPU
from tvp.sdk._runtime.sessions import open_session
from tvp.trainer.families.pixels import PixelFormat
from tvp.trainer.lens import Lens, LensDesign
from tvp.trainer.prompt import Geometry, Prompt

DESIGNS = {
    "colour": LensDesign("colour"),
    "kernel": LensDesign("kernel"),
    "kernel, normalise": LensDesign("kernel", normalise=True),
    "conv": LensDesign("conv"),
    "conv, normalise": LensDesign("conv", normalise=True),
    "conv, depth 2": LensDesign("conv", depth=2),
}
FORMAT = PixelFormat(224, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


class Plain(torch.nn.Module):
    """The lens as a module that torch traces."""

    def __init__(self, lens: Lens) -> None:
        super().__init__()
        self.lens = lens

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.lens(pictures)


def random_lens(design: LensDesign) -> Lens:
    """Values off the identity, so that nothing is left out: no zeros, no exponent of one."""
    generator = torch.Generator().manual_seed(0)
    start = design.start()
    return Lens(design, {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in start.items()})


def in_turns(a: Any, b: Any, n: int) -> tuple[list[float], list[float]]:
    """Milliseconds of processor time of two calls, n pairs of each in the order a, b, b, a."""
    spent: tuple[list[float], list[float]] = [], []
    for call in (a, b) * 3:  # warm
        call()
    for i in range(2 * n):
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            began = time.process_time()
            (a, b)[side]()
            spent[side].append(1e3 * (time.process_time() - began))
    return spent


def measure(design: LensDesign, side: int, folder: Path, n: int) -> dict[str, float]:
    """Milliseconds that a lens adds, and those of its plain export."""
    lens, geometry = random_lens(design), Geometry(side, side)
    files = {name: folder / f"{name}.onnx" for name in ("with", "without", "plain")}
    pixel_format = PixelFormat(side, FORMAT.mean, FORMAT.std)
    onnx.save(preprocess_graph(geometry, pixel_format, Prompt(None, geometry, lens=lens)), files["with"])
    onnx.save(preprocess_graph(geometry, pixel_format, None), files["without"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.rand(1, 3, side, side),)
        torch.onnx.export(Plain(lens), example, str(files["plain"]), opset_version=18, dynamo=False, input_names=["x"])
    sessions = {name: open_session(file, ON_CPU, threads=1) for name, file in files.items()}
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    real = (picture.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    behind, before = in_turns(
        lambda: sessions["with"].run(None, {"image": picture}),
        lambda: sessions["without"].run(None, {"image": picture}),
        n,
    )
    plain, again = in_turns(
        lambda: sessions["plain"].run(None, {"x": real}), lambda: sessions["with"].run(None, {"image": picture}), n
    )
    adds = [a - b for a, b in zip(behind, before, strict=True)]
    quartiles = statistics.quantiles(adds, n=4)
    added = statistics.median(adds)
    # Both figures of the ratio are from the second run, whose pairs stood in turns.
    ratio = (statistics.median(again) - statistics.median(before)) / statistics.median(plain)
    return {
        "added_ms": added,
        "added_ms_low": quartiles[0],
        "added_ms_high": quartiles[2],
        "added_ms_least": min(behind) - min(before),
        "plain_ms": statistics.median(plain),
        "plain_ms_least": min(plain),
        "ratio": ratio,
        "ratio_least": (min(behind) - min(before)) / min(plain),
        "kib": files["with"].stat().st_size / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=60, help="pairs of turns")
    parser.add_argument("--side", type=int, default=224, help="of the picture, px")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    about = machine("onnxruntime", "torch", "onnx")
    rows = {}
    print(f"{'lens':<20}{'adds, ms':>22}{'least':>8}{'plain export':>14}{'least':>8}{'ratio':>8}{'least':>8}{'KiB':>6}")
    for name, design in DESIGNS.items():
        with tempfile.TemporaryDirectory() as folder:
            row = rows[name] = measure(design, arguments.side, Path(folder), arguments.n)
        spread = f"{row['added_ms']:.2f} ({row['added_ms_low']:.2f} … {row['added_ms_high']:.2f})"
        print(
            f"{name:<20}{spread:>22}{row['added_ms_least']:>8.2f}{row['plain_ms']:>14.2f}{row['plain_ms_least']:>8.2f}"
            f"{row['ratio']:>8.2f}{row['ratio_least']:>8.2f}{row['kib']:>6.0f}"
        )
    if arguments.output:
        facts = {"command": "python -m benchmarks.lens_speed", "side": arguments.side, **about}
        facts["load_average_after"] = load_average()
        arguments.output.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
