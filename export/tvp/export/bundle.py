"""Exporting a task: model and prompt in, a bundle out, whole and checked or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedTokenizerBase

from tvp import sdk
from tvp.sdk._manifest import read_base_manifest, seal
from tvp.sdk.errors import BundleError, ModelError, RequestError
from tvp.trainer import families
from tvp.trainer.data import Data, Scenes
from tvp.trainer.evaluate import MAX_NEW_TOKENS
from tvp.trainer.families import Family
from tvp.trainer.families._causal import CausalFamily
from tvp.trainer.families._family import WordFamily
from tvp.trainer.families._seq2seq import SeqToSeqFamily
from tvp.trainer.families.instructblip import ReadingEye
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.tasks import Task

from . import graphs, parity, seq2seq
from .preprocess import preprocess_graph

log = logging.getLogger("tvp.export")

N_GOLDEN = 4  # pictures that travel with a bundle


def export(
    model: str | Path,
    task: Task,
    output: str | Path,
    *,
    prompt: str | Path | Prompt | None = None,
    data: Data | None = None,
    geometry: Geometry | None = None,
    family: Family | None = None,
    n_cases: int = 16,
    force: bool = False,
) -> parity.Parity:
    """Write a bundle to the folder `output` and return its parity report.

    model: folder, hub id or `zoo:NAME`; family: the same model, where the caller has it loaded.
    prompt: a prompt file; None exports the model as it is (full picture, no frame).
    data: pictures and questions for parity and golden cases (default: drawn scenes).
    geometry: canvas of an export without a prompt.
    n_cases: cases that the parity gate compares.
    force: replace what is at `output`.
    Raises CheckError, and writes nothing, where the bundle does not answer as PyTorch does.
    """
    output = Path(output)
    if n_cases < 1:
        raise RequestError(f"n_cases is {n_cases}; the parity gate needs at least 1.")
    _refuse_to_overwrite(output, force)
    if prompt is not None and not isinstance(prompt, Prompt):
        prompt = Prompt.load(prompt)
    if family is None:
        family = families.load(model)
    if not family.exports or not isinstance(family, WordFamily):
        raise ModelError(f"A {family.name} model cannot be exported yet; it can be trained on and evaluated.")
    if prompt is not None:
        geometry = prompt.geometry
    elif geometry is None:
        size = family.pixel_format.size
        geometry = Geometry(size, size, task.fit)
    if data is None:
        data = Scenes(max(n_cases, N_GOLDEN), seed=7, camera=task.camera)
    cases = [(sample.picture, task.question or sample.questions[0].text) for sample in _first(data, n_cases)]
    output.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place, so that the last step is one rename on the same disk.
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        base_digest = _write_base(family, model, work / "base")
        onnx.save(preprocess_graph(geometry, family.pixel_format, prompt), work / "preprocess.onnx")
        if prompt is not None:
            prompt.save(work / "prompt.safetensors")
        _write_golden(work, [])
        provenance = _provenance(family, model, prompt)
        _seal_task(work, task, base_digest, {}, provenance)
        with sdk.load(work, providers="cpu") as loaded:
            report = parity.measure(loaded, family, geometry, prompt, cases)
            report.check(task.name)
            _write_golden(work, _golden_cases(loaded, family, cases[:N_GOLDEN]))
        _seal_task(work, task, base_digest, report.facts(), provenance)
        with sdk.load(work, providers="cpu") as loaded:
            loaded.check()
        _refuse_to_overwrite(output, force)
        os.chmod(work, 0o755)  # mkdtemp makes folders that only their owner reads
        _put(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("exported %s to %s: %d cases equal", task.name, output, report.tokens_equal)
    return report


def _refuse_to_overwrite(output: Path, force: bool) -> None:
    if output.is_symlink():
        raise BundleError(f"{output} is a symbolic link; name the folder itself.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise BundleError(f"{output} exists already. Choose another folder, or replace it with --force.")
    if not (output / "manifest.json").is_file():
        raise BundleError(f"{output} is not a bundle, so --force does not replace it. Choose another folder.")


def _put(work: Path, output: Path) -> None:
    """Move a finished bundle to its place; what was there goes only after the new one has come."""
    old = output.with_name(f".{output.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.rename(output, old)
    os.rename(work, output)
    shutil.rmtree(old, ignore_errors=True)


def _write_base(family: WordFamily, model: str | Path, folder: Path) -> str:
    """Export the frozen model; returns the base's digest."""
    folder.mkdir()
    graphs.export_eye(family, folder / "vision_encoder.onnx")
    if isinstance(family, SeqToSeqFamily):
        seq2seq.export_encoder(family, folder / "encoder_model.onnx")
        seq2seq.export_decoder(family, folder / "decoder_model_merged.onnx")
    else:
        assert isinstance(family, CausalFamily)
        graphs.export_decoder(family, folder / "decoder_model_merged.onnx")
    graphs.export_embeddings(family, folder / "embed_tokens.npy")
    _write_tokenizer(family.tokenizer, model, folder / "tokenizer.json")
    if isinstance(family, ReadingEye):
        graphs.export_connector(family, folder / "connector.onnx")
        _write_tokenizer(family.qformer_tokenizer, model, folder / "connector_tokenizer.json")
    config = family.text_config
    n_kv_heads, head_size = graphs.cache_shape(family)
    with torch.no_grad():
        size = family.pixel_format.size
        n_image_tokens = family.see(torch.zeros(1, 3, size, size), ["a"]).shape[1]
    layout = family.layout
    content = {
        "family": family.name,
        "precision": "fp32",
        "layout": {
            "prompt": layout.prompt,
            "answer": layout.answer,
            "image_token": layout.image_token,
            "end": list(layout.end),
            "apart": layout.apart,
        },
        "n_image_tokens": n_image_tokens,
        "n_text": family.embed_tokens.embedding_dim,
        "n_layers": getattr(config, "num_decoder_layers", config.num_hidden_layers),
        "n_kv_heads": n_kv_heads,
        "head_size": head_size,
        "n_vocab": family.embed_tokens.num_embeddings,
        "n_positions": family.n_positions or 0,
        "position_axes": getattr(family, "position_axes", 1),
        "start_token": config.decoder_start_token_id if isinstance(family, SeqToSeqFamily) else -1,
        "n_connector_positions": family.n_question_positions if isinstance(family, ReadingEye) else 0,
        "files": _entries(folder),
    }
    (folder / "manifest.json").write_bytes(seal(content))
    return read_base_manifest(folder / "manifest.json").digest


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, model: str | Path, file: Path) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RequestError(f"The tokenizer of {str(model)!r} has no fast version, which the sdk needs.")
    backend.save(os.fspath(file))


def _golden_cases(
    task: sdk.Task, family: WordFamily, cases: Sequence[tuple[NDArray[np.uint8], str]]
) -> list[tuple[NDArray[np.uint8], dict[str, Any]]]:
    """PyTorch's answers to a few cases, from the pixel values that the bundle makes."""
    golden = []
    for number, (picture, question) in enumerate(cases):
        embeddings = family.see(torch.from_numpy(task.pixel_values(picture)), [question])
        tokens, logits = family.generate_tokens(embeddings, [question], 8)
        chosen = logits[0].log_softmax(-1)[range(len(tokens[0])), tokens[0]]
        golden.append(
            (
                picture,
                {
                    "picture": f"{number}.png",
                    "question": question,
                    "tokens": tokens[0],
                    "text": family.text(tokens[0]),
                    "log_probabilities": [float(f"{value:.7g}") for value in chosen.tolist()],
                },
            )
        )
    return golden


def _write_golden(work: Path, cases: list[tuple[NDArray[np.uint8], dict[str, Any]]]) -> None:
    folder = work / "golden"
    folder.mkdir(exist_ok=True)
    for picture, case in cases:
        Image.fromarray(picture).save(folder / case["picture"])
    text = json.dumps([case for _, case in cases], indent=1, ensure_ascii=False)
    (folder / "cases.json").write_text(text + "\n", encoding="utf-8")


def _seal_task(work: Path, task: Task, base_digest: str, report: dict[str, Any], provenance: dict[str, Any]) -> None:
    content = {
        "task": {
            "name": task.name,
            "question": task.question,
            "labels": list(task.labels),
            "max_new_tokens": MAX_NEW_TOKENS,
        },
        "base": {"digest": base_digest},
        "files": _entries(work, skip="base"),
        "parity": report,
        "provenance": provenance,
    }
    (work / "manifest.json").write_bytes(seal(content))


def _entries(folder: Path, skip: str = "") -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file but the manifest."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "manifest.json" and name.split("/")[0] != skip:
            with open(path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            entries[name] = {"size": path.stat().st_size, "sha256": digest}
    return entries


def _provenance(family: WordFamily, model: str | Path, prompt: Prompt | None) -> dict[str, Any]:
    packages = ("tvp", "torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    return {
        "model": Path(families.locate(model)).name,
        "family": family.name,
        "weights": families.digest(model),
        "prompt": prompt.facts if prompt is not None else {},
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "absent"


def _first(data: Data, n: int) -> list[Any]:
    return [data[i] for i in range(min(n, len(data)))]
