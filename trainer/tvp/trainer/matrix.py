"""Prompts x models: how often each model answers right with each prompt, and as JSON, Markdown and a heat map."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from tvp.sdk.errors import CheckError, ModelError

from . import metrics
from .corruptions import Corrupted
from .data import Data
from .evaluate import Accuracy, accuracy
from .families import Family
from .files import write_whole
from .prompt import Geometry, Prompt
from .task_definition import TaskDefinition

FULL = "full picture"  # how the names of what gains are measured from begin
NOT_EXPORTED = "not exported"  # the note of a family that the exporter cannot write


@dataclass(frozen=True)
class Shown:
    """What models are shown: pictures at a place on the canvas, with a prompt or without."""

    name: str
    geometry: Geometry
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Row:
    """One cell of the matrix.

    corruption, severity: what was done to the pictures; '' and 0 where nothing was.
    accuracy, low, high: share answered right, with its 95 % bootstrap interval; None where nothing was asked.
    n: questions asked, the same ones in the same order in every row.
    metrics: what the task is measured by.
    gain: accuracy minus that of the same model on the full, equally corrupted picture; None where that is not known.
    note: why nothing was asked.
    """

    model: str
    shown: str
    corruption: str = ""
    severity: int = 0
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    gain: float | None = None
    note: str = ""

    def __str__(self) -> str:
        condition = f" {self.corruption + ':' + str(self.severity):<12}" if self.corruption else ""
        return f"{self.model:<24} {self.shown:<32}{condition} {self.note or _interval(self) + f' of {self.n}'}"


class Exporter(Protocol):
    """Exports a model with a prompt; gives what measures the bundle, which is there until the context ends.

    Raises CheckError where the bundle does not answer as the model does.
    """

    def __call__(
        self, model: str, family: Family, prompt: Prompt, task: TaskDefinition, data: Data, *, quiet: bool
    ) -> AbstractContextManager[Callable[[Data], Accuracy]]: ...


def columns(prompts: Mapping[str, Prompt], without: Geometry) -> list[Shown]:
    """What a matrix shows: for each geometry the full picture and a black frame, then each prompt.

    without: the geometry where there is no prompt.
    """
    # Without a prompt there is nothing over a picture: what a prompt over it is measured against is the same.
    around = (replace(prompt.geometry, placement="around") for prompt in prompts.values())
    places = list(dict.fromkeys(around)) or [without]
    several_fits = len({place.fit for place in places}) > 1
    shown: dict[str, Shown] = {}
    for place in places:
        fit = f", {place.fit}" if several_fits else ""
        for name, geometry in (
            (f"{FULL}, {place.canvas} px{fit}", replace(place, inner=place.canvas)),
            (f"black frame, {place.inner} in {place.canvas} px{fit}", place),
        ):
            shown[name] = Shown(name, geometry)
    return [*shown.values(), *(Shown(name, prompt.geometry, prompt) for name, prompt in prompts.items())]


def evaluate_matrix(
    models: Sequence[str],
    load: Callable[[str], Family],
    shown: Sequence[Shown],
    data: Data,
    task: TaskDefinition,
    *,
    corruptions: Sequence[tuple[str, int]] = (),
    seed: int = 0,
    batch: int = 256,
    exporter: Exporter | None = None,
    quiet: bool = True,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Ask every model everything in `data`, however it is shown.

    load: makes a model of its name; one is in memory at a time.
    shown: full pictures come first, since gains are over them.
    corruptions: names and severities; pictures as they are come before these.
    seed: of the corruptions.
    exporter: with one, each prompt is also measured as its 8-bit PNG and as an ONNX bundle.
    report: called with each row as it is measured.
    """
    conditions = {("", 0): data} | {(name, step): Corrupted(data, name, step, seed) for name, step in corruptions}
    questions = [question for i in range(len(data)) for question in data[i].questions]
    metrics.measure(task.metric, questions, [""] * len(questions))  # refuses labels before anything is asked
    rows: list[Row] = []
    full: dict[tuple[str, int, Geometry], float] = {}

    def add(row: Row) -> None:
        rows.append(row)
        report(row)

    def measure(model: str, name: str, geometry: Geometry, ask: Callable[[Data], Accuracy]) -> None:
        whole = replace(geometry, inner=geometry.canvas, placement="around")
        for (corruption, severity), seen in conditions.items():
            result = ask(seen)
            if geometry == whole:
                full.setdefault((corruption, severity, whole), result.accuracy)
            over = full.get((corruption, severity, whole))
            add(
                Row(
                    model,
                    name,
                    corruption,
                    severity,
                    result.accuracy,
                    result.low,
                    result.high,
                    result.n,
                    metrics.measure(task.metric, questions, result.answers, result.scores),
                    None if over is None else result.accuracy - over,
                )
            )

    def measure_all(model: str, family: Family) -> None:
        full.clear()
        for column in shown:
            name, geometry, prompt = column.name, column.geometry, column.prompt
            measure(model, name, geometry, _asker(family, geometry, prompt, task, batch, quiet))
            if prompt is None or exporter is None:
                continue
            in_8_bits = _asker(family, geometry, eight_bit(prompt), task, batch, quiet)
            measure(model, f"{name} (8-bit PNG)", geometry, in_8_bits)
            if not family.exports:
                add(Row(model, f"{name} (ONNX)", note=NOT_EXPORTED))
                continue
            try:
                with exporter(model, family, prompt, task, data, quiet=quiet) as ask:
                    measure(model, f"{name} (ONNX)", geometry, ask)
            except (CheckError, ModelError) as error:
                # A bundle that fails the gate is a finding; it must not cost what was measured before. Nor must a
                # tokenizer that has no equal.
                add(Row(model, f"{name} (ONNX)", note=f"{NOT_EXPORTED}: {str(error).splitlines()[0]}"))

    for model in models:
        measure_all(model, load(model))
    return rows


def eight_bit(prompt: Prompt) -> Prompt:
    """The prompt as its PNG holds it: saved as `Prompt.picture` gives it, and read back into [0, 1]."""
    buffer = io.BytesIO()
    prompt.picture().save(buffer, "PNG")
    levels = torch.from_numpy(np.array(Image.open(buffer)))
    return replace(prompt, frame=levels.permute(2, 0, 1) / 255)  # (h, w, 3) -> (3, h, w)


def _asker(
    family: Family, geometry: Geometry, prompt: Prompt | None, task: TaskDefinition, batch: int, quiet: bool
) -> Callable[[Data], Accuracy]:
    if prompt is not None:
        prompt = replace(prompt, frame=prompt.frame.to(family.device))
    return lambda data: accuracy(family, data, geometry, prompt, task, batch, quiet)


# Writing it down.


def write(folder: Path, rows: Sequence[Row], title: str) -> list[Path]:
    """Write matrix.json, matrix.md and matrix.png, each whole or not at all; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    # The picture comes last, since it is what may fail.
    for name, make in (("json", to_json), ("md", lambda rows: to_markdown(rows, title)), ("png", heat_map)):
        path = folder / f"matrix.{name}"
        content = make(rows)
        write_whole(path, content.encode() if isinstance(content, str) else content)
        written.append(path)
    return written


def to_json(rows: Sequence[Row]) -> str:
    """A list of objects, one a row, under the names of its fields."""
    found = [asdict(row) for row in rows]
    for row in found:  # JSON has no NaN; a figure that is not defined is null
        row["metrics"] = {name: None if math.isnan(value) else value for name, value in row["metrics"].items()}
    return json.dumps(found, indent=2) + "\n"


def to_markdown(rows: Sequence[Row], title: str) -> str:
    """Tables: models x what is shown, then one for each corruption with its severities, and other metrics."""
    clean = [row for row in rows if not row.corruption]
    models, shown = _names(clean, "model"), _names(clean, "shown")
    cells = {(row.model, row.shown): row for row in clean}
    n = max((row.n for row in rows), default=0)
    parts = [
        f"# {title}",
        f"Answered right of {n:,} questions, with a 95 % bootstrap interval and the change from the full picture in "
        "points.",
        _table(
            ["model", *shown],
            [[model, *(_cell(cells.get((model, name))) for name in shown)] for model in models],
        ),
    ]
    for corruption, severities in _corruptions(rows).items():
        found = {(row.model, row.shown, row.severity): row for row in rows if row.corruption == corruption}
        lines = [
            [model, name, *(_cell(found.get((model, name, step))) for step in severities)]
            for model in models
            for name in shown
            if (model, name, severities[0]) in found
        ]
        parts += [
            f"## Under {corruption}",
            _table(["model", "shown", *(f"severity {step}" for step in severities)], lines),
        ]
    others = list(dict.fromkeys(key for row in rows for key in row.metrics if key != "accuracy"))
    if others:
        lines = [
            [
                row.model,
                row.shown,
                _condition(row),
                *(f"{row.metrics[key]:.4g}" if key in row.metrics else "" for key in others),
            ]
            for row in rows
            if not row.note
        ]
        parts += ["## Other metrics", _table(["model", "shown", "pictures", *others], lines)]
    return "\n\n".join(parts) + "\n"


def heat_map(rows: Sequence[Row]) -> bytes:
    """A PNG: models in rows, what is shown in columns; the accuracy, on the colour of the gain over the full picture.

    One panel for pictures as they are and one for each corruption, which is the mean of its severities.
    """
    # It takes half a second to import; the object API leaves pyplot's global state alone.
    from matplotlib.figure import Figure

    models, shown = _names(rows, "model"), _names(rows, "shown")
    panels = {"pictures as they are": [row for row in rows if not row.corruption]}
    for corruption, steps in _corruptions(rows).items():
        severities = f"severity {steps[0]}" if len(steps) == 1 else f"mean of {len(steps)} severities"
        panels[f"{corruption}, {severities}"] = [row for row in rows if row.corruption == corruption]
    grids = [_grid(panel, models, shown) for panel in panels.values()]
    # At least five points either way, so that noise is not painted as a finding.
    limit = max(0.05, *(float(np.nan_to_num(np.abs(gains)).max()) for _, gains in grids))
    width, height = 3.2 + 1.35 * len(shown), 0.5 + (1.0 + 0.55 * len(models)) * len(panels)
    figure = Figure(figsize=(width, height + 1.2), dpi=120, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    images = []
    for axis, title, (accuracies, gains) in zip(axes, panels, grids, strict=True):
        axis.set_facecolor("#d9d9d9")  # where there is no gain to show
        seen = np.ma.masked_invalid(gains)
        images.append(axis.imshow(seen, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto"))
        for (y, x), value in np.ndenumerate(accuracies):
            gain = gains[y, x]
            dark = np.isfinite(gain) and abs(gain) > 0.6 * limit
            text = f"{value:.1%}" if np.isfinite(value) else "not\nmeasured"
            if np.isfinite(gain) and not shown[x].startswith(FULL):
                text += f"\n({gain * 100:+.1f})"
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.set_title(title, fontsize=10, loc="left")
        # Names come from users; a pair of $ in one is not a formula.
        axis.set_yticks(range(len(models)), [_wrap(name) for name in models], fontsize=8, parse_math=False)
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[-1].set_xticks(range(len(shown)), [_wrap(name) for name in shown], fontsize=8, parse_math=False)
    bar = figure.colorbar(images[0], ax=list(axes), shrink=0.9, pad=0.02, format=lambda value, _: f"{value * 100:+.0f}")
    bar.set_label("gain over the full picture, points", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _grid(rows: Sequence[Row], models: Sequence[str], shown: Sequence[str]) -> tuple[Any, Any]:
    """Mean accuracies and gains (n_models, n_shown); NaN where there is none."""
    accuracies, gains = (np.full((len(models), len(shown)), np.nan) for _ in range(2))
    for y, model in enumerate(models):
        for x, name in enumerate(shown):
            cell = [row for row in rows if (row.model, row.shown) == (model, name)]
            for table, values in ((accuracies, [row.accuracy for row in cell]), (gains, [row.gain for row in cell])):
                known = [value for value in values if value is not None]
                if known:
                    table[y, x] = np.mean(known)
    return accuracies, gains


def _names(rows: Sequence[Row], key: str) -> list[str]:
    """Models, or what is shown, in the order of the rows."""
    return list(dict.fromkeys(getattr(row, key) for row in rows))


def _corruptions(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Corruption -> its severities."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row.corruption and row.severity not in found.setdefault(row.corruption, []):
            found[row.corruption].append(row.severity)
    return {name: sorted(severities) for name, severities in found.items()}


def _condition(row: Row) -> str:
    return f"{row.corruption}:{row.severity}" if row.corruption else "as they are"


def _interval(row: Row) -> str:
    return f"{row.accuracy:.1%} [{row.low:.1%}, {row.high:.1%}]"


def _cell(row: Row | None) -> str:
    if row is None or row.note:
        return row.note if row else ""
    gain = f" {row.gain * 100:+.1f}" if row.gain is not None and not row.shown.startswith(FULL) else ""
    return _interval(row) + gain


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _wrap(name: str) -> str:
    """A name in lines short enough for a tick; a path by its last two parts."""
    if len(name) > 32 and name.count("/") > 1:
        name = "…/" + "/".join(name.split("/")[-2:])
    return textwrap.fill(name.replace(" px", "\u00a0px"), 20)  # a number stays with its unit
