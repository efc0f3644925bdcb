"""The cells of the study, in the order in which they are learned: what matters most comes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BAD = "bad"
CONTENTS = ("scenes", "photos")
SINGLE = (("blip2",), ("smolvlm",), ("qwen2vl",))
SEVERAL = (("smolvlm", "qwen2vl"), ("blip2", "qwen2vl"))
SEEDS = (1, 2, 3)
# Camera by camera: a main one, five that a lens may undo, JPEG, and a family of which every picture has its own.
FAMILY = "gain=0.2..1,cast=0.6..1/0.5..1/0.38..1,noise=0..0.06"
CAMERAS = ("noise:4", "fog:4", "contrast:4", "resolution:4", "motion:4", "jpeg:5", FAMILY)
LENS: dict[str, Any] = {"method": "lens", "lens": "conv", "lens_start": "identity"}
AUTO = {"lens_start": "auto"}  # a camera that is new: the start is chosen by trying

# Settings in place of those of the method's and the task's shipped files. Chosen on validation pictures.
METHODS: dict[str, dict[str, Any]] = {
    "vp": {"method": "vp"},
    "evp": {"method": "evp"},
    "tvp": {"method": "tvp"},
    "tvp, released update": {"method": "tvp", "update": "normalized", "lr": 1.5, "steps": 250},
    "pairs": {**LENS, "learn_from": "pairs", "steps": 800},
    "unpaired": {**LENS, "learn_from": "unpaired", "batch": 48, "steps": 300},
    "answers": {**LENS, "learn_from": "answers", "fca": 0.0, "steps": 200},
    "answers and pairs": {**LENS, "learn_from": "answers", "steps": 200},
    "pixels": {**LENS, "learn_from": "pixels", "steps": 600},
    "lens and frame": {**LENS, "learn_from": "answers", "steps": 200, "frame": True, "placement": "over",
                       "inner": 56, "lr": 0.01},
}  # fmt: skip
# Noise has the size of a pixel where the photos have their own size, and a lens's kernels reach further there.
PHOTOS = {"canvas": 32}  # for lenses alone; models that take 64 px enlarge the canvas themselves


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
    return "family" if camera == FAMILY else camera.replace(":", "")


# The prompts that are measured in 8 bits too.
IN_EIGHT_BITS = [Cell(content, BAD, "pairs", ("blip2",)) for content in CONTENTS]


def cells() -> Iterator[Cell]:
    """All cells."""
    yield from _main(1)
    yield from _others()
    yield from _changed()
    for seed in SEEDS[1:]:
        for content in CONTENTS:
            for method in ("pairs", "unpaired", "answers", "tvp"):
                yield from (Cell(content, BAD, method, sources, seed) for sources in SINGLE)


def _main(seed: int) -> Iterator[Cell]:
    for method in ("pairs", "unpaired"):
        for sources in (*SINGLE, *SEVERAL):
            yield from (Cell(content, BAD, method, sources, seed) for content in CONTENTS)
    yield from (Cell(content, BAD, "pixels", ("blip2",), seed) for content in CONTENTS)
    for method in ("answers", "answers and pairs", "tvp", "tvp, released update", "lens and frame", "evp", "vp"):
        for sources in (*SINGLE, *SEVERAL):
            yield from (Cell(content, BAD, method, sources, seed) for content in CONTENTS)


def _others() -> Iterator[Cell]:
    for camera in CAMERAS:
        for method, sources in (
            ("pairs", ("blip2",)),
            ("pairs", ("smolvlm", "qwen2vl")),
            ("unpaired", ("blip2",)),
            ("unpaired", ("smolvlm", "qwen2vl")),
            ("pixels", ("blip2",)),
        ):
            yield from (Cell(content, camera, method, sources) for content in CONTENTS)


def _changed() -> Iterator[Cell]:
    for content in CONTENTS:
        yield Cell(content, BAD, "pairs", ("blip2",), 1, "64 pictures")
        yield Cell(content, BAD, "pairs", ("blip2",), 1, "camera a third stronger")
        yield Cell(content, BAD, "pairs", ("blip2",), 1, "camera a third weaker")
    yield Cell("scenes", BAD, "pairs", ("blip2",), 1, "scenes and photos")
    yield Cell("photos", BAD, "unpaired", ("blip2",), 1, "classes 80 to 20")
    yield Cell("photos", BAD, "unpaired", ("blip2",), 1, "disjoint classes")
