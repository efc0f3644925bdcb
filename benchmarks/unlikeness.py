"""Does unlikeness tell that the camera has changed? `python -m benchmarks.unlikeness --photos FOLDER …`.

Three models of the zoo, scenes and photos of CIFAR-10. Each model is exported with a lens for the bad camera, with the
moments of 8, 16, 64 or 256 pictures, and then sees 512 others: through that camera, through another one in its place,
and through another one behind it. The same without a lens, for a camera that spoils nothing. The area under the curve
(AUC) is the chance that the mean unlikeness of ten pictures is larger through the changed camera than through its own;
of single pictures, it stands beside that. `together` is that of `sdk.unlikeness` of the ten: the distance of the mean
of their numbers. Prints a table, and writes unlikeness.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine
from tvp import sdk
from tvp.export.bundle import export
from tvp.export.moments import N_PICTURES, features_by
from tvp.sdk.formats.moments import Moments, describe
from tvp.trainer import cameras, tasks
from tvp.trainer.data import Scenes
from tvp.trainer.prompt import Prompt

MODELS = ("zoo:blip2", "zoo:smolvlm", "zoo:qwen2vl")
BAD = str(cameras.NAMED["bad"])
OTHERS = ("noise:4", "fog:4", "contrast:4", "motion:4", "resolution:4")
COUNTS = (8, 16, 64, 256)  # pictures behind the moments
N_TEST, N_WINDOWS, WINDOW = 512, 4000, 10
Rows = NDArray[np.float64]


def pictures(content: str, photos: str) -> list[NDArray[np.uint8]]:
    """Clean pictures: those for the moments, and behind them those for the test."""
    n = max(COUNTS) + N_TEST
    if content == "scenes":
        drawn = Scenes(n, seed=99)
        return [drawn[i].picture for i in range(n)]
    data = tasks.open_data(photos, tasks.get("cifar10"), "test", n, seed=0)
    chosen = np.random.default_rng(0).permutation(len(data))[:n].tolist()
    return [data[i].picture for i in chosen]


def numbers(task: sdk.Task, clean: Sequence[NDArray[np.uint8]], camera: str, first: int) -> Rows:
    """The numbers of pictures that a camera has taken, (n_pictures, n)."""
    shoot, features = cameras.parse(camera).shoot, features_by(task)
    return np.stack([describe(features(shoot(picture, (5, first + i)))) for i, picture in enumerate(clean)])


def auc(own: Rows, other: Rows) -> float:
    """The chance that a value of the other camera is the larger one; half of it where they are equal."""
    own = np.sort(own)
    below = np.searchsorted(own, other, "left") + np.searchsorted(own, other, "right")
    return float(below.mean() / 2 / len(own))


def compare(own: Rows, others: dict[str, Rows], usual: Rows) -> dict[str, Any]:
    """What moments of some pictures say of a test's pictures."""
    moments, rng = Moments.of(list(usual)), np.random.default_rng(0)

    def measured(rows: Rows) -> tuple[Rows, Rows, Rows]:
        one = np.array([moments.unlikeness(row[None]) for row in rows])
        windows = rng.integers(0, len(rows), (N_WINDOWS, WINDOW))
        mean = ((rows - moments.mean) / moments.spread)[windows].mean(1)
        return one, one[windows].mean(1), np.sqrt((mean**2).mean(1))

    single, ten, together = measured(own)
    facts: dict[str, Any] = {
        "own": float(single.mean()),
        "own_ten_999": float(np.quantile(ten, 0.999)),
        "own_single_99": float(np.quantile(single, 0.99)),
        "own_together": float(together.mean()),
        "own_together_999": float(np.quantile(together, 0.999)),
        "cameras": {},
    }
    for name, rows in others.items():
        one, of_ten, at_once = measured(rows)
        facts["cameras"][name] = {
            "unlikeness": float(one.mean()),
            "ten": auc(ten, of_ten),
            "single": auc(single, one),
            "together": auc(together, at_once),
        }
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="folder of CIFAR-10: parquet, or as torchvision has it")
    parser.add_argument("--scenes-lens", required=True, help="prompt file: a lens for the bad camera, on scenes")
    parser.add_argument("--photos-lens", required=True, help="prompt file: a lens for the bad camera, on photos")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'':<38}{'own':>6}{'99.9%':>6}" + "".join(f"{name:>23}" for name in OTHERS))
    print("AUC of the mean of ten pictures (of one picture) times unlikeness")
    for content in ("scenes", "photos"):
        clean = pictures(content, arguments.photos)
        lens = Prompt.load(arguments.scenes_lens if content == "scenes" else arguments.photos_lens)
        for model in MODELS:
            for setting, prompt, camera in (("lens", lens, BAD), ("no lens", None, "none")):
                with tempfile.TemporaryDirectory() as folder:
                    export(model, tasks.get("bad-camera"), Path(folder) / "bundle", prompt=prompt, n_cases=1)
                    with sdk.load(Path(folder) / "bundle", threads=1) as task:
                        seen = numbers(task, clean, camera, 0)
                        usual, own = seen[:-N_TEST], seen[-N_TEST:]
                        test, first = clean[-N_TEST:], len(usual)
                        instead = {name: numbers(task, test, name, first) for name in OTHERS}
                        behind = {}
                        if prompt is not None:
                            behind = {name: numbers(task, test, f"{camera},{name}", first) for name in OTHERS}
                for how, others in (("instead", instead), ("behind it", behind)):
                    for n in COUNTS if others else ():
                        row = {"content": content, "model": model, "setting": setting, "changed": how, "n": n}
                        rows.append(row | compare(own, others, usual[:n]))
                        if n == N_PICTURES:
                            show(rows[-1])
    facts = {"command": "python -m benchmarks.unlikeness", **machine("onnxruntime", "numpy")}
    Path(__file__).with_suffix(".json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def show(row: dict[str, Any]) -> None:
    name = f"{row['content']:<7}{row['model']:<12}{row['setting']:<8}{row['changed']:<10}"
    cells = [f"{c['ten']:.3f} ({c['single']:.3f}) x{c['unlikeness']:.2f}".rjust(23) for c in (row["cameras"].values())]
    print(f"{name:<38}{row['own']:>6.2f}{row['own_ten_999']:>6.2f}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
