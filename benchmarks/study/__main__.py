"""`python -m benchmarks.study run | report`; see the package."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from samples.zoo.models import ENCODER_OF
from tvp.trainer import families
from tvp.trainer.prompt import Prompt

from . import cells as all_cells
from .measure import WITHOUT_LEARNING, learn, score

HERE = Path(__file__).parent
RESULTS = "results.jsonl"


def run(arguments: argparse.Namespace) -> None:
    """Learn and measure the cells that the file does not have yet."""
    folder: Path = arguments.output
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    overrides = json.loads(arguments.settings)
    models = {name: families.load(f"zoo:{name}") for name in ENCODER_OF}
    wanted = [cell for cell in all_cells.cells() if all(word in cell.name for word in arguments.only)]
    stop = time.monotonic() + 60 * arguments.minutes
    for cell in wanted[arguments.part :: arguments.parts]:
        if time.monotonic() > stop:
            break
        for camera in ("none", cell.camera):
            name = "family" if camera == all_cells.FAMILY else camera.replace(":", "")
            measure_once(
                folder, f"{cell.content}.{name}", {"content": cell.content, "camera": camera}, models, arguments
            )
        for by_hand, change in WITHOUT_LEARNING.items() if cell.camera == all_cells.BAD else ():
            facts = {"content": cell.content, "camera": cell.camera, "by_hand": by_hand}
            name = f"{cell.content}.{cell.camera}.{by_hand.replace(' ', '-')}"
            measure_once(folder, name, facts, models, arguments, change)
        if cell.name in names(folder):
            continue
        file = folder / "prompts" / f"{cell.name}.safetensors"
        facts = learn(cell, models, overrides, file)
        scores = score(cell.content, arguments.split, cell.camera, models, Prompt.load(file))
        add(folder, {"name": cell.name, **vars(cell), **facts, "scores": scores})


def measure_once(
    folder: Path,
    name: str,
    facts: dict[str, Any],
    models: dict[str, families.Family],
    arguments: argparse.Namespace,
    change: Any = None,
) -> None:
    """Measure without a prompt what no process has measured yet."""
    with FileLock(folder / f".{name}.lock"):
        if name not in names(folder):
            scores = score(facts["content"], arguments.split, facts["camera"], models, change=change)
            add(folder, {"name": name, **facts, "scores": scores})


def names(folder: Path) -> set[str]:
    """Return what is measured already."""
    results = folder / RESULTS
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {json.loads(line)["name"] for line in lines}


def add(folder: Path, row: dict[str, Any]) -> None:
    """Write a row to the results, and print its accuracies."""
    with open(folder / RESULTS, "a", encoding="utf-8") as file:  # a line is one write: several processes share the file
        file.write(json.dumps(row) + "\n")
    shown = "  ".join(f"{name} {100 * found['accuracy']:.1f}" for name, found in row["scores"].items())
    print(f"{row['name']}: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder of results.jsonl and prompts/")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--settings", default="{}", help="JSON of settings to try in place of a method's")
    parser.add_argument("--only", action="append", default=[], help="cells whose name contains this; repeatable")
    parser.add_argument("--part", type=int, default=0, help="the part of the cells that this process measures")
    parser.add_argument("--parts", type=int, default=1, help="how many processes share the cells")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no cell after this time")
    arguments = parser.parse_args()
    if arguments.what == "report":
        from .report import report

        report(arguments.output)
    else:
        run(arguments)


if __name__ == "__main__":
    main()
