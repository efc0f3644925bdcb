"""The demo's page: one HTML file with everything in it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tvp.export.parity import Parity
from tvp.trainer.evaluate import Accuracy
from tvp.trainer.train import TrainResult

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.7rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
table{border-collapse:collapse;width:100%} th,td{text-align:left;padding:.45rem .6rem;border-bottom:1px solid #dde3ea}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} small,figcaption{color:#5a6675}
.row{display:flex;flex-wrap:wrap;gap:.8rem} figure{margin:0} img.px{image-rendering:pixelated;width:8rem;height:8rem}
.up{color:#0a7a3d;font-weight:600} .down{color:#b3261e;font-weight:600} img.plot{width:100%}
"""


@dataclass
class Row:
    """One model's accuracies."""

    model: str
    role: str
    clean: Accuracy | None = None
    full: Accuracy | None = None
    prompted: Accuracy | None = None
    parity: Parity | None = None


def write_report(
    file: Path,
    rows: Sequence[Row],
    trained: TrainResult,
    pictures: Sequence[NDArray[np.uint8]],
    prompted: Tensor,
    answers: Sequence[tuple[Path, str, str, str, float]],
    chance: float,
) -> None:
    """Write the page; no other file is needed to look at it."""
    levels = (
        (prompted.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    )  # (n, 3, h, w) -> (n, h, w, 3)
    table = "".join(_table_row(row) for row in rows)
    before = "".join(_figure(picture, "") for picture in pictures)
    after = "".join(_figure(picture, "") for picture in levels)
    asked = "".join(
        f"<tr><td>{_image(np.asarray(Image.open(path)))}</td><td>{html.escape(question)}</td>"
        f"<td class='{'up' if answer == right else 'down'}'>{html.escape(answer)}</td>"
        f"<td>{html.escape(right)}</td><td class='n'>{seconds * 1e3:.1f} ms</td></tr>"
        for path, question, answer, right, seconds in answers
    )
    frame = trained.prompt.frame.permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
    largest = float(np.abs(frame).max()) or 1.0
    stretched = ((0.5 + frame / (2 * largest)) * 255).round().astype(np.uint8)
    n = rows[0].prompted.n if rows[0].prompted else 0
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TVP: a frame of pixels</title><style>{STYLE}</style>
<h1>A bad camera, corrected by a frame of pixels</h1>
<p>The frame below was learned on one frozen model. No weight of any model was changed.
<small>{n} held-out questions; the range is a 95 % bootstrap interval; a blind guesser reaches {chance:.0%}.</small></p>
<h2>Accuracy</h2>
<table><tr><th>model</th><th class="n">clean scenes</th><th class="n">bad camera</th>
<th class="n">with the prompt</th><th class="n">change</th><th>exported</th></tr>{table}</table>
<h2>The prompt, and what the models are shown</h2>
<div class="row">{_figure(stretched, f"the learned frame; white is {largest:+.3f}, black {-largest:+.3f}")}</div>
<p><small>What the camera records:</small></p><div class="row">{before}</div>
<p><small>What the models are shown:</small></p><div class="row">{after}</div>
<h2>Training</h2>{_curves(trained)}
<h2>Asked through the sdk</h2>
<table><tr><th>picture</th><th>question</th><th>answer</th><th>right answer</th><th class="n">time</th></tr>
{asked}</table>
</html>
"""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(file)


def _table_row(row: Row) -> str:
    change = (row.prompted.accuracy - row.full.accuracy) * 100 if row.prompted and row.full else float("nan")
    cells = "".join(f"<td class='n'>{_percent(value)}</td>" for value in (row.clean, row.full, row.prompted))
    parity = f"{row.parity.tokens_equal} of {row.parity.n_cases} answers equal" if row.parity else ""
    return (
        f"<tr><td>{html.escape(row.model)}<br><small>{row.role}</small></td>{cells}"
        f"<td class='n {'up' if change > 0 else 'down'}'>{change:+.1f}</td><td><small>{parity}</small></td></tr>"
    )


def _percent(value: Accuracy | None) -> str:
    if value is None:
        return ""
    return f"{value.accuracy:.1%}<br><small>{value.low:.1%} … {value.high:.1%}</small>"


def _image(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return _embedded(buffer, "px", "")


def _embedded(png: io.BytesIO, kind: str, about: str) -> str:
    data = base64.b64encode(png.getvalue()).decode()
    return f"<img class='{kind}' alt='{about}' src='data:image/png;base64,{data}'>"


def _figure(picture: NDArray[np.uint8], caption: str) -> str:
    return f"<figure>{_image(picture)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _curves(trained: TrainResult) -> str:
    """The loss's parts and the validation accuracy, over steps."""
    names: dict[str, str] = {"answer": "answer loss", "fca": "feature consistency", "tse": "task semantics"}
    names = {key: title for key, title in names.items() if key in trained.steps[0]}
    figure: Any
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(3.2 * (len(names) + 1), 2.6), layout="constrained")
    for axis, (key, title) in zip(axes, names.items(), strict=False):
        values = np.array([step[key] for step in trained.steps])
        window = max(1, len(values) // 25)
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        axis.plot(range(1, len(values) + 1), values, alpha=0.25, color="#2f6fde")
        axis.plot(range(window, len(values) + 1), smooth, color="#2f6fde")
        axis.set_title(title, fontsize=10)
    axes[-1].plot(
        [v["step"] for v in trained.validations],
        [v["accuracy"] * 100 for v in trained.validations],
        "o-",
        color="#0a7a3d",
    )
    axes[-1].set_title("validation accuracy, %", fontsize=10)
    for axis in axes:
        axis.set_xlabel("step", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    plt.close(figure)
    return _embedded(buffer, "plot", "training curves")
