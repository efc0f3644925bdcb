"""The cells of the study, in the order in which they are learned: what matters most comes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BAD = "bad"
CONTENTS = ("scenes", "photos")
OTHER = {"scenes": "photos", "photos": "scenes"}
SINGLE: tuple[tuple[str, ...], ...] = (("blip2",), ("smolvlm",), ("qwen2vl",))
SEVERAL: tuple[tuple[str, ...], ...] = (("smolvlm", "qwen2vl"), ("blip2", "qwen2vl"))
SEEDS = (1, 2, 3)
# Camera by camera: a main one, five that a lens may undo, JPEG, and a family of which every picture has its own.
FAMILY = "gain=0.2..1,cast=0.6..1/0.5..1/0.38..1,noise=0..0.06"
MIDDLE = "gain=0.6,cast=0.8/0.75/0.69,noise=0.03"  # of each range of the family
CAMERAS = ("noise:4", "fog:4", "contrast:4", "resolution:4", "motion:4", "jpeg:5", FAMILY)

# Settings in place of those of the method's and the task's shipped files. Chosen on validation pictures.
LENS: dict[str, Any] = {"method": "lens", "lens": "conv", "lens_start": "identity"}
METHODS: dict[str, dict[str, Any]] = {
    "vp": {"method": "vp"},
    "evp": {"method": "evp"},
    "tvp": {"method": "tvp"},
    "tvp, released update": {"method": "tvp", "update": "normalized", "lr": 1.5, "steps": 250},
    "pairs": {**LENS, "learn_from": "pairs", "steps": 800},
    "unpaired": {**LENS, "learn_from": "unpaired", "batch": 48, "steps": 300},
    "answers": {**LENS, "learn_from": "answers", "fca": 0.0, "steps": 200},
    "answers and pairs": {**LENS, "learn_from": "answers", "steps": 200},
    "answers and TSE": {**LENS, "learn_from": "answers", "fca": 0.0, "tse": 0.004, "steps": 200},
    "pixels": {**LENS, "learn_from": "pixels", "steps": 600},
    "lens and frame": {**LENS, "learn_from": "answers", "steps": 200, "frame": True, "placement": "over",
                       "inner": 56, "lr": 0.01},
}  # fmt: skip
# For the lenses of other cameras the start is chosen by trying, and they take half as long.
AUTO = {"lens_start": "auto"}
MOST_STEPS = 400
# Noise has the size of a pixel where the photos have their own size, and a lens's kernels reach further there.
PHOTOS = {"canvas": 32}  # for lenses alone; models that take 64 px enlarge the canvas themselves
# What FCA and TSE add to a frame: weights in place of tvp's own. An absolute distance has the length of the features.
WEIGHTS: dict[str, dict[str, Any]] = {
    "neither": {"fca": 0.0, "tse": 0.0},
    "FCA 0.005": {"fca": 0.005, "tse": 0.0},
    "FCA 0.05": {"fca": 0.05, "tse": 0.0},
    "FCA 0.5": {"fca": 0.5, "tse": 0.0},
    "relative FCA 0.1": {"fca": 0.1, "tse": 0.0, "relative": True},
    "relative FCA 1": {"fca": 1.0, "tse": 0.0, "relative": True},
    "TSE 0.004": {"fca": 0.0, "tse": 0.004},
    "TSE 0.04": {"fca": 0.0, "tse": 0.04},
    "FCA 0.05 and TSE 0.004": {"fca": 0.05, "tse": 0.004},
}


@dataclass(frozen=True)
class Cell:
    """One prompt of the study.

    Args:
        content: `scenes` or `photos`, what the prompt is learned on.
        camera: as `tvp.trainer.cameras` reads it.
        method: a key of METHODS.
        sources: models of the zoo.
        seed: of the pictures, of their order, and of the lens's start.
        change: what is not as in the other cells, in words; '' for nothing. See `_changed`.
    """

    content: str
    camera: str
    method: str
    sources: tuple[str, ...]
    seed: int = 1
    change: str = ""

    @property
    def name(self) -> str:
        """The cell in one word, which is also a file's name."""
        parts = [self.content, in_name(self.camera), self.method, "+".join(self.sources), str(self.seed), self.change]
        return ".".join(part.replace(" ", "-").replace(",", "") for part in parts if part)


def in_name(camera: str) -> str:
    """Return a camera as names of rows and of files have it."""
    return {FAMILY: "family", MIDDLE: "middle of the family"}.get(camera, camera.replace(":", ""))


# The prompts that are measured in 8 bits and as ONNX bundles too.
EXPORTED = [Cell(content, BAD, "pairs", ("blip2",)) for content in CONTENTS]


def elsewhere(cell: Cell) -> Iterator[tuple[str, str, str]]:
    """Where else the cell's prompt is measured: content, camera, and the change in words."""
    if cell in EXPORTED:
        yield OTHER[cell.content], cell.camera, f"learned on {cell.content}"
    if cell.change == "scenes and photos":
        yield OTHER[cell.content], cell.camera, cell.change
    if cell.camera == FAMILY and cell.method == "pairs":
        yield cell.content, MIDDLE, "learned on the family"
        yield cell.content, "none", "learned on the family"


def cells() -> Iterator[Cell]:
    """All cells."""
    for method in ("pairs", "unpaired"):
        yield from _all_sources(method)
    yield from _contents("pixels", ("blip2",))
    yield from _changed()
    for method in ("pairs", "unpaired", "pixels"):
        yield from _cameras(method)
    for method in ("answers", "tvp", "lens and frame", "answers and pairs", "tvp, released update", "evp", "vp"):
        for sources in SINGLE:
            yield from _contents(method, sources)
    # What cannot be undone: a lens that is learned on each model itself, with answers.
    yield from (Cell("scenes", camera, "answers", sources) for camera in ("jpeg:5", "motion:4") for sources in SINGLE)
    yield from _weights()
    for seed in SEEDS[1:]:
        for method in ("pairs", "unpaired", "answers", "tvp"):
            for sources in SINGLE:
                yield from _contents(method, sources, seed)
    for method in ("answers", "tvp", "lens and frame", "answers and pairs", "tvp, released update", "evp", "vp"):
        for sources in SEVERAL:
            yield from _contents(method, sources)


def _contents(method: str, sources: tuple[str, ...], seed: int = 1) -> Iterator[Cell]:
    yield from (Cell(content, BAD, method, sources, seed) for content in CONTENTS)


def _all_sources(method: str) -> Iterator[Cell]:
    for sources in (*SINGLE, *SEVERAL):
        yield from _contents(method, sources)


def _cameras(method: str) -> Iterator[Cell]:
    for content in CONTENTS:
        for sources in SINGLE[:1] if method == "pixels" else SINGLE[:1] + SEVERAL[:1]:
            yield from (Cell(content, camera, method, sources) for camera in CAMERAS)


def _changed() -> Iterator[Cell]:
    yield Cell("photos", BAD, "unpaired", ("blip2",), 1, "classes 80 to 20")
    yield Cell("photos", BAD, "unpaired", ("blip2",), 1, "disjoint classes")
    yield Cell("scenes", BAD, "pairs", ("blip2",), 1, "scenes and photos")
    for content in CONTENTS:
        yield Cell(content, BAD, "pairs", ("blip2",), 1, "64 pictures")
        yield Cell(content, BAD, "pairs", ("blip2",), 1, "camera a third stronger")
        yield Cell(content, BAD, "pairs", ("blip2",), 1, "camera a third weaker")

    for guess in ("a third stronger", "a third weaker"):
        for way in ("a range", "normalised"):
            yield Cell("scenes", BAD, "pairs", ("blip2",), 1, f"camera {guess}, {way}")


def _weights() -> Iterator[Cell]:
    for seed in SEEDS:
        for content in ("counting", "photos"):
            yield from (Cell(content, BAD, "tvp", ("blip2",), seed, weights) for weights in WEIGHTS)
            for method in ("answers", "answers and pairs", "answers and TSE"):
                if content == "counting" or method == "answers and TSE":
                    yield Cell(content, BAD, method, ("blip2",), seed)
