"""The features of a frozen model at several depths: what Feature Consistency Alignment and moments compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from tvp.sdk.errors import ModelError

from .families import Family

ALL = 0  # depths: every layer of the vision encoder, and what the language model reads
OF_VISION = ("vision", "visual", "image")  # parts of a module's name
OF_LANGUAGE = ("language_model", "text_model")


def vision_layers(family: Family) -> list[nn.Module]:
    """Return the layers of a family's vision encoder, from the picture on.

    They are lists of modules whose names say vision, and that lie in no other such list; of these, the lists of one
    parent that have most modules together: the layers of a transformer, or the stages of a convolutional network. A
    family may name its own in `vision_layers`.

    Raises:
        ModelError: there is no such list.
    """
    if hasattr(family, "vision_layers"):
        return list(family.vision_layers)
    lists: dict[str, list[nn.Module]] = {}
    by_parent: dict[str, list[nn.Module]] = {}
    for name, module in family.model.named_modules():
        of_vision = any(word in name for word in OF_VISION) and not any(word in name for word in OF_LANGUAGE)
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList | nn.Sequential) and of_vision and not inside:
            lists[name] = list(module)
            by_parent.setdefault(name.rpartition(".")[0], []).extend(module)
    if not by_parent:
        raise ModelError(
            f"The layers of the vision encoder of {family.name} are not known. Use --depths 1, its output."
        )
    return max(by_parent.values(), key=len)


def features(
    family: Family, pixels: Float[Tensor, "n 3 size size"], n_depths: int = 1, connected: bool = True
) -> tuple[Tensor, list[Float[Tensor, "n _ _"]]]:
    """Encode pictures; return the output of the vision encoder, and the features at some depths.

    Args:
        family: the model.
        pixels: its pixel values.
        n_depths: how many depths: the output, which is the last, and n - 1 layers that lie evenly before it. 0 takes
            every layer. Default 1.
        connected: whether the output is among them. Default True.

    Returns:
        The output of `Family.encode`; and for each depth (n, tokens, width). The last are the embeddings that the
        language model reads, or the output of the vision encoder where these depend on the question.
    """
    with _captured(_chosen(family, n_depths)) as outputs:
        encoded = family.encode(pixels)
    if connected:
        outputs.append(encoded if family.reads_question else family.connect(encoded))
    return encoded, [_as_tokens(output, len(pixels)) for output in outputs]


def _chosen(family: Family, n_depths: int) -> list[nn.Module]:
    if n_depths == 1:
        return []
    layers = vision_layers(family)
    n = len(layers) if n_depths == ALL else min(n_depths - 1, len(layers))
    # The layer just before the output says least that the output does not say.
    return [layers[i] for i in np.linspace(0, len(layers) - 1, n + 1, dtype=int)[:n]] if n < len(layers) else layers


@contextmanager
def _captured(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what the layers return while the context is open, in their order."""
    outputs: dict[int, Tensor] = {}

    def keep(i: int, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs[i] = output[0] if isinstance(output, tuple) else output

    hooks = [
        layer.register_forward_hook(lambda module, given, output, i=i: keep(i, output))
        for i, layer in enumerate(layers)
    ]
    found: list[Tensor] = []
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        found += [outputs[i] for i in sorted(outputs)]


def _as_tokens(output: Tensor, n: int) -> Float[Tensor, "n _ _"]:
    """Return features as (pictures, tokens, width); those of a convolution are (n, width, height, width)."""
    if output.ndim == 4:
        return output.flatten(2).transpose(1, 2)
    return output.reshape(n, -1, output.shape[-1])  # Qwen2-VL has the tokens of all pictures in a row
