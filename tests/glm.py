"""VisualGLM's parts once more, whole and without a cache, to compare the families with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def visualglm_image_embeds(model: Any, pixels: Tensor) -> Tensor:
    """What the language model reads of pictures (n, 3, size, size): (n, n_image, n_text)."""
    seen = model.vision_model(pixels).last_hidden_state
    queries = model.query_tokens.expand(len(pixels), -1, -1)
    read = model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
    return model.language_projection(read)


def prefix_layout(
    context_lengths: Sequence[int] | Tensor,
    length: int,
    *,
    padding: Sequence[int] | Tensor | None = None,
    start: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Say who may look at whom, and where everyone stands.

    context_lengths: (n,), each row's number of tokens before <sop>: image, text and, as the last of
        them, [gMASK]; padding not counted.
    length: the columns of a row: padding, context, <sop> and answer.
    padding: (n,), how many columns on the left of each row hold nothing; default none.
    start: leave out the rows of the first `start` tokens, whose keys are in a cache already.

    Returns a mask (n, 1, n_query, length), True where the query (row) may look at the key (column), and the
    two positions of each query (n, 2, n_query). Reproduces `get_masks` and `get_position_ids` of the
    release, whose context ends before <sop> ("seq.index(bos_token_id)"); with padding, positions count
    from the first real token.
    """
    context = torch.as_tensor(context_lengths, device=device)[:, None]  # (n, 1)
    empty = torch.zeros_like(context) if padding is None else torch.as_tensor(padding, device=device)[:, None]
    columns = torch.arange(length, device=context.device)
    place = columns - empty  # (n, length), negative where there is padding
    sees = (columns <= columns[start:, None]) | (place < context)[:, None, :]  # (n, n_query, length)
    sees = sees & (place >= 0)[:, None, :] & (place[:, start:] >= 0)[:, :, None]
    absolute = torch.where(place < context, place, context - 1).clamp(min=0)
    block = (place - context + 1).clamp(min=0)
    return sees[:, None], torch.stack([absolute, block], 1)[:, :, start:]
