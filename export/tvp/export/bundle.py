"""The export of a task: a model and a prompt become a bundle. Only a bundle that passes the parity gate is written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import onnx
import torch

from tvp import sdk
from tvp.sdk.errors import RequestError
from tvp.sdk.formats.calibration import FEATURE, Calibrated
from tvp.sdk.formats.golden import write_cases
from tvp.sdk.formats.golden_words import write_golden_words
from tvp.sdk.formats.integrity import list_files
from tvp.sdk.formats.manifest import ParityFacts, TaskManifest, write_manifest
from tvp.trainer import families
from tvp.trainer.asking import answerable
from tvp.trainer.calibration import Calibration
from tvp.trainer.data import Data, Scenes
from tvp.trainer.evaluate import MAX_NEW_TOKENS
from tvp.trainer.families import Family
from tvp.trainer.progress import step
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.task_definition import TaskDefinition

from . import ranking
from .base import provenance, put_base
from .fuse import merge
from .kinds import kind_of
from .kinds.kind import refuse_unasked
from .moments import N_PICTURES, check_number, different_pictures, features_by, moments_of
from .output import refuse_to_overwrite, restore, written_whole
from .parity import Parity
from .precision import DEVICES, MAX_LOSS, PRECISIONS, made_for
from .preprocess import preprocess_graph
from .prompts import parts_of
from .without_base import pixel_facts
from .words import golden_words

log = logging.getLogger("tvp.export")

N_GOLDEN, MOST_GOLDEN = 4, 64  # golden cases of a bundle: in fp32, and at most
IMAGE_ENCODER = "image_encoder.onnx"
N_STEPS = 6  # that `export` shows, see `tvp.trainer.progress`


def export(
    model: str | Path,
    task: TaskDefinition,
    output: str | Path,
    *,
    prompt: str | Path | Prompt | None = None,
    data: Data | None = None,
    geometry: Geometry | None = None,
    family: Family | None = None,
    n_cases: int = 16,
    force: bool = False,
    reuse: bool = True,
    precision: str = "fp32",
    device: str = "cpu",
    max_loss: float = MAX_LOSS,
    single_file: bool = False,
    calibration: str | Path | Calibration | None = None,
    n_moment_pictures: int = N_PICTURES,
    usual: Data | None = None,
) -> Parity:
    """Write a bundle to the folder `output` and return the report of its parity gate.

    Args:
        model: a folder, a hub id or `zoo:NAME`.
        task: its name, question and labels go into the bundle.
        output: folder for the bundle. It must be new or empty.
        prompt: a prompt or its file. Default: none; the model sees the full picture, without a frame.
        data: pictures and questions for the parity gate and the golden cases. Default: drawn scenes. A contrastive
            model ranks the task's labels, or each question's own labels if the task has none.
        geometry: canvas of an export without a prompt. Default: the model's own size.
        family: the same model, loaded. Default: it is loaded here.
        n_cases: number of cases that the parity gate compares, at least 1. Default 16.
        force: whether to replace the bundle at `output`. Default False.
        reuse: whether to share the base of a bundle beside `output` or under $TVP_HOME/tasks that was exported from
            the same model with the same versions. Its files are linked. Default True.
        precision: `fp32` (default) answers exactly as PyTorch. `fp16`, `int8` and `int4` may differ, see
            `tvp.export.precision.reduce_precision`.
        device: where the bundle is meant to run: `cpu` (default), `cuda` or `tensorrt`. For `tensorrt`, the vision
            encoder uses standard operators only. For `cuda`, the graphs differ from those for `cpu` in int8 and int4
            only. The parity gate always runs on the CPU.
        max_loss: share of the answers, from 0 to 1, that may differ from PyTorch's below fp32. Default 0.1.
        single_file: whether to write `image_encoder.onnx` too: preprocessing and vision encoder as one graph. Default
            False.
        calibration: a calibration or its file, for the scores of labels. The gate compares rankings with it too.
            Default: none.
        n_moment_pictures: number of pictures whose features say what is usual, for `View.unlikeness`: 8 or more, or 0
            for a bundle that does not know. Default 64.
        usual: these pictures, as the device takes them; questions about them are not read. Default: those of the data.
            Without data, a task that is not about scenes has none: drawn scenes are not its pictures.

    Raises:
        CheckError: the bundle does not answer as PyTorch does. Nothing is written.
        ModelError: the model cannot be exported.
        BundleError: `output` exists already.
        RequestError: an argument is out of its range, or the calibration is of another model or prompt.
        DataError: the prompt or the calibration cannot be read.
    """
    output = Path(output)
    _check_arguments(n_cases, precision, device, max_loss)
    check_number(n_moment_pictures)
    restore(output)
    refuse_to_overwrite(output, force)
    if prompt is not None and not isinstance(prompt, Prompt):
        prompt = Prompt.load(prompt)
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    geometry = prompt.geometry if prompt is not None else geometry
    if data is None:
        n_moment_pictures = n_moment_pictures if usual or task.source == "scenes" else 0
        data = Scenes(max(n_cases, N_GOLDEN, n_moment_pictures), seed=7, camera=task.camera)
    only_ranks = families.refuse_unknown(model) == "clip" if family is None else not family.generates
    refuse_unasked(task, data, n_cases, only_ranks)
    offsets: Calibrated | None = None if calibration else ()
    if calibration and geometry:
        offsets = _offsets(calibration, model, geometry, prompt, task)
    step(f"loading {model}")
    family = _load_family(model, family, geometry)
    kind = kind_of(family)
    if geometry is None:
        geometry = Geometry(family.pixel_format.size, family.pixel_format.size, task.fit)
    if calibration and offsets is None:
        offsets = _offsets(calibration, model, geometry, prompt, task)
    offsets = offsets or ()
    step("reading the cases")
    data = answerable(data, [(str(model), family)], geometry.canvas, task.free)
    cases = kind.cases(task, [data[i] for i in range(min(n_cases, len(data)))])
    exact = precision == "fp32"
    with written_whole(output, force) as work:
        places = [output.parent, sdk.home() / "tasks"] if reuse else []
        step("writing the model's graphs")
        base = put_base(family, work / "base", places, precision, made_for(device, precision))
        onnx.save(preprocess_graph(geometry, family.pixel_format, prompt), work / "preprocess.onnx")
        if prompt is not None:
            prompt.save(work / "prompt.safetensors")
        if single_file:
            merge(work / "preprocess.onnx", work / "base" / "vision_encoder.onnx", work / IMAGE_ENCODER)
        manifest = TaskManifest(
            name=task.name,
            question=task.question,
            labels=task.labels,
            max_new_tokens=MAX_NEW_TOKENS,
            base=base,
            files={},
            parity=ParityFacts(),
            provenance=provenance(family, model, prompt),
            pixels=pixel_facts(family),
            prompt=parts_of(prompt),
            calibration=offsets,
            requires=(FEATURE,) if offsets else (),
        )
        write_cases(work, [], {})
        _seal(manifest, work)
        with sdk.load(work, providers="cpu") as loaded:
            # Below fp32 a share of the golden cases may differ. A share of only four cases would say little.
            n_golden = N_GOLDEN if exact else min(len(cases), MOST_GOLDEN)
            step(f"comparing {len(cases)} answers with PyTorch's")
            report = kind.measure(loaded, family, geometry, prompt, cases, n_golden, exact, offsets)
            more = ranking.calibrated_cases(cases, offsets)
            report = ranking.measure(report, loaded, family, geometry, prompt, more, n_golden, exact, offsets)
            step("scoring words of the vocabulary")
            if scored := golden_words(loaded, family, cases[0], geometry.canvas, exact):
                picture, words, far = scored
                write_golden_words(work, picture, words)
                if exact and not far <= words.within:
                    report.differences.append(f"scores of words differ by {far:.2e}, allowed is {words.within:.0e}")
            report.check(task.name, precision, max_loss)
            golden = [case for _, case in report.golden]
            write_cases(work, golden, {case.picture: picture for picture, case in report.golden})
            # The golden cases are some of the compared cases. Among them, the share that differs may be larger.
            allowed = None if exact else max(max_loss, report.n_golden_different / len(golden))
            step("looking at usual pictures")
            moments, n_moment_pictures = moments_of(
                features_by(loaded), different_pictures(usual or data, n_moment_pictures)
            )
            if moments is not None:
                moments.write(work)
            manifest = replace(manifest, parity=report.facts(allowed), n_moment_pictures=n_moment_pictures)
            _seal(manifest, work)
            # The first task stays open, so that its base is shared, and neither hashed nor opened again.
            step("checking the bundle")
            with sdk.load(work, providers="cpu") as sealed:
                sealed.check()
    log.info("exported %s to %s: %d of %d answers equal", task.name, output, report.tokens_equal, report.n_cases)
    return report


def _check_arguments(n_cases: int, precision: str, device: str, max_loss: float) -> None:
    if n_cases < 1:
        raise RequestError(f"n_cases is {n_cases}; the parity gate needs at least 1.")
    if precision not in PRECISIONS:
        raise RequestError(f"There is no precision {precision!r}. Choose one of {', '.join(PRECISIONS)}.")
    if device not in DEVICES:
        raise RequestError(f"There is no device {device!r}. Choose one of {', '.join(DEVICES)}.")
    if not 0 <= max_loss <= 1:
        raise RequestError(f"max_loss is {max_loss}; it must be a share of the answers, from 0 to 1.")


def _load_family(model: str | Path, family: Family | None, geometry: Geometry | None) -> Family:
    """Return the model on the CPU in fp32, for tracing and for the parity gate."""
    if family is None or family.device.type != "cpu" or family.dtype != torch.float32:
        family = families.load(model, canvas=geometry.canvas if geometry else None)
    return family


def _offsets(
    calibration: Calibration, model: str | Path, geometry: Geometry, prompt: Prompt | None, task: TaskDefinition
) -> Calibrated:
    """Return the offsets of a calibration that was learned with this model and prompt; warn where they do not help."""
    calibration.refuse_other(model, geometry, prompt)
    if calibration.gain is not None and calibration.gain.verdict != "helps":
        log.warning("the calibration did not help where it was measured: %s", calibration.gain)
    own = task.question, sorted(task.labels)
    if all(own) and own not in [(known.question, sorted(known.labels)) for known in calibration.offsets]:
        log.warning("the calibration does not know the question of the task %r with its labels", task.name)
    return calibration.offsets


def _seal(manifest: TaskManifest, work: Path) -> None:
    write_manifest(replace(manifest, files=list_files(work, skip="base")), work / "manifest.json")
