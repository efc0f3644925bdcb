"""Small bundles for tests: exported once a session, copied by whoever wants to break one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import save_tiny
from tvp import sdk
from tvp.export.bundle import export
from tvp.sdk.errors import BundleError
from tvp.trainer import tasks
from tvp.trainer.prompt import Geometry, Prompt


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


def flip_bytes(folder: Path, n_times: int) -> int:
    """Flip a random bit in each file of a bundle, n_times: loading must name the file; returns how many files."""
    rng = np.random.default_rng(0)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for file in files:
        whole = file.read_bytes()
        for _ in range(n_times):
            broken = bytearray(whole)
            broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
            file.write_bytes(broken)
            with pytest.raises(BundleError, match=file.name.replace(".", r"\.")):
                sdk.load(folder)
        file.write_bytes(whole)
    sdk.load(folder).close()
    return len(files)
