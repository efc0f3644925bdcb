"""Prompts x models: how often each model answers right with each prompt, as JSON, Markdown and a heat map."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tvp.sdk.errors import CheckError, DataError, ModelError, RequestError
from tvp.sdk.formats import strict_json

from . import calibration, metrics
from .cameras import Camera, Part
from .data import Data, ThroughCamera
from .evaluate import Asked, ask, common_answers, judge, told
from .families import Family
from .files import write_whole
from .prompt import Geometry, Prompt, eight_bit
from .task_definition import TaskDefinition

FULL = "full picture"  # gains are measured against columns whose name begins so
NOT_EXPORTED = "not exported"  # the note of a model that the exporter cannot write
NOT_CALIBRATED = (
    "not calibrated"  # the beginning of the note where there are no labels to calibrate, or too few pictures
)


@dataclass(frozen=True)
class Shown:
    """A column of the matrix: how pictures lie on the canvas, with a prompt or without."""

    name: str
    geometry: Geometry
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Row:
    """One cell of the matrix.

    Attributes:
        model: name of the model.
        shown: name of the column.
        corruption: of the pictures; '' for none.
        severity: of the corruption, 1 to 5; 0 for none.
        accuracy: share answered right, in [0, 1]; None where nothing was asked.
        low, high: its 95 % bootstrap interval.
        n: number of questions; every row asks the same ones in the same order.
        metrics: the task's metrics by name.
        gain: accuracy minus that of the same model on the full picture, corrupted alike; None where that is unknown.
        gain_low, gain_high: its 95 % interval, of a paired bootstrap.
        note: why nothing was asked.
        answers: the commonest answers with their shares.
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
    gain_low: float | None = None
    gain_high: float | None = None
    note: str = ""
    answers: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        condition = f" {self.corruption + ':' + str(self.severity):<12}" if self.corruption else ""
        said = f"{self.model:<24} {self.shown:<32}{condition} {self.note or _interval(self) + f' of {self.n}'}"
        if self.gain is not None and not self.shown.startswith(FULL):
            said += f"; {metrics.Gain(self.gain, self.gain_low or 0.0, self.gain_high or 0.0)}"
        if self.n and not self.accuracy:  # which says nothing without the answers
            said += f"; it answered {told(self.answers)}"
        return said


class Exporter(Protocol):
    """Exports a model with a prompt to a bundle, and gives a function that asks it.

    The bundle exists until the context ends.

    Raises:
        CheckError: the bundle does not answer as the model does.
        ModelError: the model cannot be exported.
    """

    def __call__(
        self, model: str, family: Family, prompt: Prompt, task: TaskDefinition, data: Data, *, quiet: bool
    ) -> AbstractContextManager[Callable[[Data], Asked]]: ...


def columns(prompts: Mapping[str, Prompt], without: Geometry) -> list[Shown]:
    """Make the columns of a matrix: the full picture and a black frame for each geometry, then each prompt.

    Args:
        prompts: by name.
        without: the geometry to use if there is no prompt.
    """
    # The pictures without a prompt are those of a frame around the picture, wherever the prompt's frame lies.
    around = (replace(prompt.geometry, placement="around") for prompt in prompts.values())
    places = list(dict.fromkeys(around)) or [without]
    several_fits = len({place.fit for place in places}) > 1
    shown: dict[str, Shown] = {}
    for place in places:
        fit = f", {place.fit}" if several_fits else ""
        name = f"{FULL}, {place.canvas} px{fit}"
        shown[name] = Shown(name, replace(place, inner=place.canvas))
        if place.inner < place.canvas:  # a lens alone has no frame
            name = f"black frame, {place.inner} in {place.canvas} px{fit}"
            shown[name] = Shown(name, place)
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
    calibrate_on: Data | None = None,
    quiet: bool = True,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Ask every model every question of the data, for every column.

    Args:
        models: names of the models.
        load: loads a model by its name; one is in memory at a time.
        shown: the columns. Full pictures come first, because gains are measured against them.
        data: pictures, questions and right answers.
        task: what the questions are of.
        corruptions: names and severities, measured after pictures as they are. Default: none.
        seed: of the corruptions. Default 0.
        batch: questions that a language model reads at once. Default 256.
        exporter: if given, measures each prompt as its 8-bit PNG and as an ONNX bundle too.
        calibrate_on: training pictures, whose answers are not read. If given, each column is measured with calibrated
            scores too; they are learned from these pictures, corrupted alike.
        quiet: show no progress bars. Default True.
        report: is called with each row when it is measured.
    """
    conditions = {condition: _spoilt(data, *condition, seed) for condition in [("", 0), *corruptions]}
    questions = metrics.questions_to_measure(task.metric, data)
    rows: list[Row] = []
    full: dict[tuple[str, int, Geometry], NDArray[np.bool_]] = {}

    def add(row: Row) -> None:
        rows.append(row)
        report(row)

    def measure(model: str, name: str, geometry: Geometry, asker: Callable[[Data], Asked], calibrated: bool) -> None:
        said = {condition: asker(seen) for condition, seen in conditions.items()}
        add_all(model, name, geometry, said)
        if not calibrated or calibrate_on is None:
            return
        name = f"calibrated: {name}"
        try:
            usual = {it: calibration.offsets_of(asker(_spoilt(calibrate_on, *it, seed + 1))) for it in said}
        except (RequestError, DataError) as error:
            add(Row(model, name, note=f"not calibrated: {str(error).split('. ')[0]}"))
            return
        add_all(model, name, geometry, {it: calibration.applied(usual[it], asked) for it, asked in said.items()})

    def add_all(model: str, name: str, geometry: Geometry, said: Mapping[tuple[str, int], Asked]) -> None:
        whole = replace(geometry, inner=geometry.canvas, placement="around")
        for (corruption, severity), asked in said.items():
            result = judge(asked, task.match)
            if geometry == whole:
                full.setdefault((corruption, severity, whole), result.right)
            before = full.get((corruption, severity, whole))
            won = None if before is None else metrics.gain(before, result.right, asked.pictures)
            gain, least, most = won or (None, None, None)
            found = metrics.measure(task.metric, questions, result.answers, result.scores, task.match)
            interval = result.accuracy, result.low, result.high
            common = common_answers(result.answers)
            add(Row(model, name, corruption, severity, *interval, result.n, found, gain, least, most, "", common))

    def measure_all(model: str, family: Family) -> None:
        full.clear()
        for column in shown:
            name, geometry, prompt = column.name, column.geometry, column.prompt
            measure(model, name, geometry, _asker(family, geometry, prompt, task, batch, quiet), True)
            if prompt is None or exporter is None:
                continue
            in_8_bits = _asker(family, geometry, eight_bit(prompt), task, batch, quiet)
            measure(model, f"{name} ({'8-bit PNG' if prompt.lens is None else '8-bit'})", geometry, in_8_bits, False)
            if not family.exports:
                add(Row(model, f"{name} (ONNX)", note=NOT_EXPORTED))
                continue
            try:
                with exporter(model, family, prompt, task, data, quiet=quiet) as asker:
                    measure(model, f"{name} (ONNX)", geometry, asker, False)
            except (CheckError, ModelError) as error:
                # A bundle that fails the parity gate, or a tokenizer that cannot be exported, is a result too:
                # the other rows must not be lost.
                add(Row(model, f"{name} (ONNX)", note=f"{NOT_EXPORTED}: {str(error).splitlines()[0]}"))

    for model in models:
        measure_all(model, load(model))
    return rows


def _asker(
    family: Family, geometry: Geometry, prompt: Prompt | None, task: TaskDefinition, batch: int, quiet: bool
) -> Callable[[Data], Asked]:
    if prompt is not None:
        prompt = prompt.to(family.device)
    return lambda data: ask(family, data, geometry, prompt, task, batch, quiet)


def _spoilt(data: Data, corruption: str, severity: int, seed: int) -> Data:
    return ThroughCamera(data, Camera((Part(corruption, severity=severity),)), seed) if corruption else data


# Writing the results.


def write(folder: Path, rows: Sequence[Row], title: str) -> list[Path]:
    """Write matrix.json, matrix.md and matrix.png, each whole or not at all.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    # The picture comes last, because drawing may fail.
    for name, make in (("json", to_json), ("md", lambda rows: to_markdown(rows, title)), ("png", heat_map)):
        path = folder / f"matrix.{name}"
        content = make(rows)
        write_whole(path, content.encode() if isinstance(content, str) else content)
        written.append(path)
    return written


def to_json(rows: Sequence[Row]) -> str:
    """Return a JSON list with an object for each row."""
    found = [asdict(row) for row in rows]
    for row in found:  # JSON has no NaN; an undefined figure is null
        row["metrics"] = {name: None if math.isnan(value) else value for name, value in row["metrics"].items()}
    return strict_json.dumps(found, indent=2) + "\n"


def to_markdown(rows: Sequence[Row], title: str) -> str:
    """Return Markdown tables: models x columns, then one for each corruption with its severities, and other metrics."""
    clean = [row for row in rows if not row.corruption]
    models, shown = _names(clean, "model"), _names(clean, "shown")
    cells = {(row.model, row.shown): row for row in clean}
    n = max((row.n for row in rows), default=0)
    parts = [
        f"# {title}",
        f"Share of {n:,} questions answered right, with a 95 % bootstrap interval and the change from the full picture "
        "in points.",
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
    """Draw a PNG: models in rows, columns as in the matrix.

    A cell holds the accuracy; its colour is the gain over the full picture. There is a panel for pictures as they
    are, and one for each corruption, with the mean of its severities.
    """
    # Imported here because it takes half a second. The object API leaves pyplot's global state alone.
    from matplotlib.figure import Figure

    models, shown = _names(rows, "model"), _names(rows, "shown")
    panels = {"pictures as they are": [row for row in rows if not row.corruption]}
    for corruption, steps in _corruptions(rows).items():
        severities = f"severity {steps[0]}" if len(steps) == 1 else f"mean of {len(steps)} severities"
        panels[f"{corruption}, {severities}"] = [row for row in rows if row.corruption == corruption]
    grids = [_grid(panel, models, shown) for panel in panels.values()]
    # At least five points either way, so that noise gets no strong colour.
    limit = max(0.05, *(float(np.nan_to_num(np.abs(gains)).max()) for _, gains in grids))
    width, height = 3.2 + 1.35 * len(shown), 0.5 + (1.0 + 0.55 * len(models)) * len(panels)
    figure = Figure(figsize=(width, height + 1.2), dpi=120, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    images = []
    for axis, title, (accuracies, gains) in zip(axes, panels, grids, strict=True):
        axis.set_facecolor("#d9d9d9")  # of cells without a gain
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
        # Names come from users: a pair of $ in one is no formula.
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
    """Return mean accuracies and mean gains, each (n_models, n_shown); NaN where there is none."""
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
    """Return the models (`model`) or the columns (`shown`), in the order of the rows."""
    return list(dict.fromkeys(getattr(row, key) for row in rows))


def _corruptions(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Return each corruption with its severities."""
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
    """Break a name into lines that are short enough for a tick. Of a long path, keep the last two parts."""
    if len(name) > 32 and name.count("/") > 1:
        name = "…/" + "/".join(name.split("/")[-2:])
    return textwrap.fill(name.replace(" px", "\u00a0px"), 20)  # a number stays with its unit
