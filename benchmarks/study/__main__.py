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
from .measure import learn, score

HERE = Path(__file__).parent


def run(arguments: argparse.Namespace) -> None:
    """Learn and measure the cells that the file does not have yet."""
    folder: Path = arguments.output
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    overrides = json.loads(arguments.settings)
    models = {name: families.load(f"zoo:{name}") for name in ENCODER_OF}
    wanted = [cell for cell in all_cells.cells() if all(word in cell.name for word in arguments.only)]
    stop = time.monotonic() + 60 * arguments.minutes
    for cell in wanted[arguments.part :: arguments.parts]:
        if time.monotonic() > stop:
            break
        known = names(results)
        for camera in ("none", cell.camera):
            plain = f"{cell.content}.{'family' if camera == all_cells.FAMILY else camera.replace(':', '')}"
            with FileLock(folder / f".{plain}.lock"):
                if plain not in names(results):
                    scores = score(cell.content, arguments.split, camera, models, None)
                    add(results, {"name": plain, "content": cell.content, "camera": camera, "scores": scores})
        if cell.name in known:
            continue
        file = folder / "prompts" / f"{cell.name}.safetensors"
        facts = learn(cell, models, overrides, file)
        scores = score(cell.content, arguments.split, cell.camera, models, Prompt.load(file))
        add(results, {"name": cell.name, **vars(cell), **facts, "scores": scores})


def names(results: Path) -> set[str]:
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {json.loads(line)["name"] for line in lines}


def add(results: Path, row: dict[str, Any]) -> None:
    with open(results, "a", encoding="utf-8") as file:  # a line is one write: several processes share the file
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
