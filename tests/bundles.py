"""Small bundles for tests: exported once a session, copied by whoever wants to break one."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import save_tiny
from tvp.export.bundle import export
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
