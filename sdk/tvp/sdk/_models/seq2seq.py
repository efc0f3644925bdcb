"""Models with an encoder for picture and question, and a decoder for the answer (T5)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._runtime.sessions import Parts, run_all
from ..errors import BundleError
from ..formats.manifest import Seq2SeqManifest
from .generative import GenerativeModel, Question, Seen
from .graph_shapes import check_encoder, check_seq2seq_decoder, check_vision_encoder
from .kv_cache import cache_type_of


class GrowingKeyValues:
    """Keys and values of a decoder behind an encoder: the encoder's, and its own, which grow by copying.

    Args:
        encoder, decoder: onnxruntime's sessions.
        manifest: of the base.
    """

    def __init__(self, encoder: Any, decoder: Any, manifest: Seq2SeqManifest) -> None:
        self._encoder, self._decoder, self._manifest = encoder, decoder, manifest
        self._type = cache_type_of(decoder)
        self._cross: dict[str, NDArray[Any]] = {}
        self._past: dict[str, NDArray[Any]] = {}

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that it takes now."""
        return sum(value.nbytes for tensors in (self._cross, self._past) for value in tensors.values())

    def read(self, embeddings: NDArray[np.float32]) -> None:
        """Run the encoder over embeddings (1, n_read, n_text), and begin a new answer."""
        names = [output.name for output in self._encoder.get_outputs()]
        self._cross = dict(zip(names, run_all(self._encoder, {"inputs_embeds": embeddings}), strict=True))
        self.rewind()

    def room(self, row: int = 0) -> int:
        """Return how many more tokens a row can take. T5's positions are relative, so nothing bounds them."""
        return sys.maxsize

    def rewind(self) -> None:
        """Forget the answer, and keep the encoder's keys and values."""
        empty = np.zeros((1, self._manifest.n_kv_heads, 0, self._manifest.head_size), self._type)
        self._past = {name.replace("cross", "past"): empty for name in self._cross}

    def run(self, embeddings: NDArray[np.float32], n_logits: int) -> NDArray[np.float32]:
        """Append embeddings (n_rows, n_new, n_text); returns logits (n_rows, n_logits, n_vocab) of the last ones."""
        logits, *present = run_all(self._decoder, {"inputs_embeds": embeddings, **self._past, **self._cross})
        self._past = dict(zip(self._past, present, strict=True))
        return logits[:, -n_logits:]

    def copies(self, n_rows: int, n_new: int) -> GrowingKeyValues:
        """Return copies of a single sequence, to be continued in different ways in one batch."""
        other = GrowingKeyValues(self._encoder, self._decoder, self._manifest)
        other._cross, other._past = (
            {name: value.repeat(n_rows, 0) for name, value in tensors.items()} for tensors in (self._cross, self._past)
        )
        return other


class Seq2SeqModel(GenerativeModel[Seq2SeqManifest, GrowingKeyValues]):
    """See `Model`. The encoder's keys and values stay in a view's cache until another question comes."""

    def __init__(self, folder: Path, manifest: Seq2SeqManifest, open_graphs: Callable[[], Parts]) -> None:
        if manifest.start_token >= manifest.n_vocab:
            raise BundleError(
                f"The manifest in {folder} names the token {manifest.start_token}, and its vocabulary has "
                f"{manifest.n_vocab}. Export the bundle again."
            )
        super().__init__(folder, manifest, open_graphs)
        self.encoder, self.decoder = self.parts.sessions["encoder"], self.parts.sessions["decoder"]
        check_vision_encoder(self.vision_encoder, self.connector, manifest)
        check_seq2seq_decoder(self.decoder, manifest)
        check_encoder(self.encoder, manifest)

    def new_cache(self) -> GrowingKeyValues:
        return GrowingKeyValues(self.encoder, self.decoder, self.manifest)

    def prefill(
        self, seen: Seen[GrowingKeyValues], question: Question, tokens: Sequence[int] = ()
    ) -> NDArray[np.float32]:
        if seen.read != question.text:
            seen.read = ""
            seen.cache.read(self.join(seen, question, question.after))
            seen.read = question.text
        seen.cache.rewind()
        return seen.cache.run(self.embed([self.manifest.start_token, *tokens])[None], len(tokens) + 1)
