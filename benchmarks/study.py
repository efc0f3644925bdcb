"""The transfer study on the six zoo models: `python benchmarks/study.py run`, then `python benchmarks/study.py report`.

Trains a prompt for every task, method, choice of source models and seed, and measures it on all six models: on
the sources, on targets that share an eye with a source, and on targets with another eye. `run` continues where
it stopped: each cell is a line of benchmarks/study.jsonl, written when it is done. `--split validation` measures on
pictures split from train, which is what settings are chosen by; its lines go to a file of their own.

What a method takes on a task is what `tvp train` takes: the shipped files of trainer/tvp/trainer/configs. Gains are in
points of accuracy over no prompt on the full picture, on the same questions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "samples" / "zoo"))
from models import CANVAS, EYE_OF
from tvp.trainer import families, tasks
from tvp.trainer.config import make_config
from tvp.trainer.data import Data, Parquet, Scenes, Subset
from tvp.trainer.data.through import Through
from tvp.trainer.evaluate import accuracy
from tvp.trainer.prompt import Geometry
from tvp.trainer.tasks import Task
from tvp.trainer.train import train

HERE = Path(__file__).parent
PHOTOS = HERE.parents[1] / "shared/data/cifar10"
TASKS = ("bad-camera-cifar10", "bad-camera-count", "bad-camera-existence", "bad-camera-reasoning")
SEEDS = (1, 2, 3)
RECORDED = ("layout", "inner", "pixel_range", "update", "lr", "batch", "steps", "fca", "tse")
N_TRAIN, N_VALIDATION, N_TEST = 2400, 16, 512  # pictures
N_QUESTIONS = {"bad-camera-existence": 2, "bad-camera-reasoning": 2}  # a picture; there is one to ask of the others
METHODS: dict[str, dict[str, Any]] = {
    "vp": {"method": "vp"},
    "evp": {"method": "evp"},
    "tvp": {},
    "tvp without FCA": {"fca": 0.0},
    "tvp without TSE": {"tse": 0.0},
    "tvp, image range": {"pixel_range": "image"},
}
# A source model of each of two eyes; and two sources of different eyes, which leave an eye with three models unseen.
SOURCES = {
    ("blip2",): tuple(METHODS),
    ("smolvlm",): tuple(METHODS),
    ("smolvlm", "qwen2vl"): ("evp", "tvp", "tvp, image range"),
}


@dataclass(frozen=True)
class Cell:
    """One prompt of the study."""

    task: str
    method: str
    sources: tuple[str, ...]
    seed: int


def cells() -> Iterator[Cell]:
    """One seed of everything first, so that a study that is cut off says something of all."""
    for seed in SEEDS:
        for sources, methods in SOURCES.items():
            for task in TASKS:
                for method in methods:
                    yield Cell(task, method, sources, seed)


def open_split(task: Task, split: str, seed: int) -> Data:
    """The pictures of a split: `train` (of a seed), `validation` or `test`; none is in two of them."""
    n = {"train": N_TRAIN + N_VALIDATION, "validation": N_TEST, "test": N_TEST}[split]
    if task.published:
        photos = Parquet(PHOTOS, "test" if split == "test" else "train", task.question, task.caption, task.labels)
        # The rows are in class order; the last 2,000 of train are for validation.
        start = len(photos) - 2000 if split == "validation" else 0
        rows = np.random.default_rng(seed).permutation(len(photos) - 2000) if split == "train" else np.arange(n) + start
        assert task.camera is not None
        return Through(
            Subset(photos, rows[:n].tolist()), task.camera, {"train": seed, "validation": 1000}.get(split, 2000)
        )
    number = {"train": 10_000 + seed, "validation": 20_000}.get(split, 30_000)
    return Scenes(n, number, n_questions=N_QUESTIONS.get(task.name, 1), camera=task.camera, topics=task.topics)


def measure(
    cell: Cell | None, task: Task, split: str, models: dict[str, Any], overrides: dict[str, Any]
) -> dict[str, Any]:
    """Train the cell's prompt and measure it on every model; without a cell, measure without a prompt."""
    data = open_split(task, split, 0)
    if cell is None:
        inner = make_config({"models": ("none",), "task": task.name, "method": "evp"}).inner
        full, framed = Geometry(CANVAS, CANVAS, task.fit), Geometry(CANVAS, inner, task.fit)
        return {
            shown: {name: accuracy(model, data, geometry, task=task).accuracy for name, model in models.items()}
            for shown, geometry in (("none", full), ("black frame", framed))
        }
    config = make_config(
        {
            "models": tuple(f"zoo:{name}" for name in cell.sources),
            "task": cell.task,
            "seed": cell.seed,
            "n_validation": N_VALIDATION,
            "questions": N_QUESTIONS.get(task.name, 1),
            **METHODS[cell.method],
            **overrides,
        }
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        prompt = train(
            config,
            folder,
            [models[name] for name in cell.sources],
            open_split(task, "train", cell.seed),
            quiet=True,
        ).prompt
    seconds = time.perf_counter() - began
    scores = {name: accuracy(model, data, prompt.geometry, prompt, task).accuracy for name, model in models.items()}
    settings = {key: getattr(config, key) for key in RECORDED} | {"n_test": len(data)}
    return {"accuracy": scores, "seconds": round(seconds, 1), "settings": settings}


def run(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    done = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    known = {json.dumps(row["cell"]) for row in done}
    overrides = json.loads(arguments.settings)
    models = {name: families.load(f"zoo:{name}") for name in EYE_OF}
    wanted = [
        cell for cell in cells() if not arguments.only or all(w in json.dumps(asdict(cell)) for w in arguments.only)
    ]
    queue: list[tuple[dict[str, Any], Cell | None]] = [
        ({"task": task, "method": "none"}, None) for task in dict.fromkeys(cell.task for cell in wanted)
    ]
    queue += [(asdict(cell) | {"sources": list(cell.sources)}, cell) for cell in wanted]
    for key, cell in queue[arguments.part :: arguments.parts]:
        if json.dumps(key) in known:
            continue
        row = {"cell": key, **measure(cell, tasks.get(key["task"]), arguments.split, models, overrides)}
        with open(output, "a", encoding="utf-8") as file:  # a line is one write: several processes share the file
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell and model: its gain in points, and what the model is to the sources."""
    plain = {row["cell"]["task"]: row for row in rows if row["cell"]["method"] == "none"}
    found = []
    for row in rows:
        cell = row["cell"]
        if cell["method"] == "none":
            for model in EYE_OF:
                lost = 100 * (row["black frame"][model] - row["none"][model])
                found.append({"task": cell["task"], "method": "black frame", "sources": "", "seed": 0})
                found[-1] |= {"model": model, "role": "none", "gain": lost}
            continue
        eyes = {EYE_OF[name] for name in cell["sources"]}
        for model, score in row["accuracy"].items():
            role = "source" if model in cell["sources"] else "same eye" if EYE_OF[model] in eyes else "other eye"
            gain = 100 * (score - plain[cell["task"]]["none"][model])
            found.append({**cell, "sources": "+".join(cell["sources"]), "model": model, "role": role, "gain": gain})
    return found


def mean(rows: list[dict[str, Any]], **wanted: Any) -> float:
    values = [row["gain"] for row in rows if all(row[key] == value for key, value in wanted.items())]
    return float(np.mean(values)) if values else float("nan")


def report(arguments: argparse.Namespace) -> None:
    """Print the tables, and write study.json and study.png beside the lines."""
    rows = gains([json.loads(line) for line in arguments.output.read_text().splitlines()])
    trained = [row for row in rows if row["sources"]]
    table = []
    for sources in dict.fromkeys(row["sources"] for row in trained):
        for method in dict.fromkeys(row["method"] for row in trained):
            cells = {
                role: mean(trained, sources=sources, method=method, role=role)
                for role in ("source", "same eye", "other eye")
            }
            here = [
                row
                for row in trained
                if (row["sources"], row["method"]) == (sources, method) and row["role"] != "source"
            ]
            by_target = {(row["task"], row["model"]) for row in here}
            worst = (
                min((mean(here, task=task, model=model), task, model) for task, model in by_target) if here else None
            )
            table.append(
                {"sources": sources, "method": method, **cells, "worst": worst, "seeds": len({r["seed"] for r in here})}
            )
    print(f"{'sources':<18}{'method':<18}{'source':>8}{'same eye':>10}{'other eye':>11}  worst (task, target)")
    for line in table:
        worst = "" if line["worst"] is None else f"{line['worst'][0]:+.1f} {line['worst'][1]} {line['worst'][2]}"
        figures = f"{line['source']:>+8.1f}{line['same eye']:>+10.1f}{line['other eye']:>+11.1f}"
        print(f"{line['sources']:<18}{line['method']:<18}{figures}  {worst}")
    for task in TASKS:
        print(f"black frame, {task}: {mean(rows, method='black frame', task=task):+.1f} on average over the models")
    written = {
        "command": "python benchmarks/study.py run; python benchmarks/study.py report",
        "table": table,
        "gains": rows,
    }
    arguments.output.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")
    draw(trained, arguments.output.with_suffix(".png"))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the mean gain by method, a panel for each choice of sources."""
    from matplotlib.figure import Figure

    sources, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("sources", "method"))
    figure = Figure(figsize=(4.2 * len(sources), 3.6), layout="constrained")
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    for axes, source in zip(panels, sources, strict=True):
        for i, role in enumerate(("source", "same eye", "other eye")):
            heights = [mean(rows, sources=source, method=method, role=role) for method in methods]
            axes.bar(np.arange(len(methods)) + 0.27 * (i - 1), heights, 0.25, label=role)
        axes.set_xticks(range(len(methods)), methods, rotation=40, ha="right")
        axes.set_title(f"trained on {source}")
        axes.axhline(0, color="black", linewidth=0.8)
    panels[0].set_ylabel("gain, points of accuracy")
    panels[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("-o", "--output", type=Path, help="default: study.jsonl, or study-validation.jsonl")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--settings", default="{}", help="JSON of settings to try, over those of this file")
    parser.add_argument("--only", action="append", help="cells whose description holds this text; repeatable")
    parser.add_argument("--part", type=int, default=0, help="which part of the cells this process does")
    parser.add_argument("--parts", type=int, default=1, help="how many processes share the cells")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    kind = "" if arguments.split == "test" else f"-{arguments.split}"
    arguments.output = arguments.output or HERE / f"study{kind}.jsonl"
    torch.set_num_threads(arguments.threads)
    (run if arguments.what == "run" else report)(arguments)


if __name__ == "__main__":
    main()
