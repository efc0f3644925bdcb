"""Tiny random models of every family, saved the way published checkpoints are."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "samples" / "zoo"))
import guide
import models


def save_tiny(name: str, folder: Path) -> Path:
    """Save a zoo architecture with random weights that give varied answers."""
    torch.manual_seed(0)
    tokenizer = models.make_tokenizer()
    model = models.MAKERS[name](tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)  # small starts give the same answer to everything
    models.save(name, model, tokenizer, folder)
    return folder


def save_tiny_guide(folder: Path) -> Path:
    """Save the guide's architecture with random weights."""
    torch.manual_seed(0)
    model, tokenizer = guide.make()
    guide.save(model, tokenizer, folder)
    return folder
