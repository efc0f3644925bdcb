"""The export of a prompt without a base: a lens bundle, which tasks that are exported already are loaded with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from tvp.sdk.errors import CheckError, RequestError
from tvp.sdk.formats.golden_pixels import GoldenPixels, write_golden_pixels
from tvp.sdk.formats.integrity import list_files
from tvp.sdk.formats.manifest import LensManifest, ParityFacts, PixelFacts, write_manifest
from tvp.trainer import families
from tvp.trainer.families import Family
from tvp.trainer.progress import step
from tvp.trainer.prompt import Prompt

from .base import provenance
from .moments import features_of, moments_of
from .output import refuse_to_overwrite, restore, written_whole
from .parity import Parity, compare_pixels, pixel_values
from .preprocess import preprocess_graph
from .prompts import parts_of

log = logging.getLogger("tvp.export")

N_STEPS = 3  # that `export_lens` shows, see `tvp.trainer.progress`


def export_lens(
    model: str | Path,
    output: str | Path,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    prompt: str | Path | Prompt,
    family: Family | None = None,
    force: bool = False,
    usual: Iterable[NDArray[np.uint8]] = (),
) -> Parity:
    """Write a lens bundle to the folder `output`: preprocess.onnx, golden pixels and a manifest.

    It fits every task whose vision encoder takes pixel values of the same size, mean, spread and filter, whatever its
    model is; only the moments are about one model. Its prompt may have a lens, a frame or both.

    Args:
        model: a folder, a hub id or `zoo:NAME`. Its pixel format counts, and for `usual` its encoder.
        output: folder for the bundle. It must be new or empty. Its name becomes the lens's.
        pictures: uint8 (height, width, 3), at least one, whose pixel values are compared with PyTorch's.
        prompt: a prompt or its file.
        family: the same model, loaded. Default: it is loaded here.
        force: whether to replace the bundle at `output`. Default False.
        usual: the same kind of pictures, at least 8, whose features say what is usual, for `View.unlikeness` of tasks
            with the same model. Default: none; then the lens does not know.

    Returns:
        The report of the comparison; of it, only the figures about pixel values are measured.

    Raises:
        CheckError: the graph does not make PyTorch's pixel values. Nothing is written.
        BundleError: `output` exists already.
        RequestError: there are no pictures.
    """
    output = Path(output)
    if not len(pictures):
        raise RequestError("The comparison with PyTorch needs at least one picture.")
    restore(output)
    refuse_to_overwrite(output, force)
    prompt = prompt if isinstance(prompt, Prompt) else Prompt.load(prompt)
    step(f"loading {model}")
    family = family or families.load(model, canvas=prompt.geometry.canvas)
    with written_whole(output, force) as work:
        graph = preprocess_graph(prompt.geometry, family.pixel_format, prompt)
        onnx.save(graph, work / "preprocess.onnx")
        step(f"comparing {len(pictures)} pictures with PyTorch's")
        report = _measure(graph, family, prompt, pictures)
        if report.pixel_differences:
            raise CheckError(
                f"The exported lens is not equal to the PyTorch lens in {report.n_cases} pictures. Nothing was "
                "written. Please report this with the model's name.",
                report.pixel_differences,
            )
        # A picture of its place's size: it is not resized, and so every value is PyTorch's.
        picture = prompt.geometry.shrink(pictures[0])
        expected = pixel_values(family, prompt.geometry, prompt, picture).numpy()
        write_golden_pixels(work, picture, GoldenPixels.of(expected))
        step("looking at usual pictures")
        moments, n_usual = moments_of(features_of(family, prompt), usual)
        if moments is not None:
            moments.write(work)
        manifest = LensManifest(
            name=output.absolute().name,
            pixels=pixel_facts(family, prompt.geometry.canvas),
            prompt=parts_of(prompt),
            files={},
            parity=ParityFacts(
                n_cases=report.n_cases, pixels=report.pixels, pixels_within_a_level=report.pixels_within_a_level
            ),
            n_moment_pictures=n_usual,
            provenance=provenance(family, model, prompt),
        )
        write_manifest(replace(manifest, files=list_files(work)), work / "manifest.json")
    log.info("exported a lens to %s", output)
    return report


def pixel_facts(family: Family, canvas: int | None = None) -> PixelFacts:
    """Return the pixel values that a model takes, as a manifest states them.

    Args:
        family: the model.
        canvas: side of a lens bundle's canvas, px. If it is the model's size, no filter is needed. Default: any.
    """
    pixel_format = family.pixel_format
    return PixelFacts(
        size=pixel_format.size,
        mean=tuple(map(float, pixel_format.mean)),
        std=tuple(map(float, pixel_format.std)),
        filter=pixel_format.filter if canvas != pixel_format.size else "",
    )


def _measure(graph: onnx.ModelProto, family: Family, prompt: Prompt, pictures: Sequence[NDArray[np.uint8]]) -> Parity:
    """Compare the pixel values of a graph with those of PyTorch."""
    import onnxruntime  # behind tvp.sdk, which turns its telemetry off

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    report = Parity()
    for picture in pictures:
        (given,) = session.run(["pixel_values"], {"image": picture})
        report.n_cases += 1
        compare_pixels(report, family, given, pixel_values(family, prompt.geometry, prompt, picture).numpy())
    return report
