"""The tables of the study, the bars that it is held to, and how far it got."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samples.zoo.models import ENCODER_OF

from .cells import BAD, CAMERAS, CONTENTS, FAMILY, METHODS, SEVERAL, in_name

LEAST_LOST = 0.08  # a model is counted where the camera takes this much accuracy or more
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """The measured rows, by name."""

    rows: dict[str, Row]

    @staticmethod
    def read(folder: Path) -> Study:
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        return Study({row["name"]: row for row in map(json.loads, lines)})

    def plain(self, content: str, camera: str) -> dict[str, float]:
        """Accuracy of each model without a prompt; `none` is clean."""
        return _accuracies(self.rows[f"{content}.{in_name(camera)}"])

    def recovery(self, row: Row) -> dict[str, float]:
        """The share of what the camera took that a prompt gives back, in percent, for each model that lost enough."""
        clean, bad = self.plain(row["content"], "none"), self.plain(row["content"], row["camera"])
        return {
            name: 100 * (found - bad[name]) / (clean[name] - bad[name])
            for name, found in _accuracies(row).items()
            if clean[name] - bad[name] >= LEAST_LOST
        }

    def select(self, **wanted: Any) -> list[Row]:
        """The cells with these fields, of all seeds; a field that is not given is ''."""
        wanted = {"change": "", **wanted}
        return [row for row in self.rows.values() if all(row.get(key) == value for key, value in wanted.items())]

    def mean(self, **wanted: Any) -> dict[str, float]:
        """The recovery of each model, averaged over seeds; empty where nothing is measured yet."""
        found = [self.recovery(row) for row in self.select(**wanted)]
        return {name: float(np.mean([one[name] for one in found])) for name in (found[0] if found else {})}


def _accuracies(row: Row) -> dict[str, float]:
    return {name: found["accuracy"] for name, found in row["scores"].items()}


def others(recovery: dict[str, float], sources: Iterable[str]) -> list[float]:
    """The recoveries of the models that the prompt was not learned on."""
    return [value for name, value in recovery.items() if name not in sources]


def unseen(recovery: dict[str, float], sources: Iterable[str]) -> list[float]:
    """The recoveries of the models with vision encoders that took no part."""
    part = {ENCODER_OF[name] for name in sources}
    return [value for name, value in recovery.items() if ENCODER_OF[name] not in part]


FIGURES: dict[str, Callable[[dict[str, float], tuple[str, ...]], float]] = {
    "source": lambda recovery, sources: float(np.mean([recovery[name] for name in sources])),
    "worst other": lambda recovery, sources: min(others(recovery, sources)),
    "others": lambda recovery, sources: float(np.mean(others(recovery, sources))),
    "unseen encoders": lambda recovery, sources: float(np.mean(unseen(recovery, sources))),
    "all": lambda recovery, sources: float(np.mean(list(recovery.values()))),
}
# content, camera, method, sources, change -> the least that each figure must reach, in percent.
BARS: dict[tuple[str, str, str, tuple[str, ...], str], dict[str, float]] = {
    ("scenes", BAD, "pairs", ("blip2",), ""): {"source": 95, "worst other": 88, "others": 93},
    ("scenes", BAD, "pairs", ("smolvlm",), ""): {"others": 85},
    ("scenes", BAD, "pairs", ("qwen2vl",), ""): {"others": 85},
    **{("scenes", BAD, "pairs", sources, ""): {"unseen encoders": 93} for sources in SEVERAL},
    ("photos", BAD, "pairs", ("blip2",), ""): {"source": 88, "others": 85},
    ("scenes", BAD, "unpaired", ("blip2",), ""): {"source": 88, "others": 75},
    ("photos", BAD, "unpaired", ("blip2",), ""): {"source": 75},
    ("photos", BAD, "unpaired", ("blip2",), "classes 80 to 20"): {"others": 60},
    ("photos", BAD, "unpaired", ("blip2",), "disjoint classes"): {"others": 50},
    **{
        ("scenes", camera, "pairs", sources, ""): {"others": 60 if camera == FAMILY else 80}
        for camera in CAMERAS
        if camera != "jpeg:5"  # it is reported
        for sources in (("blip2",), ("smolvlm", "qwen2vl"))
    },
    ("scenes", BAD, "pairs", ("blip2",), "camera a third stronger"): {"others": 60},
    ("scenes", BAD, "pairs", ("blip2",), "camera a third weaker"): {"others": 60},
}
MOST_ROUNDING = 0.5  # points of accuracy that a prompt in 8 bits may be off on any model
SHARE_OF_FEW = 90  # percent of the recovery with all pictures that 64 pictures must give, mean over models


def bars(study: Study) -> list[dict[str, Any]]:
    """Every bar for which there are figures."""
    judged: list[dict[str, Any]] = []

    def add(what: str, asked: float, reached: float) -> None:
        judged.append({"bar": what, "asked": asked, "reached": round(reached, 1), "met": reached >= asked})

    for (content, camera, method, sources, change), asked_of in BARS.items():
        recovery = study.mean(content=content, camera=camera, method=method, sources=list(sources), change=change)
        if recovery:
            what = ", ".join(part for part in (content, in_name(camera), method, " and ".join(sources), change) if part)
            for figure, asked in asked_of.items():
                add(f"{what}: {figure}", asked, FIGURES[figure](recovery, sources))
    for content in CONTENTS:
        cell = {"content": content, "camera": BAD, "method": "pairs", "sources": ["blip2"]}
        few, all_of_them = study.mean(**cell, change="64 pictures"), study.mean(**cell)
        if few and all_of_them:
            share = 100 * float(np.mean(list(few.values())) / np.mean(list(all_of_them.values())))
            add(f"{content}, 64 pictures: share of the recovery with all pictures", SHARE_OF_FEW, share)
        for row in study.select(**cell, seed=1, change="8 bits"):
            whole = _accuracies(study.select(**cell, seed=1)[0])
            off = max(100 * abs(found - whole[name]) for name, found in _accuracies(row).items())
            bar = f"{content}, in 8 bits: largest difference of accuracy, points, at most"
            judged.append({"bar": bar, "asked": MOST_ROUNDING, "reached": round(off, 2), "met": off <= MOST_ROUNDING})
    return judged


def table(study: Study, content: str, camera: str) -> list[str]:
    """A Markdown table: the recovery of every model, by method and sources; sources are in italics."""
    clean, bad = study.plain(content, "none"), study.plain(content, camera)
    lines = [f"| learned from | on | {' | '.join(ENCODER_OF)} |", "| --- " * (len(ENCODER_OF) + 2) + "|"]
    for what, plain in (("clean, %", clean), ("through the camera, %", bad)):
        lines.append(f"| {what} | | {' | '.join(f'{100 * plain[name]:.1f}' for name in ENCODER_OF)} |")
    for row in study.select(content=content, camera=camera, change=None):
        if "by_hand" in row:
            recovered = study.recovery(row)
            shown = [f"{recovered[name]:.0f}" if name in recovered else "" for name in ENCODER_OF]
            lines.append(f"| {row['by_hand']} | | {' | '.join(shown)} |")
    found = {(row["method"], tuple(row["sources"])) for row in study.select(content=content, camera=camera)}
    order = list(METHODS)
    for method, sources in sorted(found, key=lambda pair: (order.index(pair[0]), len(pair[1]), pair[1])):
        mean = study.mean(content=content, camera=camera, method=method, sources=list(sources))
        shown = []
        for name in ENCODER_OF:
            value = f"{mean[name]:.0f}" if name in mean else ""
            shown.append(f"*{value}*" if value and name in sources and method != "pixels" else value)
        on = "no model" if method == "pixels" else " and ".join(sources)
        lines.append(f"| {method} | {on} | {' | '.join(shown)} |")
    return lines


def report(folder: Path) -> None:
    """Print the tables and the bars, and write report.json."""
    study = Study.read(folder)
    measured = dict.fromkeys((row["content"], row["camera"]) for row in study.rows.values() if "method" in row)
    for content, camera in measured:
        print(f"\n{content} through {camera}: recovery in percent\n")
        print("\n".join(table(study, content, camera)))
    print()
    judged = bars(study)
    for bar in judged:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['bar']}: {bar['asked']} asked, {bar['reached']}")
    content = {"command": "python -m benchmarks.study run; python -m benchmarks.study report", "bars": judged}
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
