"""The study's figures: the page of tables, the bars that it is held to, and the gains with their intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from samples.zoo.models import ENCODER_OF
from tvp.trainer.files import write_whole
from tvp.trainer.metrics import Gain, gain

from .cells import BAD, CAMERAS, CONTENTS, FAMILY, METHODS, MIDDLE, SEVERAL, WEIGHTS, in_name
from .data import N_MEASURED, QUESTIONS
from .measure import unpack

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "study.md"
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

    def plain_row(self, content: str, camera: str) -> Row:
        return self.rows[f"{content}.{in_name(camera)}".replace(" ", "-")]

    def plain(self, content: str, camera: str) -> dict[str, float]:
        """Accuracy of each model without a prompt; `none` is clean."""
        return accuracies(self.plain_row(content, camera))

    def recovery(self, row: Row) -> dict[str, float]:
        """The share of what the camera took that a prompt gives back, in percent, for each model that lost enough."""
        clean, bad = self.plain(row["content"], "none"), self.plain(row["content"], row["camera"])
        return {
            name: 100 * (found - bad[name]) / (clean[name] - bad[name])
            for name, found in accuracies(row).items()
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

    def gain(self, rows: Iterable[Row], models: Iterable[str], before: Row | None = None) -> Gain:
        """The gain of accuracy over no prompt, or over another row, mean over rows and models; pictures are drawn."""
        was: list[bool] = []
        now: list[bool] = []
        names: list[int] = []
        for row in rows:
            questions = QUESTIONS[row["content"]]
            n = questions * N_MEASURED["test"][row["content"]]
            for model in models:
                base = before or self.plain_row(row["content"], row["camera"])
                was.extend(unpack(base["scores"][model]["right"], n))
                now.extend(unpack(row["scores"][model]["right"], n))
                names.extend(i // questions for i in range(n))
        return gain(was, now, names)

    @cached_property
    def places(self) -> list[tuple[str, str]]:
        """Content and camera of what is measured, in the order of the cells."""
        found = {(row["content"], row["camera"]) for row in self.rows.values() if "method" in row}
        return [(c, camera) for c in (*CONTENTS, "counting") for camera in (BAD, *CAMERAS) if (c, camera) in found]


def accuracies(row: Row) -> dict[str, float]:
    return {name: found["accuracy"] for name, found in row["scores"].items()}


def others(found: Iterable[str], sources: Iterable[str]) -> list[str]:
    """The models that the prompt was not learned on."""
    return [name for name in found if name not in sources]


def unseen(found: Iterable[str], sources: Iterable[str]) -> list[str]:
    """The models with vision encoders that took no part."""
    part = {ENCODER_OF[name] for name in sources}
    return [name for name in found if ENCODER_OF[name] not in part]


def average(recovery: dict[str, float], models: Iterable[str]) -> float:
    return float(np.mean([recovery[name] for name in models]))


FIGURES: dict[str, Callable[[dict[str, float], tuple[str, ...]], float]] = {
    "source": lambda recovery, sources: average(recovery, sources),
    "worst other": lambda recovery, sources: min(recovery[name] for name in others(recovery, sources)),
    "others": lambda recovery, sources: average(recovery, others(recovery, sources)),
    "unseen encoders": lambda recovery, sources: average(recovery, unseen(recovery, sources)),
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
        ("scenes", camera, "pairs", sources, ""): {"others": 80}
        for camera in CAMERAS
        if camera not in ("jpeg:5", FAMILY)  # JPEG is reported; the family has its own bar
        for sources in (("blip2",), ("smolvlm", "qwen2vl"))
    },
    **{
        ("scenes", MIDDLE, "pairs", sources, "learned on the family"): {"others": 60}
        for sources in (("blip2",), ("smolvlm", "qwen2vl"))
    },
    ("scenes", BAD, "pairs", ("blip2",), "camera a third stronger"): {"others": 60},
    ("scenes", BAD, "pairs", ("blip2",), "camera a third weaker"): {"others": 60},
}
MOST_OFF = 0.5  # points of accuracy that a prompt in 8 bits or in a bundle may be off on any model
MOST_LOST = 0.5  # points that a lens of the family may take from clean pictures
SHARE_OF_FEW = 90  # percent of the recovery with all pictures that 64 pictures must give, mean over models
MOST_BEHIND = 3  # points of recovery that a lens of both contents may be behind that of one
MORE_IN_MEAN, MORE_ON_EACH = 10, 5  # points of accuracy above a lens taught by pixels and the best by hand


@dataclass(frozen=True)
class Bar:
    """What was asked, and what was reached; the most is asked where `at_most`."""

    what: str
    asked: float
    reached: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.reached <= self.asked if self.at_most else self.reached >= self.asked


def bars(study: Study) -> Iterator[Bar]:
    """Every bar for which there are figures."""
    for (content, camera, method, sources, change), asked_of in BARS.items():
        recovery = study.mean(content=content, camera=camera, method=method, sources=list(sources), change=change)
        if recovery:
            what = ", ".join(part for part in (content, in_name(camera), method, " and ".join(sources), change) if part)
            for figure, asked in asked_of.items():
                yield Bar(f"{what}: {figure}", asked, FIGURES[figure](recovery, sources))
    for content in CONTENTS:
        cell = {"content": content, "camera": BAD, "method": "pairs", "sources": ["blip2"]}
        own, few = study.mean(**cell), study.mean(**cell, change="64 pictures")
        if own and few:
            share = 100 * average(few, few) / average(own, own)
            yield Bar(f"{content}, 64 pictures: share of the recovery with all pictures", SHARE_OF_FEW, share)
        both = study.mean(**cell, change="scenes and photos")
        if own and both:
            behind = average(own, own) - average(both, both)
            yield Bar(f"{content}, learned on both contents: points behind its own lens", MOST_BEHIND, behind, True)
        for change in ("8 bits", "ONNX"):
            for row in study.select(**cell, seed=1, change=change):
                whole = accuracies(study.select(**cell, seed=1)[0])
                off = max(100 * abs(found - whole[name]) for name, found in accuracies(row).items())
                yield Bar(f"{content}, {change}: largest difference of accuracy, points", MOST_OFF, off, True)
    for row in study.select(camera="none", method="pairs", change="learned on the family"):
        lost = -100 * min(study.gain([row], [name]).value for name in ENCODER_OF)
        on = " and ".join(row["sources"])
        yield Bar(f"{row['content']}, family, {on}: most points lost on clean pictures", MOST_LOST, lost, True)
    yield from above_the_others(study)


def above_the_others(study: Study) -> Iterator[Bar]:
    """The lens from pairs beside one taught by pixels, the best that needs no learning, and no prompt."""
    here = {"content": "scenes", "camera": BAD}
    lens = study.select(**here, method="pairs", sources=["blip2"], seed=1)
    rivals = {"the lens taught by pixels": study.select(**here, method="pixels", sources=["blip2"], seed=1)}
    by_hand = [row for row in study.select(**here, change=None) if "inverse" not in row.get("by_hand", "inverse")]
    by_hand.sort(key=lambda row: average(accuracies(row), ENCODER_OF), reverse=True)
    rivals["the best without learning"] = by_hand[:1]
    for name, rows in rivals.items():
        if lens and rows:
            each = [100 * study.gain(lens, [model], rows[0]).value for model in ENCODER_OF]
            yield Bar(f"scenes, points above {name}: mean", MORE_IN_MEAN, float(np.mean(each)))
            yield Bar(f"scenes, points above {name}: least", MORE_ON_EACH, min(each))
    for row in lens:
        least = min(100 * study.gain([row], [model]).value for model in ENCODER_OF)
        yield Bar("scenes, points above no prompt: least", 0, least)


# The page.


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]


def recovered(study: Study, row_of: dict[str, float], sources: Iterable[str] = ()) -> list[str]:
    """The recovery of each model; sources are in italics, and a model that lost little has none."""
    shown = {name: f"{value:.0f}" for name, value in row_of.items()}
    return [f"*{shown[name]}*" if name in shown and name in sources else shown.get(name, "") for name in ENCODER_OF]


def in_points(found: Gain) -> str:
    value, low, high = (f"{100 * share:+.1f}" for share in found)
    return f"{value} ({low} to {high})"


def camera_table(study: Study, content: str, camera: str) -> list[str]:
    """The recovery of every model, by method and sources."""
    lines = []
    for what, plain in (("clean, %", study.plain(content, "none")), ("spoilt, %", study.plain(content, camera))):
        lines.append([what, "", *(f"{100 * plain[name]:.1f}" for name in ENCODER_OF), ""])
    for row in study.select(content=content, camera=camera, change=None):
        if "by_hand" in row:
            won = in_points(study.gain([row], ENCODER_OF))
            lines.append([row["by_hand"], "no model", *recovered(study, study.recovery(row)), won])
    found = {(row["method"], tuple(row["sources"])) for row in study.select(content=content, camera=camera)}
    order = list(METHODS)
    for method, sources in sorted(found, key=lambda pair: (order.index(pair[0]), len(pair[1]), pair[1])):
        cell = {"content": content, "camera": camera, "method": method, "sources": list(sources)}
        rows = study.select(**cell)
        taught: tuple[str, ...] = () if method == "pixels" else sources
        seeds = f", {len(rows)} seeds" if len(rows) > 1 else ""
        won = in_points(study.gain(rows, others(ENCODER_OF, taught)))
        on = " and ".join(taught) or "no model"
        lines.append([f"{method}{seeds}", on, *recovered(study, study.mean(**cell), taught), won])
    return table(["learned from", "on", *ENCODER_OF, "others, points"], lines)


def changed_table(study: Study) -> list[str]:
    """Prompts that were learned, or are measured, in another way than those of the other tables."""
    lines = []
    for row in study.rows.values():
        if row.get("change") and row["change"] not in WEIGHTS:
            what = [row["content"], in_name(row["camera"]), row["method"], row["change"], " and ".join(row["sources"])]
            if row["camera"] == "none":
                shown = [f"{100 * study.gain([row], [name]).value:+.1f} p" for name in ENCODER_OF]
            else:
                shown = recovered(study, study.recovery(row), row["sources"])
            lines.append([*what, *shown])
    return table(["measured on", "through", "learned from", "change", "on", *ENCODER_OF], sorted(lines))


def weights_table(study: Study, content: str) -> list[str]:
    """What FCA and TSE add to a frame and to a lens that are learned on blip2."""
    groups = {
        "source": ["blip2"],
        "same encoder": [name for name in others(ENCODER_OF, ["blip2"]) if ENCODER_OF[name] == ENCODER_OF["blip2"]],
        "other encoders": unseen(ENCODER_OF, ["blip2"]),
    }
    lines = []
    kinds = [("frame", "tvp", weights) for weights in WEIGHTS]
    kinds += [("lens", method, "") for method in ("answers", "answers and TSE", "answers and pairs")]
    for kind, method, weights in kinds:
        rows = study.select(content=content, camera=BAD, method=method, sources=["blip2"], change=weights)
        if rows:
            line = [kind, weights or method.replace("pairs", "FCA to clean"), str(len(rows))]
            line += [in_points(study.gain(rows, models)) for models in groups.values()]
            for models in groups.values():
                drifts = [row["scores"][name]["drift"] for row in rows for name in models]
                line.append(f"{np.mean(drifts):.2f}")
            lines.append(line)
    head = ["learned", "losses beside the answers'", "seeds", *(f"{name}, points" for name in groups)]
    return table([*head, *(f"{name}, drift" for name in groups)], lines)


INTRODUCTION = """# The study: every figure

`python -m benchmarks.study run` learns and measures every prompt, and `python -m benchmarks.study report` writes this
page. [What transfers and what does not](transfer.md) says what the figures mean.

*Recovery* is the share of what a camera took that comes back, in percent: (with the prompt - spoilt) / (clean -
spoilt). A model has none where the camera takes less than 8 points. Models in italics were learned on. *Others,
points*: the change of accuracy over no prompt, mean over the models that were not learned on, with a 95 % interval
(paired bootstrap over pictures). Scenes: 512 test pictures with 2,048 questions. Photos: 2,000 test pictures of
CIFAR-10. Counting: 2,048 test pictures. Settings were chosen on validation pictures, and the test pictures were used
once for each prompt.
"""


def page(study: Study) -> str:
    """The page of all tables."""
    parts = [INTRODUCTION]
    for content, camera in study.places:
        if content in CONTENTS:
            name = {BAD: "the bad camera", FAMILY: f"a family of cameras (`{FAMILY}`)"}.get(camera, f"`{camera}`")
            parts += [f"## {content.capitalize()} through {name}\n", *camera_table(study, content, camera), ""]
    parts += ["## Learned or measured in another way\n", *changed_table(study), ""]
    for content in ("counting", "photos"):
        found = weights_table(study, content)
        if len(found) > 2:
            title = f"## What FCA and TSE add: {content} through the bad camera\n"
            drift = (
                "*Drift* is how far the features that enter the language model move away from the spoilt picture's, "
            )
            parts += [title, drift + "as a\nshare of the length of the clean picture's.\n", *found, ""]
    lines = [
        [
            bar.what,
            f"{'at most ' if bar.at_most else ''}{bar.asked:g}",
            f"{bar.reached:.1f}",
            "" if bar.met else "missed",
        ]
        for bar in bars(study)
    ]
    parts += ["## The bars\n", *table(["figure", "asked", "reached", ""], lines), ""]
    return "\n".join(parts)


def report(folder: Path, place: Path = PAGE) -> None:
    """Write the page, and report.json with the bars and each prompt's gain on each model."""
    study = Study.read(folder)
    write_whole(place, page(study).encode())
    judged = [vars(bar) | {"reached": round(bar.reached, 2), "met": bar.met} for bar in bars(study)]
    gains = {
        name: {model: [round(share, 4) for share in study.gain([row], [model])] for model in ENCODER_OF}
        for name, row in study.rows.items()
        if "method" in row or "by_hand" in row
    }
    command = "python -m benchmarks.study run; python -m benchmarks.study report"
    content = {"command": command, "bars": judged, "gains with their 95 % intervals": gains}
    write_whole(folder / "report.json", (json.dumps(content, indent=1) + "\n").encode())
    for bar in judged:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['what']}: {bar['asked']} asked, {bar['reached']}")
