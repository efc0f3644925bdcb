"""Tokenizers of generative models as single files that tokenize a prompt as the family does."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from tvp.sdk.errors import ModelError
from tvp.trainer.families.family import GenerativeFamily


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path, family: GenerativeFamily | None = None) -> None:
    """Write a tokenizer to a file that the sdk reads.

    Args:
        tokenizer: the tokenizer of the language model or of the connector.
        file: where to write it.
        family: the model. The written tokenizer then adds the special tokens that the family adds to a prompt.
            Default: none, the tokenizer is written as it is.

    Raises:
        ModelError: the tokenizer has no fast version, or it cannot make the tokens of the family's prompts.
    """
    backend = fast(tokenizer)
    if family is not None:
        backend = _with_special_tokens(backend, family)
    backend.save(os.fspath(file))


def fast(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the `tokenizers.Tokenizer` inside a tokenizer; raises ModelError if it has no fast version."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"The tokenizer of {tokenizer.name_or_path!r} has no fast version. The sdk needs one.")
    return backend


def _with_special_tokens(backend: Tokenizer, family: GenerativeFamily) -> Tokenizer:
    """Return a tokenizer that begins and ends a prompt with the family's special tokens: this one, or a copy."""
    layout = family.layout
    text = layout.prompt.replace("{image}", layout.image_token).replace("{question}", "a")
    before, after = family.prompt_ids("a")
    image = backend.encode(layout.image_token, add_special_tokens=False).ids if "{image}" in layout.prompt else []
    wanted = [*before, *image, *after]
    if backend.encode(text).ids == wanted:
        return backend
    inner = backend.encode(text, add_special_tokens=False).ids
    start = next((i for i in range(len(wanted)) if wanted[i : i + len(inner)] == inner), None)
    if start is None:
        raise ModelError(
            f"This {family.name} model cannot be exported yet: its tokenizer gives other tokens for {text!r} than its "
            f"prompts have. The tokenizer gives {inner[:12]}, and a prompt has {wanted[:12]}."
        )
    added = [[(str(backend.id_to_token(i)), i) for i in ids] for ids in (wanted[:start], wanted[start + len(inner) :])]
    copy = Tokenizer.from_str(backend.to_str())
    copy.post_processor = TemplateProcessing(
        single=[*(token for token, _ in added[0]), "$A", *(token for token, _ in added[1])],
        special_tokens=list(dict.fromkeys(added[0] + added[1])),
    )
    return copy
