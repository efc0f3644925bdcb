"""The kinds of models behind one interface (`model.Model`), and how a base is opened as one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._runtime.providers import Plan
from .._runtime.sessions import Parts
from .._runtime.sharing import share
from ..formats.manifest import BaseManifest, CausalManifest, ContrastiveManifest, Seq2SeqManifest
from .causal import CausalModel
from .contrastive import ContrastiveModel
from .model import Model
from .seq2seq import Seq2SeqModel

_MODELS: dict[type[BaseManifest], Any] = {
    CausalManifest: CausalModel,
    Seq2SeqManifest: Seq2SeqModel,
    ContrastiveManifest: ContrastiveModel,
}


def open_model(folder: Path, manifest: BaseManifest, plan: Plan, *, verify_files: bool = True) -> Model:
    """Open a base as the model of its kind, or return the one that another task has open; see `share`."""

    def make(folder: Path, open_graphs: Callable[[], Parts]) -> Model:
        model: Model = _MODELS[type(manifest)](folder, manifest, open_graphs)
        return model

    return share(folder, manifest, plan, make, verify_files=verify_files)
