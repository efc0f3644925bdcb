"""A lens bundle: a preprocessing graph that takes the place of a task's own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._models.graph_shapes import check_preprocess
from ._runtime.providers import ON_CPU
from ._runtime.sessions import open_session
from ._store import home
from .errors import BundleError, CheckError, near
from .formats.golden_pixels import A_LEVEL, FILE, PICTURE, read_golden_pixels
from .formats.integrity import refuse_links, verify
from .formats.manifest import LensManifest, PixelFacts, TaskManifest, read_lens_manifest
from .formats.moments import Moments, moments_in

log = logging.getLogger("tvp.sdk")

PREPROCESS = "preprocess.onnx"


@dataclass(frozen=True)
class OpenedPrompt:
    """A prompt that pictures are shown with: the session of its graph, and what is usual of pictures behind it.

    `moments` is None where that is not known.
    """

    preprocess: Any
    moments: Moments | None


@dataclass(frozen=True)
class OpenedLens(OpenedPrompt):
    """The prompt of a lens bundle that was opened for a task, with its folder and its manifest."""

    folder: Path
    manifest: LensManifest


def find_lens(lens: str | os.PathLike[str]) -> Path:
    """Return the folder of a lens bundle: the folder itself, or that of a name under $TVP_HOME/lenses.

    Raises:
        BundleError: there is no such folder, or it cannot be read.
    """
    path = Path(lens)
    known = home() / "lenses"
    try:
        if (path / "manifest.json").is_file():
            return path.absolute()
        if len(path.parts) == 1 and (known / path / "manifest.json").is_file():
            return (known / path).absolute()
        names = sorted(found.parent.name for found in known.glob("[!.]*/manifest.json"))
    except OSError as error:
        raise BundleError(f"The lens {os.fspath(lens)!r} cannot be read: {error.strerror or error}.") from error
    raise BundleError(
        f"There is no lens {os.fspath(lens)!r}: no folder of that path with a manifest.json, and {known} has "
        f"{', '.join(names) or 'no lenses'}.{near(os.fspath(lens), names)} `tvp export --lens … --without-base` makes "
        "one."
    )


def open_lens(
    lens: str | os.PathLike[str],
    task: TaskManifest,
    precision: str,
    encoder: Any,
    threads: int,
    verify_files: bool,
) -> OpenedLens:
    """Verify a lens bundle and open its graph for a task.

    Args:
        lens: a folder, or a name under $TVP_HOME/lenses.
        task: the task's manifest.
        precision: of the task's base.
        encoder: the session of the task's vision encoder.
        threads: that compute together.
        verify_files: whether to check every digest first; otherwise links are refused.

    Raises:
        BundleError: the bundle is missing or damaged, or it makes other pixel values than the task takes.
    """
    folder = find_lens(lens)
    manifest = read_lens_manifest(folder / "manifest.json")
    if task.pixels is None:
        raise BundleError(
            f"The task {task.name!r} was exported by an earlier TVP and does not say which pixel values it takes, so "
            "no lens can be compared with it. Export the task again."
        )
    if not manifest.pixels.fit(task.pixels):
        raise BundleError(
            f"The lens {manifest.name!r} does not fit the task {task.name!r}: it makes pixel values of "
            f"{manifest.pixels}, and the task takes {task.pixels}. Export the lens for the task's model."
        )
    for needed in (PREPROCESS, FILE, PICTURE):
        if needed not in manifest.files:
            raise BundleError(f"The manifest in {folder} does not list {needed}. Export the lens again.")
    (verify if verify_files else refuse_links)(folder, manifest.files)
    preprocess = open_session(folder / PREPROCESS, ON_CPU, manifest.files, threads)
    check_preprocess(preprocess, encoder)
    if "frame" in task.prompt and "frame" not in manifest.prompt:
        log.warning(
            "The lens %r takes the place of the whole prompt of the task %r, which has a frame; the lens bundle has "
            "none. To have both, export the lens with --lens, --frame and --without-base.",
            manifest.name,
            task.name,
        )
    if task.calibration:
        log.warning(
            "The calibration of the task %r was learned with its own prompt. Behind the lens %r it may not help.",
            task.name,
            manifest.name,
        )
    moments = moments_in(folder, manifest)
    weights = task.provenance.weights
    # They were measured in fp32, and hold for the features of the same model alone.
    known = weights and weights == manifest.provenance.weights and precision in ("fp32", "fp16")
    return OpenedLens(preprocess, moments if known else None, folder, manifest)


def check_lens(lens: OpenedLens, pixel_values: Callable[[Path], NDArray[np.float32]]) -> None:
    """Compare the pixel values of a lens bundle's golden picture with those that PyTorch made.

    Args:
        lens: the lens.
        pixel_values: returns the pixel values (1, 3, size, size) of a picture behind this lens.

    Raises:
        CheckError: one of them is more than a level of 1/255 off.
        BundleError: the golden pixels cannot be read.
    """
    golden, pixels = read_golden_pixels(lens.folder), lens.manifest.pixels
    if golden.size != pixels.size:
        raise BundleError(f"{lens.folder / FILE} is of {golden.size} px, and the lens of {pixels.size} px.")
    gap = golden.gap(pixel_values(lens.folder / PICTURE), pixels.std)
    if not gap <= A_LEVEL:
        raise CheckError(
            f"The lens {lens.manifest.name!r} does not do here what it did at its export: a pixel value is "
            f"{255 * gap:.2f} levels of 1/255 off, allowed is 1. Export or copy it again."
        )


def as_picture(pixel_values: NDArray[np.float32], pixels: PixelFacts) -> NDArray[np.uint8]:
    """Turn pixel values (1, 3, size, size) back into a picture, uint8 (size, size, 3)."""
    mean, std = (np.reshape(value, (3, 1, 1)) for value in (pixels.mean, pixels.std))
    levels = np.clip((pixel_values[0] * std + mean) * 255, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))  # (C, H, W) -> (H, W, C)
