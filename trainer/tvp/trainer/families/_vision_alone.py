"""Loading a checkpoint's vision encoder and connector, and leaving its language model on the disk.

Losses that compare features ask no question. A language model takes most of a checkpoint's memory, and they never
run it: so its modules are there, without values, and a 7B model's encoder fits a laptop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig

from tvp.sdk.errors import ModelError

LANGUAGE = {"language_model", "text_model", "lm_head", "text_projection"}  # modules of transformers
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_vision(
    architecture: Any, config: Any, folder: Path, dtype: torch.dtype, safe: dict[str, Any]
) -> tuple[Any, list[str]] | None:
    """Return a model whose language model has no values, and the names of tensors that it has no place for.

    Args:
        architecture: a class of transformers.
        config: its configuration.
        folder: of the checkpoint, whose files have been looked at.
        dtype: of the weights.
        safe: what every loader of transformers is told.

    Returns:
        None where the weights are not safetensors, or have names that only the architecture's own loader knows.
    """
    files = _files(folder)
    if not files:
        return None
    model = _without_values(architecture, config, dtype)
    known = model.state_dict()
    wanted = {name for name in known if not is_language(name)}
    state: dict[str, Tensor] = {}
    unread = []
    for file in files:
        for key, name, tensors in _named(file, architecture):
            if name in wanted:
                value = tensors.get_tensor(key)
                state[name] = value.to(_type_of(name, model, dtype)) if value.is_floating_point() else value
            elif name not in known:
                unread.append(key)
    if any(known[name].is_meta for name in wanted - state.keys()):
        return None
    model.load_state_dict(state, strict=False, assign=True)
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder, **safe)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in LANGUAGE:
            _leave_out(module)
    ignored = model._keys_to_ignore_on_load_unexpected or []
    return model, [key for key in unread if not any(re.search(pattern, key) for pattern in ignored)]


def is_language(name: str) -> bool:
    """Return whether a tensor of this name belongs to a language model or to a text encoder."""
    return not LANGUAGE.isdisjoint(name.split("."))


def _files(folder: Path) -> list[Path]:
    """Return the files that transformers would read, if they are safetensors."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    return sorted({folder / shard for shard in shards})


def _without_values(architecture: Any, config: Any, dtype: torch.dtype) -> Any:
    """Make a model whose parameters take no memory; buffers, which are computed, have their values."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            return architecture(config).eval()
    finally:
        torch.set_default_dtype(before)


def _named(file: Path, architecture: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield each tensor's name in a file, its name in today's architecture, and the opened file."""
    renamed = getattr(architecture, "_checkpoint_conversion_mapping", {})
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  it is no dictionary
            name, n = key, 0
            for pattern, replacement in renamed.items():
                name, n = re.subn(pattern, replacement, key)
                if n:
                    break
            yield key, name, tensors


def _type_of(name: str, model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a tensor: some parts stay in float32 in half precision, as transformers keeps them."""
    kept: list[str] = []
    if dtype == torch.float16:
        kept += getattr(model, "_keep_in_fp32_modules", None) or []
    if dtype in (torch.float16, torch.bfloat16):
        kept += getattr(model, "_keep_in_fp32_modules_strict", None) or []
    return torch.float32 if set(kept) & set(name.split(".")) else dtype


def _leave_out(module: nn.Module) -> None:
    """Keep a module where it is when its model moves, and refuse to run it."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise ModelError("This model was loaded without its language model. Load it whole to ask it questions.")

    module._apply = lambda function, recurse=True: module  # type: ignore[method-assign]
    for part in module.modules():
        part.forward = refuse
