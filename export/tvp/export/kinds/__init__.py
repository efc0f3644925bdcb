"""The parts of an export that depend on the model kind. Nothing outside this folder asks for the kind."""

from __future__ import annotations

from typing import Any, cast

from tvp.sdk.errors import ModelError
from tvp.trainer.families import Family

from . import causal, contrastive, seq2seq
from .kind import Kind

_KINDS: dict[str, Any] = {"causal": causal, "seq2seq": seq2seq, "contrastive": contrastive}


def kind_of(family: Family) -> Kind:
    """Return the module of a model's kind; raises ModelError for a family that cannot be exported."""
    if not family.exports:
        raise ModelError(f"A {family.name} model cannot be exported yet; it can be trained on and evaluated.")
    return cast(Kind, _KINDS[family.kind])
