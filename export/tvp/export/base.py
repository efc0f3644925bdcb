"""The base of a bundle: a frozen model as graphs, embeddings and tokenizers, made once and shared."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from tvp import sdk
from tvp.sdk.errors import BundleError, ModelError, TvpError
from tvp.sdk.formats.integrity import is_private, linked, list_files, private_folder, verify
from tvp.sdk.formats.manifest import Provenance, bases_in, read_base_manifest, write_manifest
from tvp.sdk.formats.temporary import temporary_file
from tvp.trainer import families
from tvp.trainer.families import Family
from tvp.trainer.prompt import Prompt

from .fuse import make_readable
from .kinds import kind_of
from .precision import reduce_precision

log = logging.getLogger("tvp.export")

RECIPE = 4  # raise it when the same model, versions and precision give another base


def put_base(family: Family, folder: Path, places: Sequence[Path], precision: str, device: str) -> str:
    """Write the base of a model, or share one that was exported before.

    Args:
        family: the model.
        folder: folder for the base; it must not exist.
        places: folders of bundles. A base of the same model in one of them is linked, or copied from another disk.
        precision: see `precision.reduce_precision`.
        device: see `precision.made_for`.

    Returns:
        The digest of the base's manifest.
    """
    key = made_from(family, precision, device)
    found = find_base(key, places)
    if found is None:
        return _write(family, key, folder, precision, device)
    log.info("the model was exported before: sharing %s", found)
    manifest = read_base_manifest(found / "manifest.json")
    folder.mkdir()
    shutil.copyfile(found / "manifest.json", folder / "manifest.json")
    for name in manifest.files:  # `find_base` verified them, and the export does again when it loads the bundle
        if not linked(found / name, folder / name):
            shutil.copyfile(found / name, folder / name)
    if read_base_manifest(folder / "manifest.json").digest != _recorded(key):
        raise BundleError(f"The bundle in {found} was changed while it was read. Export again.")
    return manifest.digest


def made_from(family: Family, precision: str, device: str) -> str:
    """Return a sha256 of everything that decides a base: weights, configuration, layout, tokenizers, versions."""
    total = hashlib.sha256()
    for name, tensor in sorted(family.model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    about = [
        family.name,
        *kind_of(family).about(family),
        repr(family.pixel_format),
        json.dumps(versions()),
        str(RECIPE),
        precision,
        device,
    ]
    total.update("\0".join(about).encode())
    return total.hexdigest()


def find_base(key: str, places: Sequence[Path]) -> Path | None:
    """Return an intact base with this `made_from` in the bundles under `places`, or None.

    Anybody can write a bundle that names this key and holds other weights. So only a base that this user's own exports
    recorded is taken.
    """
    recorded = _recorded(key)
    for place in places if recorded else ():
        for folder, manifest in bases_in(place):
            if manifest.digest != recorded:
                continue
            try:
                verify(folder / "base", manifest.files)
                return folder / "base"
            except BundleError as error:
                log.info("not sharing %s: %s", folder, error)
    return None


def _record(key: str, digest: str) -> None:
    """Note that this user made the base of this digest, in a file of its own, which others cannot write."""
    try:
        file = private_folder(sdk.home() / "exports") / key
        with temporary_file(file) as temporary:
            temporary.write_text(digest)
            os.replace(temporary, file)
    except (OSError, BundleError) as error:
        log.warning("The base is not recorded, so later exports of this model will not share it: %s", error)


def _recorded(key: str) -> str:
    """Return the digest of the base that was recorded for a `made_from`; '' for none."""
    file = sdk.home() / "exports" / key
    try:
        return file.read_text() if is_private(file.stat()) and is_private(file.parent.stat()) else ""
    except OSError:
        return ""


def _write(family: Family, key: str, folder: Path, precision: str, device: str) -> str:
    kind_of(family).check(family)
    folder.mkdir()
    try:
        manifest = kind_of(family).write(family, folder, fused=device != "tensorrt")
    except (TvpError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever transformers, torch and optimum raise for a model that they cannot trace
        why = next(iter(str(error).splitlines()), "")
        raise ModelError(
            f"This {family.name} model cannot be exported: a part of it is not traced ({type(error).__name__}: {why}). "
            "It can be trained on and evaluated."
        ) from error
    reduce_precision(folder, precision, device)
    for file in folder.glob("*.onnx"):
        make_readable(file)
    manifest = replace(manifest, precision=precision, device=device, made_from=key, files=list_files(folder))
    digest = write_manifest(manifest, folder / "manifest.json")
    _record(key, digest)
    return digest


def provenance(family: Family, model: str | Path, prompt: Prompt | None) -> Provenance:
    """Return where a bundle comes from: its model, a folder, a hub id or `zoo:NAME`, and its prompt."""
    place = Path(families.locate(model))
    return Provenance(
        model=place.resolve().name if place.exists() else str(model),
        family=family.name,
        weights=families.digest(model),
        prompt=prompt.facts if prompt is not None else {},
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that make a bundle."""
    import onnxruntime  # behind tvp.sdk, which turns its telemetry off

    found = {name: _version(name) for name in ("tvp-edge", "torch", "transformers", "optimum-onnx", "onnx")}
    return found | {"onnxruntime": onnxruntime.__version__}  # its package may be onnxruntime-gpu, for instance


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "absent"
