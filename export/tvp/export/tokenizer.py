"""Tokenizers as single files, that tokenise as the families do without their help."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from tvp.sdk.errors import ModelError
from tvp.trainer.families.family import GenerativeFamily


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, file: Path, family: GenerativeFamily | None = None) -> None:
    """Write a tokenizer to a file.

    family: whose prompts it is for; the file's tokenizer then adds the marks that the family adds to a prompt.
    Raises ModelError for a tokenizer without a fast version, and where the family's prompts are other texts.
    """
    backend = fast(tokenizer)
    if family is not None:
        backend = _marking(backend, family)
    backend.save(os.fspath(file))


def fast(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A tokenizer as the sdk has it; raises ModelError for one without a fast version."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"The tokenizer of {tokenizer.name_or_path!r} has no fast version, which the sdk needs.")
    return backend


def _marking(backend: Tokenizer, family: GenerativeFamily) -> Tokenizer:
    """The tokenizer itself if it writes a prompt's begin and end as the family does, else a copy that does."""
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
            f"A prompt of this {family.name} is not what its tokenizer makes of {text!r} between marks, so the sdk "
            "could not ask it."
        )
    marks = [[(str(backend.id_to_token(i)), i) for i in ids] for ids in (wanted[:start], wanted[start + len(inner) :])]
    copy = Tokenizer.from_str(backend.to_str())
    copy.post_processor = TemplateProcessing(
        single=[*(token for token, _ in marks[0]), "$A", *(token for token, _ in marks[1])],
        special_tokens=list(dict.fromkeys(marks[0] + marks[1])),
    )
    return copy
