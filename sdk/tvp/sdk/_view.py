"""A picture that a task has seen, and the answers about it: `View`, `Answer`, `Ranked`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ._decoder import GrowingKeyValues, KeyValues, log_softmax
from ._generation import Answering, Generation, Options
from ._image import ImageLike
from .errors import BundleError

if TYPE_CHECKING:
    from ._task import Task

Cache = KeyValues | GrowingKeyValues

N_TOGETHER = 16  # labels that are scored at once: each has a copy of the picture's keys and values


@dataclass(frozen=True)
class Answer:
    """What a task answers; `str(answer)` is the text.

    tokens: ids, the end token included where the model gave one.
    log_probabilities: one a token.
    timing: seconds, by step: `see` (0 where the view was there already), `first_token`, `total`.
    finish: why it ends: `end` (the model said so), `length` (the limit or the context is reached), `stop`, `time` or
        `cancelled`; or `label`: the model only chooses among labels, there are no tokens, and log_probabilities holds
        the label's score.
    """

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    timing: Mapping[str, float]
    finish: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Ranked:
    """A label and its score: the mean log-probability of its tokens; of a model that only chooses among labels, the
    label's log-probability, among the others (CLIP) or by itself (SigLIP)."""

    label: str
    score: float


class View:
    """A picture as a loaded task sees it. Keys and values of picture and prefix are kept, so a second
    question costs its own tokens only. One view may be asked from several threads; they take turns."""

    def __init__(self, task: Task, features: NDArray[np.float32], seconds: float) -> None:
        self._task = task
        self._base = task.base
        self._features = features  # image embeddings, but where a connector makes those with the question
        self._read = ""  # the question that the connector or the encoder has read
        self._seconds = seconds
        self._cache: Cache = KeyValues(self._base) if self._base.encoder is None else GrowingKeyValues(self._base)
        self._lock = threading.Lock()

    def ask(self, question: str | None = None, **options: Unpack[Options]) -> Answer:
        """Answer a question about this picture; see `Task.ask`."""
        answering = self._begin(options)
        with self._lock:
            for _ in self._steps(answering, self._cache, self._prefill(question)):
                pass
        return self._finish(answering)

    def stream(self, question: str | None = None, **options: Unpack[Options]) -> Iterator[str]:
        """Answer in pieces of text as they come; see `Task.stream`.

        The view can be asked other things in between: a stream goes on in a copy of its keys and values.
        """
        answering = self._begin(options)
        with self._lock:
            logits = self._prefill(question)
            cache = self._cache.copies(1, answering.generation.max_new_tokens)
        steps = self._steps(answering, cache, logits)
        pieces = (answering.speech.more(answering.tokens, last=bool(answering.finish)) for _ in steps)
        return (piece for piece in pieces if piece)

    def decode(self, question: str | None, limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each new token with its logits (n_vocab,), greedily; the last is an end token or the limit's.

        Not locked: the export's parity gate reads it; everybody else calls `ask`.
        """
        answering = self._begin({"max_new_tokens": limit})
        for logits in self._steps(answering, self._cache, self._prefill(question)):
            yield answering.tokens[-1], logits

    def _steps(self, answering: Answering, cache: Cache, logits: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Choose token after token, of the logits (1, 1, n_vocab) behind what the cache holds; yields each one's."""
        while True:
            token = answering.take(logits[0, -1], cache.room())
            yield logits[0, -1]
            if token is None:
                return
            logits = cache.run(self._embed([token])[None], 1)

    def _begin(self, options: Options) -> Answering:
        return Answering(self._base, self._task.generation(options), time.perf_counter())

    def _finish(self, answering: Answering) -> Answer:
        """The answer, whose time includes the picture's where it was not counted yet."""
        text, _ = answering.speech.text(answering.tokens)
        spent = time.perf_counter() - answering.began
        timing = {"see": self._seconds, "first_token": answering.first_token, "total": self._seconds + spent}
        self._seconds = 0.0
        return Answer(text, tuple(answering.tokens), tuple(answering.scores), timing, answering.finish)

    def rank(self, question: str | None = None, *, labels: Sequence[str] | None = None) -> list[Ranked]:
        """Score labels as answers to a question about this picture; best first."""
        labels = self._task.labels_to_rank(labels)
        with self._lock:
            return self._rank(question, labels)

    def _rank(self, question: str | None, labels: Sequence[str]) -> list[Ranked]:
        candidates = [self._base.words.answer_ids(label) for label in labels]
        lengths = np.array([len(ids) for ids in candidates])
        self._refuse_unknown([token for ids in candidates for token in ids])
        self._base.refuse_too_long(self._task.question(question), n_answer=int(lengths.max()) - 1)
        # Where all of a prompt's tokens see each other, the question would see a label's too.
        shared = _shared(candidates) if self._base.manifest.n_causal != 0 else []
        first = log_softmax(self._prefill(question, shared)[0])
        candidates = [ids[len(shared) :] for ids in candidates]
        totals = first[-1, [ids[0] for ids in candidates]].astype(np.float64)
        totals += first[range(len(shared)), shared].sum()
        for start in range(0, len(labels), N_TOGETHER):
            chosen = slice(start, start + N_TOGETHER)
            totals[chosen] += self._continuations(candidates[chosen])
        scores = totals / lengths
        order = np.argsort(-scores, kind="stable")
        return [Ranked(labels[i], float(scores[i])) for i in order]

    def _continuations(self, candidates: list[list[int]]) -> NDArray[np.float64]:
        """Summed log-probabilities of each candidate's tokens behind its first, which follows what was prefilled."""
        totals = np.zeros(len(candidates))
        length = max(len(ids) for ids in candidates) - 1
        # onnxruntime continues several sequences by one token a run only, so: all labels, token by token.
        branches = self._cache.copies(len(candidates), length) if length else None
        for step in range(length):
            fed = [ids[step] if step + 1 < len(ids) else ids[0] for ids in candidates]  # short ones are idle
            logits = log_softmax(branches.run(self._embed(fed)[:, None], 1)[:, -1])  # type: ignore[union-attr]
            for row, ids in enumerate(candidates):
                if step + 1 < len(ids):
                    totals[row] += float(logits[row, ids[step + 1]])
        return totals

    def _prefill(self, question: str | None, tokens: Sequence[int] = ()) -> NDArray[np.float32]:
        """Run what comes before the answer, and its first tokens where those are given; returns the logits of each of
        them and of the next (1, len(tokens) + 1, n_vocab)."""
        question = self._task.question(question)
        before, after = self._base.words.prompt_ids(question)
        connector = self._base.connector
        if isinstance(self._cache, GrowingKeyValues):
            if self._read != question:
                self._read = ""
                self._cache.read(self._join(before, question, after))
                self._read = question
            self._cache.rewind()
            return self._cache.run(self._embed([self._base.manifest.start_token, *tokens])[None], len(tokens) + 1)
        n_picture, n_causal = len(before) + self._base.manifest.n_image_tokens, self._base.manifest.n_causal
        # Where the picture sees the question, only the same question leaves what it began with as it is.
        n_kept = n_picture if n_causal < 0 else n_picture + len(after) - max(n_causal, 1)
        reads = connector is not None or n_causal >= 0
        if self._cache.length >= n_kept and (self._read == question or not reads):
            self._cache.rewind(n_kept)
            return self._cache.run(self._embed([*after[n_kept - n_picture :], *tokens])[None], len(tokens) + 1)
        self._cache.rewind()
        self._read = ""
        everything = self._join(before, question, [*after, *tokens])
        if n_causal > 0:
            self._cache.run(everything[:, :n_kept], 1)
            everything = everything[:, n_kept:]
        logits = self._cache.run(everything, len(tokens) + 1)
        self._read = question
        return logits

    def _join(self, before: list[int], question: str, after: list[int]) -> NDArray[np.float32]:
        """What the language model reads, as embeddings (1, n_all, n_text)."""
        connector = self._base.connector
        image = self._features if connector is None else connector.embed(self._features, question)
        manifest = self._base.manifest
        if image.shape != (1, manifest.n_image_tokens, manifest.n_text):
            raise BundleError(
                f"The vision encoder made image embeddings of the shape {image.shape}, and its manifest says "
                f"(1, {manifest.n_image_tokens}, {manifest.n_text}). Export the bundle again."
            )
        return np.concatenate([self._embed(before), image[0], self._embed(after)])[None]

    def _embed(self, ids: Any) -> NDArray[np.float32]:
        ids = self._refuse_unknown(ids)
        rows: NDArray[np.float32] = self._base.embeddings[ids].astype(np.float32, copy=False)
        return rows

    def _refuse_unknown(self, ids: Any) -> NDArray[np.int64]:
        tokens: NDArray[np.int64] = np.asarray(ids, np.int64)
        n_rows = len(self._base.embeddings)
        if (largest := tokens.max(initial=0)) >= n_rows:
            raise BundleError(
                f"The tokenizer gives the token {largest}, and embed_tokens.npy has {n_rows} rows. "
                "Export the bundle again."
            )
        return tokens


def _shared(candidates: Sequence[list[int]]) -> list[int]:
    """The tokens that all candidates begin with, and behind which each has at least one more."""
    n = min(len(ids) for ids in candidates) - 1
    while any(ids[:n] != candidates[0][:n] for ids in candidates):
        n -= 1
    return candidates[0][:n]


def answer_together(
    task: Task, requests: Sequence[tuple[ImageLike, str | None]], generation: Generation
) -> list[Answer]:
    """Answer questions about pictures: pictures are encoded together, and tokens decoded together."""
    views = _see_together(task, [image for image, _ in requests])
    began = time.perf_counter()
    answerings = [Answering(task.base, generation, began) for _ in requests]
    rows: list[KeyValues] = []
    first: list[NDArray[np.float32]] = []
    for view, answering, (_, question) in zip(views, answerings, requests, strict=True):
        logits = view._prefill(question)
        if isinstance(view._cache, KeyValues):
            first.append(logits)
            rows.append(view._cache.copies(1, 0))  # a view may be asked again before its answer goes on
        else:
            answering.limited_from = time.perf_counter()
            for _ in view._steps(answering, view._cache, logits):
                pass
    if rows:
        for answering in answerings:
            answering.limited_from = time.perf_counter()
        _decode_together(views[0], answerings, KeyValues.together(rows, generation.max_new_tokens), first)
    return [view._finish(answering) for view, answering in zip(views, answerings, strict=True)]


def _decode_together(
    view: View, answerings: Sequence[Answering], batch: KeyValues, first: Sequence[NDArray[np.float32]]
) -> None:
    """`View._steps` for all rows of a batch at once; first: each row's logits (1, 1, n_vocab)."""
    logits = np.concatenate(first)
    tokens: list[int | None] = [0] * len(answerings)
    while True:
        for row, token in enumerate(tokens):
            if token is not None:
                tokens[row] = answerings[row].take(logits[row, -1], batch.room(row))
            batch.lengths[row] -= tokens[row] is None  # an answer that has ended stays where it is
        if all(token is None for token in tokens):
            return
        logits = batch.run(view._embed([token or 0 for token in tokens])[:, None], 1)


def _see_together(task: Task, images: Sequence[ImageLike]) -> list[View]:
    """A view for each picture; the same one where a picture comes several times in a row."""
    began = time.perf_counter()
    place: list[int] = []
    different: list[ImageLike] = []
    for image in images:
        if not different or not _same(image, different[-1]):
            different.append(image)
        place.append(len(different) - 1)
    pixels = np.concatenate([task.pixel_values(image) for image in different])
    # Below fp16 all that a vision encoder is given at once shares a scale: a picture's neighbours would change its
    # answer.
    takes_all = isinstance(task.base.vision_encoder.get_inputs()[0].shape[0], str)
    takes_all &= task.base.manifest.precision in ("fp32", "fp16")
    features = task.encode(pixels) if takes_all else np.concatenate([task.encode(row[None]) for row in pixels])
    seconds = (time.perf_counter() - began) / len(different)
    views = [task._view(features[i : i + 1], seconds) for i in range(len(different))]
    return [views[i] for i in place]


def _same(image: ImageLike, other: ImageLike) -> bool:
    named = isinstance(image, (str, os.PathLike)) and isinstance(other, (str, os.PathLike))
    return image is other or (named and image == other)
