"""Can a language model be exported? It is tried on a few layers and a few tokens, which takes seconds, before the rest.

The trial compares with transformers' own forward, so it sees what TVP does not know of: positions, multipliers, caps,
windows, and operations that ONNX or onnxruntime lack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import onnxruntime
import torch
from torch import Tensor, nn

from tvp.sdk.errors import ModelError, TvpError
from tvp.trainer.families.family import GenerativeFamily

from .graphs import embeddings_of
from .parity import bound

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "mrope")
N_READ, N_STEPS, N_IMAGE = 40, 2, 3  # tokens of the trial: read at once, one by one; and those that stand for a picture
N_HEAD = 64  # rows of a head that are tried


@contextmanager
def refusals(family: GenerativeFamily) -> Iterator[None]:
    """Turn whatever a model raises while it is tried into a ModelError of one sentence with the operation's name."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each of transformers, torch, optimum and onnxruntime has its own
        if isinstance(error, TvpError) and str(error).startswith("This "):
            raise
        kind = getattr(family.text_config, "model_type", family.name)
        raise ModelError(
            f"This {family.name} model cannot be exported: {kind!r} is not traced, because {_reason(error)}. "
            "It can be trained on and evaluated. docs/reference/decoders.md lists the language models that can."
        ) from error


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())
    if isinstance(error, ModelError):
        return said
    if found := re.search(r"operator '?(aten::\w+|\w+::\w+)'?", said):
        return f"ONNX has no counterpart of its operation {found[1]}"
    if "'NewKeyValues' object has no attribute" in said or "cache of its own" in said:
        return f"its {_innermost(error)} keeps a state that is no keys and values"
    if "unexpected keyword argument 'past_key_values'" in said:
        return f"its {said.partition('.')[0]} keeps no keys and values"
    if found := re.search(r"running (\w+) node", said):
        return f"its operation {found[1]} does not run in onnxruntime for other lengths than the traced one"
    where = f"its {inner}" if (inner := _innermost(error)) else "an operation of it"
    return f"{where} does not run here ({type(error).__name__}: {said[:160].rstrip('. ')})"


def _innermost(error: Exception) -> str:
    """Return the innermost function of transformers' models that an error came from."""
    place = error.__traceback__
    inner = ""
    while place is not None:
        code = place.tb_frame.f_code
        if "transformers/models" in code.co_filename.replace("\\", "/"):
            owner = place.tb_frame.f_locals.get("self")
            inner = f"{type(owner).__name__}.{code.co_name}" if owner is not None else code.co_name
        place = place.tb_next
    return inner


def refuse_unknown_positions(family: GenerativeFamily) -> None:
    """Refuse rotary positions of a type that nobody looked at: whether they depend on the length is not known."""
    for module in family.model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str) and kind not in ROPE_TYPES:
            raise ModelError(f"its rotary positions are of the type {kind!r}; known are {', '.join(ROPE_TYPES)}")


def session(file: Path) -> onnxruntime.InferenceSession:
    """Open a tried graph. onnxruntime prints nothing of its own where it fails; `refusals` says it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def different(mine: Tensor, own: Tensor) -> str:
    """Return the difference of logits in words; '' where they are equal within the gate's bound."""
    far = float((mine - own).abs().max())
    allowed = bound(float(own.abs().max()))
    return "" if far <= allowed else f"its scores differ by {far:.1e}, and {allowed:.1e} is allowed"


def trial_inputs(family: GenerativeFamily, n: int) -> Tensor:
    """Return embeddings (1, n, n_text) of tokens from all over the vocabulary."""
    ids = torch.linspace(0, len(family.embed_tokens.weight) - 1, n).long()  # type: ignore[arg-type]
    return embeddings_of(family, ids)[None].clone()


@contextmanager
def shortened(family: GenerativeFamily, decoder: nn.Module) -> Iterator[int]:
    """Leave one layer of each kind, at least two, and the first rows of the head; gives the number of layers.

    Layers are of one kind if they consist of the same modules. All is put back at the end.
    """
    layers, config = getattr(decoder, "layers", None), family.text_config
    head = family.model.get_output_embeddings()
    narrow: Any = nullcontext()
    if isinstance(head, nn.Linear) and head.out_features > N_HEAD:
        narrow = _narrowed(head)
    with narrow:
        if not isinstance(layers, nn.ModuleList) or len(layers) <= 2:
            yield int(getattr(config, "num_hidden_layers", 0))
            return
        kinds = [_kind_of_layer(layer) for layer in layers]
        chosen = sorted({kinds.index(kind) for kind in kinds} | {0, 1})
        numbers: list[tuple[Any, int]] = [
            (module, int(module.layer_idx))  # type: ignore[arg-type]
            for place in chosen
            for module in layers[place].modules()
            if isinstance(getattr(module, "layer_idx", None), int)
        ]
        types = getattr(config, "layer_types", None)
        n_before = config.num_hidden_layers
        try:
            decoder.layers = nn.ModuleList(layers[place] for place in chosen)
            for module, number in numbers:
                module.layer_idx = chosen.index(number)
            config.num_hidden_layers = len(chosen)
            if isinstance(types, list):
                config.layer_types = [types[place] for place in chosen]
            yield len(chosen)
        finally:
            decoder.layers = layers
            for module, number in numbers:
                module.layer_idx = number
            config.num_hidden_layers = n_before
            if isinstance(types, list):
                config.layer_types = types


def _kind_of_layer(layer: nn.Module) -> tuple[Any, ...]:
    told = [type(module).__name__ for module in layer.modules()]
    marks = ("sliding_window", "attention_type", "use_rope", "is_sliding", "layer_type")
    return (*told, *(str(getattr(module, mark, "")) for module in layer.modules() for mark in marks))


@contextmanager
def _narrowed(head: nn.Linear) -> Iterator[None]:
    weight, bias = head.weight, head.bias
    with (
        mock.patch.object(head, "out_features", N_HEAD),
        torch.no_grad(),
    ):
        try:
            head.weight = nn.Parameter(weight[:N_HEAD], requires_grad=False)
            head.bias = None if bias is None else nn.Parameter(bias[:N_HEAD], requires_grad=False)
            yield
        finally:
            head.weight, head.bias = weight, bias
