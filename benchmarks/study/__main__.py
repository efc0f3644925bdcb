"""`python -m benchmarks.study run | report`; see the package."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from samples.zoo.models import ENCODER_OF
from tvp.trainer import families
from tvp.trainer.prompt import Prompt, eight_bit

from .cells import BAD, EXPORTED, cells, elsewhere, in_name
from .data import task_of
from .measure import BLACK, FULL, WITHOUT_LEARNING, Scores, black, learn, score, score_bundle, score_calibrated

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
    score_with = partial(score, split=arguments.split, models=models)
    for cell in wanted[arguments.part :: arguments.parts]:
        if time.monotonic() > stop:
            break
        for camera in ("none", cell.camera):
            measure_once(folder, {"content": cell.content, "camera": camera}, score_with)
        if cell.camera == BAD:
            measure_without_learning(folder, cell.content, score_with)
        file = folder / "prompts" / f"{cell.name}.safetensors"
        if cell.name not in names(folder):
            facts = vars(cell) | learn(cell, models, overrides, file)
            measure_once(folder, facts, partial(score_with, prompt=Prompt.load(file)), cell.name)
        prompt = Prompt.load(file)
        if cell in EXPORTED:
            facts = vars(cell) | {"change": "8 bits"}
            measure_once(folder, facts, partial(score_with, prompt=eight_bit(prompt)), f"{cell.name}.8-bits")
            facts = vars(cell) | {"change": "ONNX"}
            in_bundles = partial(score_bundle, split=arguments.split, models=models, prompt=prompt)
            measure_once(folder, facts, in_bundles, f"{cell.name}.onnx")
        for content, camera, change in elsewhere(cell):
            measure_once(folder, {"content": content, "camera": camera}, score_with)
            facts = vars(cell) | {"content": content, "camera": camera, "change": change}
            placed = prompt if content == cell.content else replace(prompt, geometry=FULL)  # a lens acts at any size
            name = f"{cell.name}.on.{content}.{in_name(camera)}".replace(" ", "-")
            measure_once(folder, facts, partial(score_with, prompt=placed), name)


def measure_without_learning(folder: Path, content: str, score_with: Callable[..., Scores]) -> None:
    """Measure what needs no training, through the bad camera."""
    place = {"content": content, "camera": BAD}
    for by_hand, change in WITHOUT_LEARNING.items():
        measure_once(folder, place | {"by_hand": by_hand}, partial(score_with, change=change))
    for by_hand, method in BLACK.items():
        measure_once(folder, place | {"by_hand": by_hand}, partial(score_with, prompt=black(content, method)))
    if task_of(content, BAD).free:
        return  # a calibration chooses among labels
    calibrated = partial(score_calibrated, **score_with.keywords)  # type: ignore[attr-defined]
    measure_once(folder, place | {"by_hand": "calibration"}, calibrated)


def measure_once(folder: Path, facts: dict[str, Any], score_with: Callable[..., Scores], name: str = "") -> None:
    """Measure what no process has measured yet, and write it to the results.

    Args:
        folder: of the results.
        facts: what the row holds besides its scores; its content and camera are measured.
        score_with: measures a content through a camera.
        name: of the row. Default: from its content, camera and method by hand.
    """
    parts = (facts["content"], in_name(facts["camera"]), facts.get("by_hand", ""))
    name = name or ".".join(part.replace(" ", "-") for part in parts if part)
    with FileLock(folder / f".{name}.lock"):
        if name not in names(folder):
            scores = score_with(content=facts["content"], camera=facts["camera"])
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
