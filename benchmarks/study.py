"""The transfer study on the six zoo models.

    python -m benchmarks.study run -o FILE.jsonl --photos FOLDER
    python -m benchmarks.study report -o FILE.jsonl

Trains a prompt for every task, method, choice of source models and seed, and measures it on all six models: on the
sources, on targets that share a vision encoder with a source, and on targets with another vision encoder.

`run` writes a line to the file when a prompt is measured, and continues where it stopped. The default file, study.jsonl
beside this one, is complete. `--split validation` measures on pictures split from train, by which settings are chosen;
its lines go to a file of their own.

A method's settings on a task are those of `tvp train`: the shipped files of trainer/tvp/trainer/configs. Gains are in
points of accuracy over no prompt on the full picture, on the same questions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samples.zoo.models import CANVAS, ENCODER_OF
from tvp.trainer import families, tasks
from tvp.trainer.config import make_config
from tvp.trainer.data import Data, Parquet, Scenes, Subset
from tvp.trainer.data.through import ThroughCamera
from tvp.trainer.evaluate import accuracy
from tvp.trainer.prompt import Geometry
from tvp.trainer.task_definition import TaskDefinition
from tvp.trainer.train import train

HERE = Path(__file__).parent
PHOTOS = HERE.parents[1] / "shared/data/cifar10"
TASKS = ("bad-camera-cifar10", "bad-camera-count", "bad-camera-existence", "bad-camera-reasoning")
SEEDS = (1, 2, 3)
# An untrained frame, which is black: it shows how much the picture's smaller place alone costs, by method.
BLACK = {"black frame": "evp", "black frame, tvp's place": "tvp"}
ROLES = ("source", "same encoder", "other encoder")
RECORDED = ("placement", "inner", "pixel_range", "update", "lr", "batch", "steps", "fca", "tse")
N_TRAIN, N_VALIDATION, N_TEST = 2400, 16, 512  # pictures
N_QUESTIONS = {"bad-camera-existence": 2, "bad-camera-reasoning": 2}  # a picture; the other tasks have one question
METHODS: dict[str, dict[str, Any]] = {
    "vp": {"method": "vp"},
    "evp": {"method": "evp"},
    "tvp": {},
    "tvp without FCA": {"fca": 0.0},
    "tvp without TSE": {"tse": 0.0},
    "tvp, image range": {"pixel_range": "image"},
}
# One source model, of either of two vision encoders; and two sources of different vision encoders, so that the third
# encoder, with its three models, is unseen.
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
    """All cells, seed by seed: a study that is stopped early has measured each of the others at least once."""
    for seed in SEEDS:
        for sources, methods in SOURCES.items():
            for task in TASKS:
                for method in methods:
                    yield Cell(task, method, sources, seed)


def open_split(task: TaskDefinition, split: str, seed: int) -> Data:
    """The pictures of a split: `train` (of a seed), `validation` or `test`; no picture is in two splits."""
    n = {"train": N_TRAIN + N_VALIDATION, "validation": N_TEST, "test": N_TEST}[split]
    if task.published:
        photos = Parquet(PHOTOS, "test" if split == "test" else "train", task.question, task.caption, task.labels)
        # The last 2,000 photos of train are for validation. The classes come in turn, so any stretch has all.
        start = len(photos) - 2000 if split == "validation" else 0
        rows = np.random.default_rng(seed).permutation(len(photos) - 2000) if split == "train" else np.arange(n) + start
        assert task.camera is not None
        return ThroughCamera(
            Subset(photos, rows[:n].tolist()), task.camera, {"train": seed, "validation": 1000}.get(split, 2000)
        )
    number = {"train": 10_000 + seed, "validation": 20_000}.get(split, 30_000)
    return Scenes(n, number, n_questions=N_QUESTIONS.get(task.name, 1), camera=task.camera, topics=task.topics)


def measure(
    cell: Cell | None, task: TaskDefinition, split: str, models: dict[str, Any], overrides: dict[str, Any]
) -> dict[str, Any]:
    """Train the cell's prompt and measure it on every model; without a cell, measure no prompt and untrained frames."""
    data = open_split(task, split, 0)
    if cell is None:
        shown = {"none": Geometry(CANVAS, CANVAS, task.fit)}
        for name, method in BLACK.items():
            config = make_config({"models": ("none",), "task": task.name, "method": method})
            shown[name] = Geometry(CANVAS, config.inner, task.fit, config.placement)
        return {
            name: {model: accuracy(family, data, geometry, task=task).accuracy for model, family in models.items()}
            for name, geometry in shown.items()
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
    """Measure the cells that the file does not have yet."""
    output: Path = arguments.output
    done = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    known = {json.dumps(row["cell"]) for row in done}
    overrides = json.loads(arguments.settings)
    models = {name: families.load(f"zoo:{name}") for name in ENCODER_OF}
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
    """A row for each prompt and model: the gain in points, and the model's role: a source or which kind of target."""
    plain = {row["cell"]["task"]: row for row in rows if row["cell"]["method"] == "none"}
    found = []
    for row in rows:
        cell = row["cell"]
        nothing = {"task": cell["task"], "sources": [], "seed": 0}
        measured = (
            [({**nothing, "method": name}, row[name]) for name in BLACK if name in row]
            if cell["method"] == "none"
            else [(cell, row["accuracy"])]
        )
        encoders = {ENCODER_OF[name] for name in cell.get("sources", [])}
        for of, scores in measured:
            for model, score in scores.items():
                role = (
                    "source"
                    if model in of["sources"]
                    else "same encoder"
                    if ENCODER_OF[model] in encoders
                    else "other encoder"
                )
                gain = 100 * (score - plain[cell["task"]]["none"][model])
                found.append({**of, "sources": "+".join(of["sources"]), "model": model, "role": role, "gain": gain})
    return found


def mean(rows: list[dict[str, Any]], **wanted: Any) -> float:
    """Mean gain of the rows with these values: the mean over tasks of each task's mean, so that all count alike."""
    by_task: dict[str, list[float]] = {}
    for row in rows:
        if all(row[key] == value for key, value in wanted.items()):
            by_task.setdefault(row["task"], []).append(row["gain"])
    return float(np.mean([np.mean(values) for values in by_task.values()])) if by_task else float("nan")


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each choice of sources and method: mean gains by model and by role, and the worst (task, target)."""
    lines = []
    order = [*BLACK, *METHODS]
    found = {(row["sources"], row["method"]) for row in rows}
    for sources, method in sorted(found, key=lambda pair: (len(pair[0]), pair[0], order.index(pair[1]))):
        here = [row for row in rows if (row["sources"], row["method"]) == (sources, method)]
        targets = [row for row in here if row["role"] != "source"]
        pairs = dict.fromkeys((row["task"], row["model"]) for row in targets)
        worst = min((mean(targets, task=task, model=model), task, model) for task, model in pairs)
        line: dict[str, Any] = {"sources": sources, "method": method, "seeds": len({row["seed"] for row in here})}
        line |= {name: mean(here, model=name) for name in ENCODER_OF}
        line |= {role: mean(here, role=role) for role in ROLES}
        lines.append(line | {"worst": worst})
    return lines


def judge(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars that the study is held to, and how far it got."""
    of = {(line["sources"], line["method"]): line for line in lines}
    bars = []
    for sources, method in of:
        if method != "tvp":
            continue
        line, one = of[sources, "tvp"], "+" not in sources
        bars.append((sources, "other encoder, at least", 0.0 if one else 1.0, line["other encoder"]))
        bars.append((sources, "worst (task, target), at least", -1.0, line["worst"][0]))
        if one:
            bars.append((sources, "same encoder, at least", 4.0, line["same encoder"]))
        if image := of.get((sources, "tvp, image range")):
            free, kept = (np.mean([found[name] for name in ENCODER_OF]) for found in (line, image))
            bars.append((sources, "image range, share of the free range's mean gain, at least", 0.9, kept / free))
    return [
        {"trained on": sources, "bar": bar, "asked": asked, "reached": round(float(reached), 2)}
        | {"met": bool(reached >= asked)}
        for sources, bar, asked, reached in bars
    ]


def report(arguments: argparse.Namespace) -> None:
    """Print a table in Markdown and the bars; write a JSON file and a picture beside the file of lines."""
    rows = gains([json.loads(line) for line in arguments.output.read_text().splitlines()])
    lines = summarise(rows)
    print(f"| trained on | method | {' | '.join(ENCODER_OF)} | same encoder | other encoder | worst task and target |")
    print("| --- " * (len(ENCODER_OF) + 5) + "|")
    for line in lines:
        source = line["sources"].split("+")
        shown = [f"*{line[name]:+.1f}*" if name in source else f"{line[name]:+.1f}" for name in ENCODER_OF]
        shown += ["" if np.isnan(line[role]) else f"{line[role]:+.1f}" for role in ("same encoder", "other encoder")]
        worst, task, model = line["worst"]
        shown.append(f"{worst:+.1f} {task.removeprefix('bad-camera-')}, {model}")
        print(f"| {' and '.join(source) or 'nothing'} | {line['method']} | {' | '.join(shown)} |")
    bars = judge(lines)
    for bar in bars:
        print(
            f"{'met   ' if bar['met'] else 'MISSED'} {bar['trained on']}: {bar['bar']} {bar['asked']}: {bar['reached']}"
        )
    written = {
        "command": "python -m benchmarks.study run; python -m benchmarks.study report",
        "unit": "points of accuracy over no prompt on the full picture",
        "prompts": arguments.output.name,
        "bars": bars,
        "table": [{key: None if value != value else value for key, value in line.items()} for line in lines],  # no NaN
    }
    arguments.output.with_suffix(".json").write_text(json.dumps(written, indent=1) + "\n")
    draw([row for row in rows if row["sources"]], arguments.output.with_suffix(".png"))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the mean gain by method, a panel for each choice of sources."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(row["sources"] for row in rows))
    figure = Figure(figsize=(4.2 * len(sources), 3.6), layout="constrained")
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    for axes, source in zip(panels, sources, strict=True):
        methods = [name for name in METHODS if any((r["sources"], r["method"]) == (source, name) for r in rows)]
        for i, role in enumerate(ROLES):
            heights = [mean(rows, sources=source, method=method, role=role) for method in methods]
            axes.bar(np.arange(len(methods)) + 0.27 * (i - 1), heights, 0.25, label=role)
        axes.set_xticks(range(len(methods)), methods, rotation=40, ha="right")
        axes.set_title(f"trained on {source.replace('+', ' and ')}")
        axes.axhline(0, color="black", linewidth=0.8)
    panels[0].set_ylabel("gain, points of accuracy")
    panels[-1].legend(loc="lower right")  # where there is room
    figure.savefig(path, dpi=110)


def main() -> None:
    global PHOTOS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("-o", "--output", type=Path, help="default: study.jsonl, or study-validation.jsonl")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="CIFAR-10 as parquet: train and test")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--settings", default="{}", help="JSON of settings to try in place of a method's")
    parser.add_argument("--only", action="append", help="measure cells whose line contains this text; repeatable")
    parser.add_argument("--part", type=int, default=0, help="the part of the cells that this process measures")
    parser.add_argument("--parts", type=int, default=1, help="how many processes share the cells")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    kind = "" if arguments.split == "test" else f"-{arguments.split}"
    arguments.output = arguments.output or HERE / f"study{kind}.jsonl"
    PHOTOS = arguments.photos
    torch.set_num_threads(arguments.threads)
    (run if arguments.what == "run" else report)(arguments)


if __name__ == "__main__":
    main()
