"""Learning the prompt of a cell, and measuring it on all six models."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samples.by_hand import BY_HAND, Changed, Picture
from samples.zoo.models import CANVAS
from tvp.export.evaluate import asked_bundle
from tvp.trainer import cameras
from tvp.trainer.calibration import applied, offsets_of
from tvp.trainer.config import make_config
from tvp.trainer.data import Data
from tvp.trainer.evaluate import Accuracy, accuracy, ask, judge
from tvp.trainer.families import Family
from tvp.trainer.features import features
from tvp.trainer.losses import distance, length
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.train import train

from .cells import AUTO, BAD, METHODS, MOST_STEPS, PHOTOS, WEIGHTS, Cell
from .data import N_TRAIN, N_VALIDATION, TASK, Joined, measured, task_of, trained_on

# The bad camera, with its darkness, its cast and its noise guessed by a third too strong or too weak.
GUESSED = {
    "camera a third stronger": "gain=0.24,cast=1/0.493/0.173,noise=0.0533",
    "camera a third weaker": "gain=0.427,cast=1/0.747/0.587,noise=0.0267",
}
# Who guesses may say so, with a range of two thirds to one and a half of each guess; or let each picture be normalised.
GUESSED |= {
    "camera a third stronger, a range": "gain=0.16..0.36,cast=1/0.24..0.662/0.05..0.449,noise=0.0355..0.08",
    "camera a third weaker, a range": "gain=0.285..0.64,cast=1/0.62..0.831/0.38..0.725,noise=0.0178..0.04",
    **{f"{change}, normalised": camera for change, camera in GUESSED.items()},
}
VEHICLES = ("airplane", "automobile", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
FULL = Geometry(CANVAS, CANVAS)
N_CALIBRATED = 2048  # pictures without answers
N_DISTANCES, BATCH = 256, 32  # pictures


def learn(cell: Cell, models: dict[str, Family], overrides: dict[str, Any], file: Path) -> dict[str, Any]:
    """Learn the cell's prompt and write it to a file; returns what the run says of it."""
    method = METHODS[cell.method]
    if method["method"] == "lens" and cell.camera != BAD:
        method = method | AUTO | {"steps": min(method["steps"], MOST_STEPS)}
    if cell.content == "photos" and method["method"] == "lens" and not method.get("frame"):
        method = PHOTOS | method
    settings = {
        "models": tuple(f"zoo:{name}" for name in cell.sources),
        "task": TASK[cell.content],
        "seed": cell.seed,
        "n_validation": N_VALIDATION,
        "guard_model": "none",  # every prompt is reported, whatever it does
        "keep": "last",
        **method,
        **WEIGHTS.get(cell.change, {}),
        **({"lens_start": "normalise"} if cell.change.endswith("normalised") else {}),
        **overrides,
    }
    data, like = training_data(cell)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(settings)
        done = train(config, folder, [models[name] for name in cell.sources], data, quiet=True, like=like)
    done.prompt.save(file)
    file.with_suffix(".png").unlink(missing_ok=True)  # the prompt is in the file
    design = done.prompt.lens.describe() if done.prompt.lens else {}
    return {"seconds": round(time.perf_counter() - began, 1), "chosen": done.chosen, "lens": design,
            "settings": {k: v for k, v in settings.items() if k not in ("models", "task", "seed")}}  # fmt: skip


def training_data(cell: Cell) -> tuple[Data, Data | None]:
    """The cell's pictures, and for a method without pairs other good ones."""
    n = 64 if cell.change == "64 pictures" else N_TRAIN
    camera = GUESSED.get(cell.change, cell.camera)
    few = N_VALIDATION if n > 64 else 0
    data: Data
    if cell.change == "scenes and photos":
        halves = (trained_on(content, camera, cell.seed, (n + few) // 2) for content in ("scenes", "photos"))
        return Joined(list(halves), cell.seed), None
    if cell.change == "disjoint classes":
        data = trained_on("photos", camera, cell.seed, n + few, (*VEHICLES, "horse"))
        return data, trained_on("photos", "none", cell.seed + 1000, n + few, ANIMALS[:-1])
    if cell.change == "classes 80 to 20":
        return (
            _mixed(camera, cell.seed, n + few, VEHICLES, ANIMALS),
            _mixed("none", cell.seed + 1000, n + few, ANIMALS, VEHICLES),
        )
    data = trained_on(cell.content, camera, cell.seed, n + few)
    like = trained_on(cell.content, "none", cell.seed + 1000, n + few) if cell.method == "unpaired" else None
    return data, like


def _mixed(camera: str, seed: int, n: int, most: tuple[str, ...], few: tuple[str, ...]) -> Data:
    """Photos of which four of five are of one group of classes."""
    parts = [trained_on("photos", camera, seed, m, c) for m, c in ((n * 4 // 5, most), (n // 5, few))]
    return Joined(parts, seed)


def inverse(picture: Picture) -> Picture:
    """Undo the bad camera's gain and cast exactly. It knows the camera, so it is an oracle; the noise stays."""
    gain = np.ones(3)
    for part in cameras.parse(BAD).parts:
        if part.kind in ("gain", "cast"):
            gain = gain * np.asarray(part.values)
    return np.clip(np.rint(picture / gain), 0, 255).astype(np.uint8)


WITHOUT_LEARNING: dict[str, Callable[[Picture], Picture]] = {**BY_HAND, "the camera's inverse": inverse}
# Frames before training: they show how much the picture's smaller place alone costs.
BLACK = {"black frame of evp": "evp", "black frame of tvp": "tvp"}


def black(content: str, method: str) -> Prompt:
    """The frame of a method before training."""
    config = make_config({"models": ("none",), "task": TASK[content], "method": method})
    return Prompt.start(Geometry(CANVAS, config.inner, placement=config.placement), "free")


Scores = dict[str, dict[str, Any]]


def score(
    content: str,
    split: str,
    camera: str,
    models: dict[str, Family],
    prompt: Prompt | None = None,
    change: Callable[[Picture], Picture] | None = None,
) -> Scores:
    """Return for each model its accuracy, and which questions were answered right, in hexadecimal.

    With a prompt there are two distances of the features that enter the language model, as shares of the length of
    the clean picture's: `drift`, from the spoilt picture's, and `to clean`.
    """
    data = measured(content, split, camera)
    data = Changed(data, change) if change else data
    task = replace(task_of(content, camera), camera=None)
    found = {}
    for name, family in models.items():
        result = accuracy(family, data, prompt.geometry if prompt else FULL, prompt, task)
        found[name] = in_short(result) | (distances(family, data, prompt) if prompt and camera != "none" else {})
    return found


def score_calibrated(content: str, split: str, camera: str, models: dict[str, Family]) -> Scores:
    """The same with the labels of questions calibrated on training pictures without answers."""
    data, unlabelled = measured(content, split, camera), trained_on(content, camera, 1, N_CALIBRATED)
    task = replace(task_of(content, camera), camera=None)
    found = {}
    for name, family in models.items():
        offsets = offsets_of(ask(family, unlabelled, FULL, None, task))
        found[name] = in_short(judge(applied(offsets, ask(family, data, FULL, None, task))))
    return found


def score_bundle(content: str, split: str, camera: str, models: dict[str, Family], prompt: Prompt) -> Scores:
    """The same of bundles, asked through the sdk."""
    data = measured(content, split, camera)
    task = replace(task_of(content, camera), camera=None)
    found = {}
    for name, family in models.items():
        with asked_bundle(f"zoo:{name}", family, prompt, task, data) as asked:
            found[name] = in_short(judge(asked(data)))
    return found


def in_short(result: Accuracy) -> dict[str, Any]:
    return {"accuracy": round(result.accuracy, 5), "right": pack(result.right)}


@torch.no_grad()
def distances(family: Family, data: Data, prompt: Prompt) -> dict[str, float]:
    """How far a prompt moves the features away from the spoilt picture's, and how far they are from the clean one's."""
    geometry, totals = prompt.geometry, np.zeros(3)

    def seen(canvas: Tensor) -> Tensor:
        return features(family, family.to_pixels(canvas))[1][-1]

    n = min(N_DISTANCES, len(data))
    for start in range(0, n, BATCH):
        samples = [data[i] for i in range(start, min(start + BATCH, n))]
        spoilt = geometry.show([sample.picture for sample in samples])
        clean = FULL.show([sample.clean for sample in samples if sample.clean is not None])
        prompted, reference = seen(prompt.on(spoilt)), seen(clean)
        totals += [
            distance(prompted, seen(spoilt)).sum().item(),
            distance(prompted, reference).sum().item(),
            length(reference).sum().item(),
        ]
    drift, to_clean = (round(float(total / totals[2]), 4) for total in totals[:2])
    return {"drift": drift, "to clean": to_clean}


def pack(right: NDArray[np.bool_]) -> str:
    return np.packbits(right).tobytes().hex()


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:n].astype(bool)
