"""This checkout's sdk beside another checkout's, for `--against` of speed.py.

Each side reads bundles of its own exporter, made of the same weights, unless bundles are given. paired.py says how
the two are measured in turns.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import load_average, machine
from benchmarks.paired import ENOUGH, FEWEST, ROOT, Checkout, Measured, Process, in_turns, summary
from benchmarks.side import N_NEW

SHORTEST = 0.3  # seconds of a measurement; a shorter request is repeated in it, and the median counts
# Each checkout writes a prompt of its own format.
PROMPT = (
    "from tvp.trainer.prompt import Geometry, Prompt; canvas, inner, file = sys.argv[1:]; "
    "Prompt.start(Geometry(int(canvas), int(inner)), 'free').save(file)"
)
CPU = "CPU"  # the processor time of all threads, to which waiting for other work on the machine does not add
ASK = f"ask, {N_NEW} tokens"  # fewer where the answer ends before


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a comparison."""
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="measure another checkout's sdk beside this")
    parser.add_argument("--pairs", type=int, default=ENOUGH, help=f"blocks of turns (default {ENOUGH})")
    parser.add_argument(
        "--against-bundle", type=Path, action="append", default=[], metavar="BUNDLE",
        help="the other checkout's bundle, one for each of this checkout's; default: the same",
    )  # fmt: skip


def check_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a message where `--against` cannot be done."""
    if arguments.against and not (arguments.against / "sdk" / "tvp" / "sdk").is_dir():
        parser.error(f"--against: {arguments.against} is no checkout of TVP: it has no sdk/tvp/sdk.")
    if arguments.pairs < FEWEST:
        parser.error(f"--pairs: an interval of 95 % needs at least {FEWEST} blocks.")


class Comparison:
    """Two checkouts, and how they are measured.

    Args:
        other: folder of the other checkout.
        n: number of blocks.
    """

    def __init__(self, other: Path, n: int) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        homes = Path(self._temporary.name)
        self.this, self.other = Checkout(ROOT, homes / "this"), Checkout(other.resolve(), homes / "other")
        for checkout in (self.this, self.other):
            checkout.home.mkdir()
        self.n = n
        self._machine = machine("onnxruntime", "numpy")

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *error: object) -> None:
        self._temporary.cleanup()

    def exported(self, model: str | Path, precision: str, sides: tuple[int, int], folder: Path) -> tuple[Path, Path]:
        """A model's bundle of either exporter, made where it is missing.

        Args:
            model: a folder, or zoo:NAME.
            precision: of the weights.
            sides: px of the canvas and of the picture inside the frame of the prompt, which is untrained.
            folder: where bundles are kept.
        """
        bundles = []
        for checkout in (self.this, self.other):
            place = folder / checkout.code() / str(model).rpartition("/")[2].replace(":", "-")
            bundle, prompt = place / precision, place / "prompt.safetensors"
            if not bundle.exists():
                checkout.python(PROMPT, *map(str, sides), prompt)
                what = ["-m", model, "-t", "scenes", "-p", prompt, "-o", bundle, "--precision", precision]
                checkout.tvp("export", *what, "--cases", "1", "--max-loss", "1", "--no-reuse")
            bundles.append(bundle)
        return bundles[0], bundles[1]

    def measured(self, bundles: tuple[Path, Path]) -> dict[str, dict[str, float]]:
        """Imports, loading, memory, asking, seeing and a token: in a new process each time.

        A process keeps its luck with memory for life: the same `see` differed by 7 % between two processes of one
        checkout. So no process is measured in two turns.
        """
        this, other = bundles
        return summary(in_turns(partial(turn, self.this, this), partial(turn, self.other, other), self.n))

    def same_answer(self, bundles: tuple[Path, Path]) -> dict[str, Any]:
        """The number of tokens that this checkout answers, and whether the other answers the same."""
        answers = []
        for checkout, bundle in zip((self.this, self.other), bundles, strict=True):
            with Process(checkout) as process:
                process("load", bundle=str(bundle))
                answers.append(process("ask")["tokens"])
        return {"tokens": len(answers[0]), "same answer": answers[0] == answers[1]}

    def report(self, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What is written: machine, both checkouts by commit and code, and the figures."""
        return {
            "command": shlex.join(["python", "-m", "benchmarks.speed", *_without_folders(sys.argv[1:])]),
            "machine": self._machine | {"load_average_after": load_average()},
            "this": {"commit": self.this.commit(), "code": self.this.code()},
            "other": {"commit": self.other.commit(), "code": self.other.code()},
            "unit": "seconds; memory in MiB over the interpreter's; ratio: this / other, with its 95 % interval",
            "blocks": self.n,
            "cases": cases,
        }


def _without_folders(words: Iterable[str]) -> list[str]:
    """The command's words; of paths the last part, which says enough elsewhere."""
    return [word.rstrip("/").rpartition("/")[2] for word in words]


def given(this: Sequence[Path], other: Sequence[Path]) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Bundles of this checkout with those of the other; the other reads the same where it has none of its own."""
    if other and len(other) != len(this):
        raise SystemExit(f"{len(this)} bundles of this checkout and {len(other)} of the other: give as many of both.")
    for bundle, theirs in zip(this, other or this, strict=True):
        yield "/".join(bundle.resolve().parts[-2:]), (bundle.resolve(), theirs.resolve())


def turn(checkout: Checkout, bundle: Path) -> Measured:
    """A new process: imports, loading, a question of two tokens, memory; then each request once it is warm."""
    with Process(checkout) as process:
        found: Measured = {name: process.imported[name] for name in ("import", "import for a load")}
        loaded = process("load", bundle=str(bundle))
        asked = process("ask", n_new=2)
        found |= {"load": loaded["seconds"], f"load, {CPU}": loaded["processor"]}
        found["first question, 2 tokens"] = asked["seconds"]
        found |= {"memory, loaded": loaded["memory"], "memory, after a question": asked["memory"]}
        found["memory, at most"] = asked["peak"]
        for name, request in ((ASK, "ask"), ("see", "see"), ("a token", "token")):
            times = process(request, repeats=repeats(process, request))
            found |= {name: times["seconds"], f"{name}, {CPU}": times.get("processor")}
    return found


def repeats(process: Process, request: str) -> int:
    """How often a request is done in one measurement, which then takes SHORTEST or longer; it is warm afterwards."""
    began = time.perf_counter()
    process(request)
    return max(2, math.ceil(SHORTEST / (time.perf_counter() - began)))


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a table of both sides' medians, the ratio and its interval."""
    print(f"\n{title:<32}{'this':>12}{'other':>12}{'this / other':>14}   95 % interval", flush=True)
    for name, row in rows.items():
        factor, unit = (1, "MiB") if name.startswith("memory") else (1e3, "ms")
        sides = "".join(f"{row[side] * factor:>12.2f}" for side in ("this", "other"))
        print(
            f"{f'  {name}, {unit}':<32}{sides}{row['ratio']:>14.3f}   {row['low']:.3f} to {row['high']:.3f}", flush=True
        )


def write(file: Path, report: dict[str, Any]) -> None:
    """Write the report, and say where it has too few blocks to be stated."""
    if report["blocks"] < ENOUGH:
        print(f"\nBlocks: {report['blocks']}. This is enough for a try; figures to be stated need {ENOUGH}.")
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nWrote {file}.")
