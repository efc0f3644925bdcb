"""Models that choose among labels (CLIP, SigLIP): a picture's features against those of each label's text."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._generation import Generation, log_softmax
from .._results import Ranked
from .._runtime.sessions import Parts, TrimmedMemory, run
from ..errors import BundleError, RequestError
from ..formats.calibration import Calibrated, offsets_for
from ..formats.layout import refuse_half_characters
from ..formats.manifest import ContrastiveManifest
from ..formats.tokenizer import encode, read_text_tokenizer
from .graph_shapes import check_contrastive
from .model import Reply, Request, check_text, encode_pictures

N_TEXTS = 4096  # texts whose features a model remembers
REFUSED = {"temperature": 0.0, "stop": ()}  # options that have no meaning here, and their values when they are left out


class Labels(NamedTuple):
    """Parsed labels: the labels, the text of each that is compared with the picture, and what its score loses."""

    labels: tuple[str, ...]
    texts: list[str]
    offsets: NDArray[np.float64]


class ContrastiveModel:
    """See `Model`. A picture's state is its unit features (n_features,). Features of texts are computed once."""

    trimmed: TrimmedMemory

    def __init__(self, folder: Path, manifest: ContrastiveManifest, open_graphs: Callable[[], Parts]) -> None:
        self.manifest = manifest
        self.tokenizer = read_text_tokenizer(folder / "tokenizer.json", manifest.n_positions, manifest.pad_token)
        self.parts = open_graphs()
        sessions = self.parts.sessions
        self.vision_encoder, self.text_encoder = sessions["vision_encoder"], sessions["text_encoder"]
        check_contrastive(self.vision_encoder, self.text_encoder, manifest)
        added = self.tokenizer.get_added_tokens_decoder().values()
        self._special = tuple(token.content.lower() for token in added if token.special and token.content)
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()  # the last used comes last
        self._lock = threading.Lock()

    def parse(self, question: str) -> str:
        self._refuse_unreadable("question", question)
        return question

    def parse_labels(self, question: str, labels: tuple[str, ...], calibration: Calibrated = ()) -> Labels:
        for label in labels:
            self._refuse_unreadable("label", label)
        texts = self.manifest.captions.texts(question, labels)
        return Labels(labels, texts, offsets_for(calibration, question, labels))

    def refuse_too_long(self, question: str) -> None:
        """A text that is too long is cut."""

    def n_prompt(self, question: str) -> int:
        return 0

    def n_bytes(self, seen: NDArray[np.float32]) -> int:
        return seen.nbytes

    def request(
        self, question: str, generation: Generation, labels: tuple[str, ...], calibration: Calibrated = ()
    ) -> Request:
        for name, default in REFUSED.items():
            if getattr(generation, name) != default:
                raise RequestError(f"This task chooses among labels, so {name} has no meaning. Leave it out.")
        if generation.structure is not None:
            raise RequestError(
                f"This task chooses among labels and writes nothing, so {generation.structure.option} has no meaning. "
                "Give choices to rank: task.rank(image, question, labels=['…', '…'])."
            )
        if not labels:
            raise RequestError(
                "This task chooses among labels, and has none of its own. Give them to rank: "
                "task.rank(image, question, labels=['…', '…'])."
            )
        alone = replace(generation, cancel=None, time_limit=None)  # it has no answer that could end early
        return Request(question, alone, self.parse_labels(question, labels, calibration))

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return unit features (n, 1, n_features)."""
        return run(self.vision_encoder, "image_embeds", {"pixel_values": pixels})

    def see(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        features = encode_pictures(self, pixels).reshape(len(pixels), -1)
        if features.shape[1] != self.manifest.n_features:
            raise BundleError(
                f"The vision encoder gives {features.shape[1]} features, and its manifest says "
                f"{self.manifest.n_features}."
            )
        return list(features)

    def features(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:
        return seen[None]

    def answer(self, seen: NDArray[np.float32], request: Request, began: float) -> Reply:
        best = self.rank(seen, request.question, request.labels)[0]
        return Reply(best.label, (), (best.score,), time.perf_counter() - began, "label")

    def stream(self, seen: NDArray[np.float32], request: Request, began: float) -> Iterator[str]:
        return iter([self.answer(seen, request, began).text])

    def answer_many(
        self, seen: Sequence[NDArray[np.float32]], requests: Sequence[Request], began: float
    ) -> list[Reply]:
        return [
            self.answer(features, request, time.perf_counter())
            for features, request in zip(seen, requests, strict=True)
        ]

    def rank(self, seen: NDArray[np.float32], question: str, labels: Labels) -> list[Ranked]:
        scores = self._scores(seen, labels.texts) - labels.offsets
        return [Ranked(labels.labels[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]

    def decode(self, seen: NDArray[np.float32], question: str, limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        raise RequestError("This task chooses among labels; there are no tokens to decode.")

    def _refuse_unreadable(self, kind: str, text: str) -> None:
        check_text(kind, text)
        refuse_half_characters(kind, text)
        lowered = text.lower()
        if any(token in lowered for token in self._special):
            raise RequestError(f"The {kind} contains a special token of the model: {text[:80]!r}. Leave it out.")

    def _scores(self, features: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the log-probabilities (n_texts,) of texts for a picture's unit features (n_features,)."""
        # Row by row, because the bits of a product of matrices depend on its other rows.
        cosines = (np.stack([self._features_of(text) for text in texts]) * features).sum(-1)
        logits = self.manifest.scale * cosines + self.manifest.bias
        if self.manifest.scoring == "sigmoid":
            logits = np.stack([logits, np.zeros_like(logits)], -1)  # of two outcomes: it fits, or it does not
        scores = log_softmax(logits)
        return scores[:, 0] if scores.ndim == 2 else scores

    def _features_of(self, text: str) -> NDArray[np.float32]:
        """Return the unit features (n_features,) of a text."""
        with self._lock:
            found = self._known.get(text)
            if found is not None:
                self._known.move_to_end(text)
                return found
        # One text a run, as in training: the bits of a row depend on the batch that it is in.
        ids = np.array([encode(self.tokenizer, text)], np.int64)
        if ids.shape[1] > self.manifest.n_positions:  # not even the marks around a text fit
            raise BundleError(
                f"The tokenizer cannot cut a text to {self.manifest.n_positions} tokens, as its manifest says."
            )
        row = run(self.text_encoder, "text_features", {"input_ids": ids}).reshape(-1)
        if len(row) != self.manifest.n_features:
            raise BundleError(
                f"The text encoder gives {len(row)} features, and its manifest says {self.manifest.n_features}."
            )
        with self._lock:
            self._known[text] = row
            while len(self._known) > N_TEXTS:
                self._known.popitem(last=False)
        return row
