"""Exporting a task: model and prompt in, a bundle out, whole and checked or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image

from tvp import sdk
from tvp.sdk._manifest import seal
from tvp.sdk._task import home
from tvp.sdk.errors import BundleError, ModelError, RequestError
from tvp.trainer import families
from tvp.trainer.data import Data, Scenes
from tvp.trainer.evaluate import MAX_NEW_TOKENS
from tvp.trainer.families import Family
from tvp.trainer.families.clip import ContrastiveFamily
from tvp.trainer.families.family import GenerativeFamily
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.task_definition import TaskDefinition

from . import closed, parity
from .base import entries, put_base, versions
from .fuse import merge
from .precision import DEVICES, MAX_LOSS, PRECISIONS, made_for
from .preprocess import preprocess_graph

log = logging.getLogger("tvp.export")

N_GOLDEN, MOST_GOLDEN = 4, 64  # pictures that travel with a bundle: in fp32, and at most
IMAGE_ENCODER = "image_encoder.onnx"


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
) -> parity.Parity:
    """Write a bundle to the folder `output` and return its parity report.

    model: folder, hub id or `zoo:NAME`; family: the same model, where the caller has it loaded.
    prompt: a prompt file; None exports the model as it is (full picture, no frame).
    data: pictures and questions for parity and golden cases (default: drawn scenes). Where the model only chooses
        among labels and the task has none, the questions' own labels are what is compared.
    geometry: canvas of an export without a prompt.
    n_cases: cases that the parity gate compares.
    force: replace what is at `output`.
    reuse: take the base of another bundle beside `output` or under $TVP_HOME/tasks, where one has been made of the
        same model by the same versions, instead of exporting the model again; the files are shared by hard links.
    precision: fp32 answers exactly as PyTorch; fp16, int8 and int4 may differ, see `tvp.export.precision.lower`.
    device: where the bundle is meant to run. For `tensorrt` the vision encoder is of standard operators only; for
    `cuda` graphs
        are others in int8 and int4 only, see `tvp.export.precision.lower`. PyTorch is compared on a CPU, always.
    max_loss: share of the cases whose answers may differ from PyTorch's, below fp32.
    single_file: also write IMAGE_ENCODER, the preprocessing and the vision encoder as one graph.
    Raises CheckError, and writes nothing, where the bundle does not answer as PyTorch does.
    """
    output = Path(output)
    _refuse_what_cannot_be(n_cases, precision, device, max_loss)
    refuse_to_overwrite(output, force)
    if prompt is not None and not isinstance(prompt, Prompt):
        prompt = Prompt.load(prompt)
    if family is not None and (family.device.type != "cpu" or family.dtype != torch.float32):
        family = None  # which is traced, and compared with the bundle, on a CPU in fp32
    if prompt is not None:
        geometry = prompt.geometry
    family = exportable(family or families.load(model, canvas=geometry.canvas if geometry else None))
    if geometry is None:
        size = family.pixel_format.size
        geometry = Geometry(size, size, task.fit)
    if isinstance(family, GenerativeFamily) and family.ignored_settings:
        log.warning(
            "%s says %s, which is not followed: answers are the likeliest tokens as the model scores them.",
            model,
            ", ".join(family.ignored_settings),
        )
    if data is None:
        data = Scenes(max(n_cases, N_GOLDEN), seed=7, camera=task.camera)
    samples = _first(data, n_cases)
    cases: list[Any] = [(sample.picture, task.question or sample.questions[0].text) for sample in samples]
    if isinstance(family, ContrastiveFamily):
        cases = closed.contrastive_cases(task, samples)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place, so that the last step is one rename on the same disk.
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        places = [output.parent, home() / "tasks"] if reuse else []
        base_digest = put_base(family, work / "base", places, precision, made_for(device, precision))
        onnx.save(preprocess_graph(geometry, family.pixel_format, prompt), work / "preprocess.onnx")
        if prompt is not None:
            prompt.save(work / "prompt.safetensors")
        if single_file:
            merge(work / "preprocess.onnx", work / "base" / "vision_encoder.onnx", work / IMAGE_ENCODER)
        _write_golden(work, [])
        provenance = _provenance(family, model, prompt)
        _seal_task(work, task, base_digest, {}, provenance)
        with sdk.load(work, providers="cpu") as loaded:
            # Below fp32 a share of the cases is what is checked, and four would be few.
            n_golden = N_GOLDEN if precision == "fp32" else min(len(cases), MOST_GOLDEN)
            if isinstance(family, ContrastiveFamily):
                report = closed.measure_contrastive(
                    loaded, family, geometry, prompt, cases, n_golden, precision == "fp32"
                )
            else:
                report = parity.measure(loaded, family, geometry, prompt, cases, MAX_NEW_TOKENS, n_golden)
            report.check(task.name, precision, max_loss)
            _write_golden(work, report.golden)
            # What is replayed may be a part of what was compared, and differ more often.
            of_golden = report.n_golden_different / len(report.golden)
            allowed = {} if precision == "fp32" else {"max_loss": max(max_loss, of_golden)}
            _seal_task(work, task, base_digest, report.facts() | allowed, provenance)
            # While the first is open, so that its base is neither hashed nor opened again.
            with sdk.load(work, providers="cpu") as sealed:
                sealed.check()
        refuse_to_overwrite(output, force)
        os.chmod(work, 0o755)  # mkdtemp makes folders that only their owner reads
        _put(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("exported %s to %s: %d cases equal", task.name, output, report.tokens_equal)
    return report


def exportable(family: Family) -> GenerativeFamily | ContrastiveFamily:
    """The family, if there is an export of it; raises ModelError."""
    if not family.exports or not isinstance(family, GenerativeFamily | ContrastiveFamily):
        raise ModelError(f"A {family.name} model cannot be exported yet; it can be trained on and evaluated.")
    return family


def _refuse_what_cannot_be(n_cases: int, precision: str, device: str, max_loss: float) -> None:
    if n_cases < 1:
        raise RequestError(f"n_cases is {n_cases}; the parity gate needs at least 1.")
    if precision not in PRECISIONS:
        raise RequestError(f"The precision {precision!r} is not known; there are {', '.join(PRECISIONS)}.")
    if device not in DEVICES:
        raise RequestError(f"The device {device!r} is not known; there are {', '.join(DEVICES)}.")
    if not 0 <= max_loss <= 1:
        raise RequestError(f"max_loss is {max_loss}; it is a share of answers, from 0 to 1.")


def refuse_to_overwrite(output: Path, force: bool) -> None:
    """Raise BundleError for what an export must not replace."""
    if output.name in ("", ".."):
        raise BundleError(f"{str(output)!r} is where you are, or above it; name a folder of the bundle's own.")
    if output.is_symlink():
        raise BundleError(f"{output} is a symbolic link; name the folder itself.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise BundleError(f"{output} exists already. Choose another folder, or replace it with --force.")
    # Web applications have a manifest.json too.
    if not all((output / name).is_file() for name in ("manifest.json", "base/manifest.json")):
        raise BundleError(f"{output} is not a bundle, so --force does not replace it. Choose another folder.")


def _put(work: Path, output: Path) -> None:
    """Move a finished bundle to its place; what was there goes only after the new one has come."""
    old = output.with_name(f".{output.name}.replaced")
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(output, old)
    try:
        os.rename(work, output)
    except BaseException:
        if old.exists() and not output.exists():
            os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_golden(work: Path, cases: list[tuple[NDArray[np.uint8], dict[str, Any]]]) -> None:
    folder = work / "golden"
    folder.mkdir(exist_ok=True)
    for picture, case in cases:
        Image.fromarray(picture).save(folder / case["picture"])
    text = json.dumps([case for _, case in cases], indent=1, ensure_ascii=False)
    (folder / "cases.json").write_text(text + "\n", encoding="utf-8")


def _seal_task(
    work: Path, task: TaskDefinition, base_digest: str, report: dict[str, Any], provenance: dict[str, Any]
) -> None:
    content = {
        "task": {
            "name": task.name,
            "question": task.question,
            "labels": list(task.labels),
            "max_new_tokens": MAX_NEW_TOKENS,
        },
        "base": {"digest": base_digest},
        "files": entries(work, skip="base"),
        "parity": report,
        "provenance": provenance,
    }
    (work / "manifest.json").write_bytes(seal(content))


def _provenance(family: Family, model: str | Path, prompt: Prompt | None) -> dict[str, Any]:
    place = Path(families.locate(model))
    return {
        "model": place.resolve().name if place.exists() else str(model),
        "family": family.name,
        "weights": families.digest(model),
        "prompt": prompt.facts if prompt is not None else {},
        "versions": versions(),
    }


def _first(data: Data, n: int) -> list[Any]:
    return [data[i] for i in range(min(n, len(data)))]
