"""Models that write their answer token by token: what causal and seq2seq models share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .._following import Grammars
from .._generation import Answering, Generation, end_when_stopped, log_softmax
from .._results import Ranked
from .._runtime.sessions import Parts, TrimmedMemory, run
from ..errors import BundleError, RequestError
from ..formats.calibration import Calibrated, offsets_for
from ..formats.layout import UNKNOWN, PromptTokenizer, refuse_special_of_connector
from ..formats.manifest import GenerativeManifest
from ..formats.tokenizer import encode, read_tokenizer
from .embeddings import TokenEmbeddings
from .model import Reply, Request, encode_pictures

N_TOGETHER = 16  # labels that are scored at once: each has a copy of the picture's keys and values


class Cache(Protocol):
    """Keys and values of what a decoder has read."""

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that it takes now."""

    def room(self, row: int = 0) -> int:
        """Return how many more tokens a row can take."""

    def run(self, embeddings: NDArray[np.float32], n_logits: int) -> NDArray[np.float32]:
        """Append embeddings (n_rows, n_new, n_text); returns logits (n_rows, n_logits, n_vocab) of the last ones."""

    def copies(self, n_rows: int, n_new: int) -> Cache:
        """Return copies of a single sequence, to be continued by n_new tokens in one batch."""


CacheT = TypeVar("CacheT", bound=Cache)
ManifestT = TypeVar("ManifestT", bound=GenerativeManifest)


class Question(NamedTuple):
    """A parsed question.

    Attributes:
        text: the question.
        before, after: token ids before and behind the image embeddings.
        connector_ids: token ids that the connector reads; empty where it does not read the question.
    """

    text: str
    before: list[int]
    after: list[int]
    connector_ids: Sequence[int] = ()


class Labels(NamedTuple):
    """Parsed labels: texts, the token ids of each, and what is subtracted from their scores."""

    texts: tuple[str, ...]
    ids: list[list[int]]
    offsets: NDArray[np.float64]


@dataclass(eq=False, repr=False)
class Seen(Generic[CacheT]):
    """A picture that was encoded.

    Attributes:
        features: of the vision encoder, (1, …): image embeddings, unless a connector makes them with the question.
        cache: keys and values of the picture and of the text that was read with it.
        read: the question that is in the cache; '' for none.
        logits: of the token behind that question, (1, 1, n_vocab); None where they are not known.
    """

    features: NDArray[np.float32]
    cache: CacheT
    read: str = ""
    logits: NDArray[np.float32] | None = None


class GenerativeModel(Generic[ManifestT, CacheT]):
    """See `Model`. A subclass gives `new_cache` and `prefill`."""

    trimmed: TrimmedMemory

    def __init__(self, folder: Path, manifest: ManifestT, open_graphs: Callable[[], Parts]) -> None:
        self.manifest = manifest
        self.tokenizer = read_tokenizer(folder / "tokenizer.json")
        self.embeddings = TokenEmbeddings(folder, manifest)
        added = self.tokenizer.get_added_tokens_decoder()
        self.prompt_tokenizer = PromptTokenizer(
            manifest.layout,
            partial(encode, self.tokenizer),
            frozenset(token_id for token_id, token in added.items() if token.special and token.content != UNKNOWN),
        )
        try:
            self.n_before = len(self.prompt_tokenizer.prompt_ids("a")[0])
        except ValueError as error:
            raise BundleError(
                f"The base in {folder} is damaged: its tokenizer does not know its image token."
            ) from error
        self.grammars = Grammars(self.tokenizer, manifest.n_vocab, manifest.layout.end)
        self._connector_tokenizer: Tokenizer | None = None
        if manifest.n_connector_positions:
            self._connector_tokenizer = read_tokenizer(folder / "connector_tokenizer.json")
        self.parts = open_graphs()
        self.vision_encoder = self.parts.sessions["vision_encoder"]
        self.connector = self.parts.sessions.get("connector")

    # Parts of a subclass.

    def new_cache(self) -> CacheT:
        """Return an empty cache for one picture."""
        raise NotImplementedError

    def prefill(self, seen: Seen[CacheT], question: Question, tokens: Sequence[int] = ()) -> NDArray[np.float32]:
        """Read everything before the answer, and the answer's first tokens where they are given.

        Returns:
            Logits of each of those tokens and of the next, (1, len(tokens) + 1, n_vocab).
        """
        raise NotImplementedError

    def refuse_too_long(self, question: Question, n_answer: int = 0) -> None:
        """Raise RequestError where question and answer do not fit into the context."""

    def shared_tokens(self, candidates: Sequence[list[int]]) -> list[int]:
        """Return the tokens that all candidates begin with, where these may be read with the question."""
        return _common_start(candidates)

    # Requests.

    def parse(self, question: str) -> Question:
        before, after = self.prompt_tokenizer.prompt_ids(question)
        if self._connector_tokenizer is None:
            return Question(question, before, after)
        added = self._connector_tokenizer.get_added_tokens_decoder().values()
        refuse_special_of_connector(question, [token.content for token in added if token.special])
        text = self.manifest.layout.prompt.replace("{image}", "").replace("{question}", question)
        ids, most = encode(self._connector_tokenizer, text), self.manifest.n_connector_positions
        if len(ids) > most:
            raise RequestError(
                f"The question takes {len(ids)} tokens, and this model's Q-Former reads at most {most}. "
                "Ask a shorter question."
            )
        return Question(question, before, after, ids)

    def parse_labels(self, question: Question, labels: tuple[str, ...], calibration: Calibrated = ()) -> Labels:
        ids = [self.prompt_tokenizer.answer_ids(label) for label in labels]
        self.embeddings.refuse_unknown([token for row in ids for token in row])
        self.refuse_too_long(question, n_answer=max(len(row) for row in ids) - 1)
        return Labels(labels, ids, offsets_for(calibration, question.text, labels))

    def n_prompt(self, question: Question) -> int:
        return len(question.before) + self.manifest.n_image_tokens + len(question.after)

    def n_bytes(self, seen: Seen[CacheT]) -> int:
        logits = 0 if seen.logits is None else seen.logits.nbytes
        return seen.features.nbytes + seen.cache.n_bytes + logits

    def request(
        self, question: Question, generation: Generation, labels: tuple[str, ...], calibration: Calibrated = ()
    ) -> Request:
        structure = generation.structure
        grammar = None if structure is None else self.grammars.find(structure)
        return Request(question, generation, None, grammar)

    # Pictures.

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        output = "image_embeds" if self.connector is None else "image_features"
        return run(self.vision_encoder, output, {"pixel_values": pixels})

    def see(self, pixels: NDArray[np.float32]) -> list[Seen[CacheT]]:
        features = encode_pictures(self, pixels)
        return [Seen(features[i : i + 1], self.new_cache()) for i in range(len(pixels))]

    def features(self, seen: Seen[CacheT]) -> NDArray[np.float32]:
        return seen.features.reshape(-1, seen.features.shape[-1])

    # Answers.

    def answer(self, seen: Seen[CacheT], request: Request, began: float) -> Reply:
        answering = self._begin(request, began)
        for _ in self._steps(answering, seen.cache, self._first_logits(answering, seen, request.question)):
            pass
        return reply_of(answering)

    def stream(self, seen: Seen[CacheT], request: Request, began: float) -> Iterator[str]:
        answering = self._begin(request, began)
        logits = self._first_logits(answering, seen, request.question)
        # In a copy of the cache, so that the view can be asked other things between two pieces.
        steps = self._steps(answering, seen.cache.copies(1, request.generation.max_new_tokens), logits)
        return _pieces(answering, steps)

    def answer_many(self, seen: Sequence[Seen[CacheT]], requests: Sequence[Request], began: float) -> list[Reply]:
        """Answer one request after the other; a subclass may answer them together."""
        replies = []
        for state, request in zip(seen, requests, strict=True):
            answering = self._begin(request, began)
            answering.limited_from = math.inf  # a prompt is read for the whole batch
            logits = self._first_logits(answering, state, request.question)
            answering.limited_from = time.perf_counter()
            for _ in self._steps(answering, state.cache, logits):
                pass
            replies.append(reply_of(answering))
        return replies

    def decode(self, seen: Seen[CacheT], question: Question, limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        answering = self._begin(Request(question, Generation(limit)), time.perf_counter())
        for logits in self._steps(answering, seen.cache, self.prefill(seen, question)):
            yield answering.tokens[-1], logits

    def _begin(self, request: Request, began: float) -> Answering:
        follower = None if request.grammar is None else request.grammar.follow()
        return Answering(self.tokenizer, self.manifest.layout.end, request.generation, began, follower)

    def _first_logits(self, answering: Answering, seen: Seen[CacheT], question: Question) -> NDArray[np.float32] | None:
        """Read everything before the answer; returns `prefill`'s logits, or None where the answer ended meanwhile."""
        with end_when_stopped([answering]):
            return self.prefill(seen, question)
        return None

    def _steps(
        self, answering: Answering, cache: Cache, logits: NDArray[np.float32] | None
    ) -> Iterator[NDArray[np.float32]]:
        """Choose token after token and yield the logits (n_vocab,) of each.

        logits: (1, 1, n_vocab), of the token behind the cache; None where the answer has ended.
        """
        while logits is not None:
            token = answering.take(logits[0, -1], cache.room())
            yield logits[0, -1]
            logits = None
            if token is not None:
                with end_when_stopped([answering]):
                    logits = cache.run(self.embed([token])[None], 1)

    # Labels.

    def rank(self, seen: Seen[CacheT], question: Question, labels: Labels) -> list[Ranked]:
        candidates = labels.ids
        lengths = np.array([len(ids) for ids in candidates])
        shared = self.shared_tokens(candidates)
        first = log_softmax(self.prefill(seen, question, shared)[0])
        candidates = [ids[len(shared) :] for ids in candidates]
        totals = first[-1, [ids[0] for ids in candidates]].astype(np.float64)
        totals += first[range(len(shared)), shared].sum()
        for start in range(0, len(candidates), N_TOGETHER):
            chosen = slice(start, start + N_TOGETHER)
            totals[chosen] += self._continuations(seen.cache, candidates[chosen])
        scores = totals / lengths - labels.offsets
        order = np.argsort(-scores, kind="stable")
        return [Ranked(labels.texts[i], float(scores[i])) for i in order]

    def _continuations(self, cache: Cache, candidates: list[list[int]]) -> NDArray[np.float64]:
        """Sum the log-probabilities of each candidate's tokens behind its first, which follows the cache."""
        totals = np.zeros(len(candidates))
        length = max(len(ids) for ids in candidates) - 1
        if not length:
            return totals
        # onnxruntime continues several sequences by only one token a run. So all labels go on token by token.
        branches = cache.copies(len(candidates), length)
        for step in range(length):
            fed = [ids[step] if step + 1 < len(ids) else ids[0] for ids in candidates]  # short ones are idle
            logits = log_softmax(branches.run(self.embed(fed)[:, None], 1)[:, -1])
            for row, ids in enumerate(candidates):
                if step + 1 < len(ids):
                    totals[row] += float(logits[row, ids[step + 1]])
        return totals

    # Embeddings.

    def join(self, seen: Seen[CacheT], question: Question, after: Sequence[int]) -> NDArray[np.float32]:
        """Return what the language model reads, as embeddings (1, n_all, n_text); after: ids behind the picture."""
        image = seen.features if self.connector is None else self._connect(seen.features, question)
        manifest = self.manifest
        if image.shape != (1, manifest.n_image_tokens, manifest.n_text):
            raise BundleError(
                f"The vision encoder made image embeddings of the shape {image.shape}, and its manifest says "
                f"(1, {manifest.n_image_tokens}, {manifest.n_text}). Export the bundle again."
            )
        return np.concatenate([self.embed(question.before), image[0], self.embed(after)])[None]

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the embeddings (n, n_text) of token ids."""
        return self.embeddings.rows(ids)

    def _connect(self, features: NDArray[np.float32], question: Question) -> NDArray[np.float32]:
        ids = np.array([question.connector_ids], np.int64)
        inputs: dict[str, NDArray[Any]] = {
            "image_features": features,
            "question_ids": ids,
            "question_mask": np.ones_like(ids),
        }
        return run(self.connector, "image_embeds", inputs)


def reply_of(answering: Answering) -> Reply:
    text, _ = answering.text.text(answering.tokens)
    tokens, scores = tuple(answering.tokens), tuple(answering.scores)
    return Reply(text, tokens, scores, answering.first_token, answering.finish, answering.error)


def _pieces(answering: Answering, steps: Iterator[Any]) -> Iterator[str]:
    for _ in steps:
        if piece := answering.text.more(answering.tokens, last=bool(answering.finish)):
            yield piece
    if answering.error is not None:
        raise answering.error


def _common_start(candidates: Sequence[list[int]]) -> list[int]:
    """Return the tokens that all candidates begin with, and behind which each has at least one more."""
    n = min(len(ids) for ids in candidates) - 1
    while any(ids[:n] != candidates[0][:n] for ids in candidates):
        n -= 1
    return candidates[0][:n]
