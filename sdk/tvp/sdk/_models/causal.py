"""Models with a decoder alone: picture, question and answer are one sequence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._generation import Answering, end_when_stopped
from .._runtime.sessions import Parts
from ..formats.manifest import CausalManifest
from .generative import GenerativeModel, Question, Seen, reply_of
from .graph_shapes import check_decoder, check_vision_encoder
from .kv_cache import Decoder, KeyValues
from .model import Reply, Request


class CausalModel(GenerativeModel[CausalManifest, KeyValues]):
    """See `Model`. The picture and the text before it stay in a view's cache from one question to the next."""

    def __init__(self, folder: Path, manifest: CausalManifest, open_graphs: Callable[[], Parts]) -> None:
        super().__init__(folder, manifest, open_graphs)
        session = self.parts.sessions["decoder"]
        check_vision_encoder(self.vision_encoder, self.connector, manifest)
        check_decoder(session, manifest)
        self.decoder = Decoder(session, manifest, self.n_before, self.parts.device_id)

    def new_cache(self) -> KeyValues:
        return KeyValues(self.decoder)

    def refuse_too_long(self, question: Question, n_answer: int = 0) -> None:
        self.decoder.refuse_length(self.n_prompt(question) + n_answer)

    def shared_tokens(self, candidates: Sequence[list[int]]) -> list[int]:
        # Where all tokens of a prompt see each other, the question would see a label's tokens too.
        return super().shared_tokens(candidates) if self.manifest.n_causal != 0 else []

    def prefill(self, seen: Seen[KeyValues], question: Question, tokens: Sequence[int] = ()) -> NDArray[np.float32]:
        cache, after, n_causal = seen.cache, question.after, self.manifest.n_causal
        n_picture = len(question.before) + self.manifest.n_image_tokens
        n_prompt = n_picture + len(after)
        is_read = seen.read == question.text
        if is_read and not tokens and seen.logits is not None and cache.length >= n_prompt:
            cache.rewind(n_prompt)
            return seen.logits.copy()
        # Where the picture sees the question, only the same question leaves the cache as it is.
        n_kept = n_picture if n_causal < 0 else n_prompt - max(n_causal, 1)
        reads_question = self.connector is not None or n_causal >= 0
        keeps = cache.length >= n_kept and (is_read or not reads_question)
        seen.read, seen.logits = "", None
        if keeps:
            cache.rewind(n_kept)
            logits = cache.run(self.embed([*after[n_kept - n_picture :], *tokens])[None], len(tokens) + 1)
        else:
            cache.rewind()
            everything = self.join(seen, question, [*after, *tokens])
            # Below fp32 the kernels round by the number of tokens that are read together. A later question about the
            # picture is read alone, and so is the first one: its answer does not depend on what was asked before.
            if n_causal > 0 or (n_causal < 0 and self.manifest.precision != "fp32"):
                cache.run(everything[:, :n_kept], 1)
                everything = everything[:, n_kept:]
            logits = cache.run(everything, len(tokens) + 1)
        seen.read = question.text
        if not tokens:
            seen.logits = logits.copy()
        return logits

    def answer_many(self, seen: Sequence[Seen[KeyValues]], requests: Sequence[Request], began: float) -> list[Reply]:
        """Prompts are read one by one; answers are decoded together."""
        answerings = [self._begin(request, began) for request in requests]
        rows, first, going = [], [], []
        for state, request, answering in zip(seen, requests, answerings, strict=True):
            answering.limited_from = math.inf  # prompts are read for the whole batch
            logits = self._first_logits(answering, state, request.question)
            if logits is not None:
                going.append(answering)
                first.append(logits)
                rows.append(state.cache.copies(1, 0))  # the same picture may be asked again before its answer goes on
        for answering in going:
            answering.limited_from = time.perf_counter()
        if going:
            n_new = max(answering.generation.max_new_tokens for answering in going)
            self._decode_together(going, KeyValues.together(rows, n_new), np.concatenate(first))
        return [reply_of(answering) for answering in answerings]

    def _decode_together(self, answerings: Sequence[Answering], batch: KeyValues, logits: NDArray[np.float32]) -> None:
        """`_steps` for all rows of a batch at once; logits: (n_rows, 1, n_vocab)."""
        tokens: list[int | None] = [0] * len(answerings)
        while True:
            for row, token in enumerate(tokens):
                if token is not None:
                    tokens[row] = answerings[row].take(logits[row, -1], batch.room(row))
                batch.lengths[row] -= tokens[row] is None  # an answer that has ended stays where it is
            going = [answering for answering, token in zip(answerings, tokens, strict=True) if token is not None]
            if not going:
                return
            with end_when_stopped(going):
                logits = batch.run(self.embed([token or 0 for token in tokens])[:, None], 1)
            if going[0].finish:
                return
