"""Small bundles for tests: exported once a session, copied by whoever wants to break one."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.tiny import save_tiny
from tvp import sdk
from tvp.export.bundle import export
from tvp.sdk.errors import BundleError
from tvp.trainer import tasks
from tvp.trainer.prompt import Geometry, Prompt


def seal(content) -> bytes:
    """A manifest with any content, sealed as docs/reference/bundle.md says; written apart from the sdk, on purpose."""
    whole = {**content, "format": 2, "sha256": "0" * 64}
    data = (json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode())


def random_prompt() -> Prompt:
    geometry = Geometry(64, 48)
    prompt = Prompt.start(geometry, "free")
    noise = torch.rand(prompt.frame.shape, generator=torch.Generator().manual_seed(5))
    prompt.frame = noise * geometry.mask()
    return prompt


def make_bundle(name: str, folder: Path) -> Path:
    """Export a random tiny model with a random prompt; returns the bundle's folder."""
    model = save_tiny(name, folder / "model")
    export(model, tasks.get("count"), folder / "bundle", prompt=random_prompt(), n_cases=6)
    return folder / "bundle"


def reads_weights_from(place: str) -> bytes:
    """An onnx model whose only weight lies in another file."""
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", place), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    output = onnx.helper.make_tensor_value_info("y", 1, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [weight])
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def listed_anew(manifest: bytes, name: str, content: bytes) -> bytes:
    """A sealed manifest that lists this content of one of its files."""
    said = json.loads(manifest)
    said["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return seal(said)


def flip_bytes(folder: Path, n_times: int) -> int:
    """Change a random byte of each file of a bundle: loading must name the file; returns how many files.

    A manifest's byte, which it is read by, n_times; a tenth of that for other files, whose bytes are only hashed.
    """
    rng = np.random.default_rng(0)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for file in files:
        whole = file.read_bytes()
        for _ in range(n_times if file.name == "manifest.json" else n_times // 10):
            broken = bytearray(whole)
            broken[rng.integers(len(broken))] ^= rng.integers(1, 256)
            file.write_bytes(broken)
            with pytest.raises(BundleError, match=re.escape(f"{file} ")):
                sdk.load(folder)
        file.write_bytes(whole)
    sdk.load(folder).close()
    return len(files)
