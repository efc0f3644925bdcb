"""The base of a bundle: a frozen model as graphs, embeddings and tokenizers, made once and shared."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from tvp.sdk._manifest import read_base_manifest, readable_bases, seal, verify
from tvp.sdk.errors import BundleError
from tvp.trainer.families.causal import CausalFamily
from tvp.trainer.families.clip import ContrastiveFamily
from tvp.trainer.families.family import GenerativeFamily
from tvp.trainer.families.instructblip import QuestionAwareFamily
from tvp.trainer.families.seq2seq import Seq2SeqFamily

from . import closed, graphs, seq2seq
from .fuse import let_read
from .precision import lower
from .tokenizer import fast, write_tokenizer

log = logging.getLogger("tvp.export")

RECIPE = 3  # to be raised where the same model, versions and precision come to give another base


def put_base(
    family: GenerativeFamily | ContrastiveFamily,
    folder: Path,
    places: Sequence[Path],
    precision: str,
    device: str,
) -> str:
    """Put the base of a model to `folder`, which must not exist; returns its digest.

    device: see `precision.made_for`.
    places: folders of bundles, one of which may have a base of the same model; it is then linked, or copied where
        the disk is another.
    """
    key = made_from(family, precision, device)
    found = find_base(key, places)
    if found is None:
        _write(family, key, folder, precision, device)
    else:
        log.info("the model has been exported before: sharing %s", found)
        for name in ("manifest.json", *read_base_manifest(found / "manifest.json").files):
            _link(found / name, folder / name)
    return read_base_manifest(folder / "manifest.json").digest


def made_from(family: GenerativeFamily | ContrastiveFamily, precision: str, device: str) -> str:
    """A sha256 of all that a base is made from: weights, configuration, layout, tokenizers, and the versions that
    make it."""
    total = hashlib.sha256()
    for name, tensor in sorted(family.model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    about = [
        family.name,
        *(closed.about(family) if isinstance(family, ContrastiveFamily) else _about(family)),
        repr(family.pixel_format),
        json.dumps(versions()),
        str(RECIPE),
        precision,
        device,
    ]
    total.update("\0".join(about).encode())
    return total.hexdigest()


def _about(family: GenerativeFamily) -> list[str]:
    tokenizers = [family.tokenizer, *([family.qformer_tokenizer] if isinstance(family, QuestionAwareFamily) else [])]
    return [
        family.model.config.to_json_string(),
        repr(family.layout),
        *(fast(tokenizer).to_str() for tokenizer in tokenizers),
    ]


def find_base(key: str, places: Sequence[Path]) -> Path | None:
    """The intact base in a bundle under `places` that was made from the same (see `made_from`), if there is one."""
    for place in places:
        for folder, manifest in readable_bases(place):
            if manifest.made_from != key:
                continue
            try:
                verify(folder / "base", manifest.files)
                return folder / "base"
            except BundleError as error:
                log.info("not sharing %s: %s", folder, error)
    return None


def _link(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, to)


def _write(family: GenerativeFamily | ContrastiveFamily, key: str, folder: Path, precision: str, device: str) -> None:
    folder.mkdir()
    fused = device != "tensorrt"
    if isinstance(family, ContrastiveFamily):
        content = closed.write_contrastive(family, folder, fused)
    else:
        content = _write_words(family, folder, fused)
    lower(folder, precision, device)
    for file in folder.glob("*.onnx"):
        let_read(file)
    content |= {"precision": precision, "device": device, "made_from": key, "files": entries(folder)}
    (folder / "manifest.json").write_bytes(seal(content))


def _write_words(family: GenerativeFamily, folder: Path, fused: bool) -> dict[str, Any]:
    # First, since a tokenizer that the sdk cannot use should not cost the minutes that graphs take.
    write_tokenizer(family.tokenizer, folder / "tokenizer.json", family)
    if isinstance(family, QuestionAwareFamily):
        write_tokenizer(family.qformer_tokenizer, folder / "connector_tokenizer.json")
    graphs.export_vision_encoder(family, folder / "vision_encoder.onnx", fused)
    if isinstance(family, Seq2SeqFamily):
        seq2seq.export_encoder(family, folder / "encoder_model.onnx")
        seq2seq.export_decoder(family, folder / "decoder_model_merged.onnx")
    else:
        assert isinstance(family, CausalFamily)
        graphs.export_decoder(family, folder / "decoder_model_merged.onnx")
    graphs.export_embeddings(family, folder / "embed_tokens.npy")
    if isinstance(family, QuestionAwareFamily):
        graphs.export_connector(family, folder / "connector.onnx")
    config = family.text_config
    n_kv_heads, head_size = graphs.cache_shape(family)
    with torch.no_grad():
        size = family.pixel_format.size
        n_image_tokens = family.see(torch.zeros(1, 3, size, size), ["a"]).shape[1]
    layout = family.layout
    return {
        "family": family.name,
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
        "n_positions": _n_positions(family),
        "position_axes": family.position_axes if isinstance(family, CausalFamily) else 1,
        "n_causal": -1 if not isinstance(family, CausalFamily) or family.n_causal is None else family.n_causal,
        "start_token": config.decoder_start_token_id if isinstance(family, Seq2SeqFamily) else -1,
        "n_connector_positions": family.n_question_positions if isinstance(family, QuestionAwareFamily) else 0,
    }


def _n_positions(family: GenerativeFamily) -> int:
    """The most tokens that a bundle of the model may read; 0 where nothing bounds it.

    Exported attention has no sliding window, so that a text ends where the window would begin to slide.
    """
    bounds = (family.n_positions, getattr(family.text_config, "sliding_window", None))
    return min((bound for bound in bounds if bound), default=0)


def entries(folder: Path, skip: str = "") -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file but the manifest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "manifest.json" and name.split("/")[0] != skip:
            with open(path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[name] = {"size": path.stat().st_size, "sha256": digest}
    return found


def versions() -> dict[str, str]:
    """Versions of the packages that make a bundle."""
    found = {name: _version(name) for name in ("tvp-edge", "torch", "transformers", "optimum-onnx", "onnx")}
    return found | {"onnxruntime": onnxruntime.__version__}  # whose package has other names too


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "absent"
