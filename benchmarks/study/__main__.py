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
from tvp.trainer.matrix import eight_bit
from tvp.trainer.prompt import Prompt

from .cells import BAD, IN_EIGHT_BITS, cells, in_name
from .measure import WITHOUT_LEARNING, learn, score

HERE = Path(__file__).parent
RESULTS = "results.jsonl"


def run(arguments: argparse.Namespace) -> None:
    """Learn and measure the cells that the file does not have yet."""
    folder: Path = arguments.output
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    overrides = json.loads(arguments.settings)
    models = {name: families.load(f"zoo:{name}") for name in ENCODER_OF}
    wanted = [cell for cell in cells() if all(word in cell.name for word in arguments.only)]
    stop = time.monotonic() + 60 * arguments.minutes
    for cell in wanted[arguments.part :: arguments.parts]:
        if time.monotonic() > stop:
            break
        for camera in ("none", cell.camera):
            facts = {"content": cell.content, "camera": camera}
            measure_once(folder, f"{cell.content}.{in_name(camera)}", facts, models, arguments.split)
        for by_hand, change in WITHOUT_LEARNING.items() if cell.camera == BAD else ():
            facts = {"content": cell.content, "camera": cell.camera, "by_hand": by_hand}
            name = f"{cell.content}.{cell.camera}.{by_hand.replace(' ', '-')}"
            measure_once(folder, name, facts, models, arguments.split, change=change)
        file = folder / "prompts" / f"{cell.name}.safetensors"
        if cell.name not in names(folder):
            facts = vars(cell) | learn(cell, models, overrides, file)
            measure_once(folder, cell.name, facts, models, arguments.split, Prompt.load(file))
        if cell in IN_EIGHT_BITS:
            prompt, facts = eight_bit(Prompt.load(file)), vars(cell) | {"change": "8 bits"}
            measure_once(folder, f"{cell.name}.8-bits", facts, models, arguments.split, prompt)


def measure_once(
    folder: Path,
    name: str,
    facts: dict[str, Any],
    models: dict[str, families.Family],
    split: str,
    prompt: Prompt | None = None,
    change: Any = None,
) -> None:
    """Measure what no process has measured yet, and write it to the results.

    Args:
        folder: of the results.
        name: of the row.
        facts: what the row holds besides its scores; its content and camera are measured.
        models: by name.
        split: `test` or `validation`.
        prompt: Default: none.
        change: what is done to every picture before. Default: nothing.
    """
    with FileLock(folder / f".{name}.lock"):
        if name not in names(folder):
            scores = score(facts["content"], split, facts["camera"], models, prompt, change)
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
