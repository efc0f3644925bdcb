"""Learning the prompt of a cell, and measuring it on all six models."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samples.by_hand import BY_HAND, Changed, Picture
from samples.zoo.models import CANVAS
from tvp.trainer import cameras
from tvp.trainer.config import make_config
from tvp.trainer.data import Data
from tvp.trainer.evaluate import accuracy
from tvp.trainer.families import Family
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.train import train

from .cells import AUTO, BAD, METHODS, PHOTOS, Cell
from .data import N_TRAIN, N_VALIDATION, TASK, Joined, measured, task_of, trained_on

# The bad camera, with its darkness, its cast and its noise guessed by a third too strong or too weak.
GUESSED = {
    "camera a third stronger": "gain=0.24,cast=1/0.493/0.173,noise=0.0533",
    "camera a third weaker": "gain=0.427,cast=1/0.747/0.587,noise=0.0267",
}
VEHICLES = ("airplane", "automobile", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
FULL = Geometry(CANVAS, CANVAS)


def learn(cell: Cell, models: dict[str, Family], overrides: dict[str, Any], file: Path) -> dict[str, Any]:
    """Learn the cell's prompt and write it to a file; returns what the run says of it."""
    method = METHODS[cell.method]
    if method["method"] == "lens" and cell.camera != BAD:
        method = method | AUTO
    if cell.content == "photos" and method["method"] == "lens" and not method.get("frame"):
        method = PHOTOS | method
    settings = {
        "models": tuple(f"zoo:{name}" for name in cell.sources),
        "task": TASK[cell.content],
        "seed": cell.seed,
        "n_validation": N_VALIDATION,
        "guard_model": "none",  # every lens is reported, whatever it does to others
        **method,
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


def score(
    content: str,
    split: str,
    camera: str,
    models: dict[str, Family],
    prompt: Prompt | None = None,
    change: Callable[[Picture], Picture] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return for each model its accuracy, and which questions were answered right, in hexadecimal."""
    data = measured(content, split, camera)
    data = Changed(data, change) if change else data
    task = replace(task_of(content, camera), camera=None)
    found = {}
    for name, family in models.items():
        result = accuracy(family, data, prompt.geometry if prompt else FULL, prompt, task)
        found[name] = {"accuracy": round(result.accuracy, 5), "right": pack(result.right)}
    return found


def pack(right: NDArray[np.bool_]) -> str:
    return np.packbits(right).tobytes().hex()


def unpack(text: str, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:n].astype(bool)
