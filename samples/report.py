"""The demo's page: one HTML file with everything in it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tvp.export.parity import Parity
from tvp.trainer.data import Data, Question
from tvp.trainer.evaluate import Accuracy
from tvp.trainer.scenes import CHANCE
from tvp.trainer.showing import behind, lens_sheet
from tvp.trainer.train import TrainResult

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.7rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
table{border-collapse:collapse;width:100%} th,td{text-align:left;padding:.45rem .6rem;border-bottom:1px solid #dde3ea}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums} small,figcaption{color:#5a6675}
tr.lens td{font-weight:600;background:#f1f6ff} .scroll{overflow-x:auto}
.three{display:grid;grid-template-columns:repeat(3,8rem);gap:.5rem} img.px{image-rendering:pixelated;width:8rem}
.up{color:#0a7a3d;font-weight:600} .down{color:#b3261e;font-weight:600} img.plot{width:100%}
"""
N_SHOWN = 6


@dataclass(frozen=True)
class Asked:
    """A question to the exported task: the answer without the lens, with it, and the right one; seconds with it."""

    picture: NDArray[np.uint8]
    question: Question
    without: str
    answer: str
    seconds: float


def write_report(
    file: Path,
    roles: Mapping[str, str],
    table: Mapping[str, Mapping[str, Accuracy]],
    parity: Mapping[str, Parity],
    trained: TrainResult,
    pictures: tuple[Data, Data],
    asked: Sequence[Asked],
) -> None:
    """Write the page; no other file is needed to look at it.

    Args:
        file: where to.
        roles: of each model, in words.
        table: a way of showing the pictures -> a model -> its accuracy.
        parity: of each exported model.
        trained: the lens and its training.
        pictures: the same ones clean and through the camera.
        asked: questions to the exported task.
    """
    lens = trained.prompt.lens
    assert lens is not None
    n = next(iter(table["clean"].values())).n
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TVP: a lens</title><style>{STYLE}</style>
<h1>A bad camera, put right by {lens.n_values:,} numbers</h1>
<p>They act on the picture itself. They were learned on one frozen model, from pictures alone: no question, no answer.
No weight of any model was changed.</p>
<h2>Accuracy</h2>
<div class="scroll"><table><tr><th>pictures</th>{_heads(roles)}</tr>{_rows(table)}{_parity_row(parity)}</table></div>
<p><small>{n} held-out questions; the range is a 95 % bootstrap interval; a blind guesser reaches {CHANCE:.0%}.
In brackets: the share of what the camera took that comes back.</small></p>
<h2>What the models are shown</h2>
<div class="three"><small>through the camera</small><small>behind the lens</small><small>clean</small>
{_pictures(trained, pictures)}</div>
<h2>The lens</h2><img class="plot" alt="kernels, colours and tone curves of the lens" src="{_data(lens_sheet(lens))}">
<h2>Training</h2>{_curves(trained)}
<h2>Asked through the sdk</h2>
<table><tr><th>picture</th><th>question</th><th>without the lens</th><th>with the lens</th><th>right answer</th>
<th class="n">time</th></tr>{_asked(asked)}</table>
</html>
"""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(file)


def _heads(roles: Mapping[str, str]) -> str:
    return "".join(f"<th class='n'>{html.escape(name)}<br><small>{role}</small></th>" for name, role in roles.items())


def _rows(table: Mapping[str, Mapping[str, Accuracy]]) -> str:
    clean, bad = table["clean"], table["through the camera"]
    rows = []
    for way, found in table.items():
        cells = []
        for name, result in found.items():
            lost = clean[name].accuracy - bad[name].accuracy
            share = (result.accuracy - bad[name].accuracy) / lost if found not in (clean, bad) and lost > 0 else None
            back = "" if share is None else f" <span class='{'up' if share > 0 else 'down'}'>({share:.0%})</span>"
            interval = f"<br><small>{result.low:.1%} … {result.high:.1%}</small>"
            cells.append(f"<td class='n'>{result.accuracy:.1%}{back}{interval}</td>")
        kind = " class='lens'" if way == "with the lens" else ""
        rows.append(f"<tr{kind}><td>{html.escape(way)}</td>{''.join(cells)}</tr>")
    return "".join(rows)


def _parity_row(parity: Mapping[str, Parity]) -> str:
    cells = [f"<td class='n'><small>{p.tokens_equal} of {p.n_cases} answers</small></td>" for p in parity.values()]
    return f"<tr><td><small>exported, equal to PyTorch</small></td>{''.join(cells)}</tr>"


def _pictures(trained: TrainResult, pictures: tuple[Data, Data]) -> str:
    clean, bad = ([data[i].picture for i in range(min(N_SHOWN, len(data)))] for data in pictures)
    rows = zip(bad, behind(trained.prompt, bad), clean, strict=True)
    return "".join(_image(picture) for row in rows for picture in row)


def _asked(asked: Sequence[Asked]) -> str:
    def answer(text: str, right: str) -> str:
        return f"<td class='{'up' if text == right else 'down'}'>{html.escape(text)}</td>"

    return "".join(
        f"<tr><td>{_image(one.picture)}</td><td>{html.escape(one.question.text)}</td>"
        f"{answer(one.without, one.question.answer)}{answer(one.answer, one.question.answer)}"
        f"<td>{html.escape(one.question.answer)}</td><td class='n'>{one.seconds * 1e3:.1f} ms</td></tr>"
        for one in asked
    )


def _image(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"<img class='px' alt='' src='{_data(buffer.getvalue())}'>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _curves(trained: TrainResult) -> str:
    """The loss over steps, in percent of the length of the clean picture's features."""
    figure: Any = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    values = 100 * np.array([step["fca"] for step in trained.steps])
    window = max(1, len(values) // 25)
    axis.plot(range(1, len(values) + 1), values, alpha=0.25, color="#2f6fde")
    axis.plot(range(window, len(values) + 1), np.convolve(values, np.ones(window) / window, "valid"), color="#2f6fde")
    axis.set_title("distance of the features from the clean picture's, %", fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return f"<img class='plot' alt='training curve' src='{_data(buffer.getvalue())}'>"
