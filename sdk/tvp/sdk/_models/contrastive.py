"""Tasks whose model only chooses among labels (CLIP, SigLIP): a picture's features against those of texts."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ._decoder import log_softmax
from ._generation import Generation, Options
from ._image import ImageLike
from ._manifest import ContrastiveManifest, Identity, TaskManifest
from ._providers import Plan
from ._sessions import Trims, encode, open_parts, read_tokenizer, run
from ._shapes import check_contrastive
from ._task import MAX_QUESTION, Task
from ._view import Answer, Ranked, View, _see_together
from .errors import BundleError, RequestError
from .formats.layout import refuse_half_characters

N_TEXTS = 4096  # texts whose features a base remembers
TIE = 1e-4  # labels whose scores are closer may come in either order: that is what rounding turns around
REFUSED = {"temperature": 0.0, "stop": ()}  # options that have no meaning here, and what leaves them out


@dataclass
class ContrastiveBase:
    """A loaded base, shared by the tasks that use it; features of texts are computed once.

    tokenizer: cuts and pads as the manifest says. For the rest see `Base`.
    """

    manifest: ContrastiveManifest
    vision_encoder: Any
    text_encoder: Any
    tokenizer: Tokenizer
    providers: Mapping[str, str]
    fallbacks: Mapping[str, str]
    verified: set[Identity]
    checked: bool = True
    last: Trims = field(default_factory=Trims)

    def __post_init__(self) -> None:
        added = self.tokenizer.get_added_tokens_decoder().values()
        self._special = tuple(token.content.lower() for token in added if token.special and token.content)
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()  # the last used comes last
        self._lock = threading.Lock()

    def texts(self, question: str, labels: Sequence[str]) -> list[str]:
        """What is compared with the picture, one text a label; raises RequestError for one that cannot be read."""
        for kind, text in (("question", question), *(("label", label) for label in labels)):
            if len(text) > MAX_QUESTION:
                raise RequestError(f"The {kind} has {len(text):,} characters; at most {MAX_QUESTION:,} are read.")
            refuse_half_characters(kind, text)
            lowered = text.lower()
            if any(token in lowered for token in self._special):
                raise RequestError(f"The {kind} holds a special token of the model: {text[:80]!r}. Leave it out.")
        return self.manifest.captions.texts(question, labels)

    def scores(self, features: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
        """Log-probabilities (n_texts,) of texts for a picture's unit features (n_features,)."""
        # Row by row and not as a product of matrices, whose bits depend on what else is in it.
        cosines = (self.text_features(texts) * features).sum(-1)
        logits = self.manifest.scale * cosines + self.manifest.bias
        if self.manifest.scoring == "sigmoid":
            logits = np.stack([logits, np.zeros_like(logits)], -1)  # of two outcomes: it fits, or it does not
        scores = log_softmax(logits)
        return scores[:, 0] if scores.ndim == 2 else scores

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit features (n_texts, n_features)."""
        return np.stack([self._features_of(text) for text in texts])

    def _features_of(self, text: str) -> NDArray[np.float32]:
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


def open_contrastive(
    folder: Path, manifest: ContrastiveManifest, plan: Plan, verified: set[Identity]
) -> ContrastiveBase:
    """Open a verified base of this kind."""
    sessions, places, fallbacks = open_parts(folder, plan, manifest.files)
    check_contrastive(sessions["vision_encoder"], sessions["text_encoder"], manifest)
    tokenizer = open_tokenizer(folder / "tokenizer.json", manifest.n_positions, manifest.pad_token)
    return ContrastiveBase(
        manifest, sessions["vision_encoder"], sessions["text_encoder"], tokenizer, places, fallbacks, verified
    )


def open_tokenizer(file: Path, n_positions: int, pad_token: int) -> Tokenizer:
    """A tokenizer that cuts texts to n_positions and, where there is a pad token, fills them up to it."""
    tokenizer = read_tokenizer(file)
    tokenizer.enable_truncation(n_positions)
    if pad_token >= 0:
        tokenizer.enable_padding(length=n_positions, pad_id=pad_token)
    return tokenizer


class ContrastiveView(View):
    """A picture as a task that chooses among labels sees it."""

    def __init__(self, task: ContrastiveTask, features: NDArray[np.float32], seconds: float) -> None:
        self._task, self._closed = task, task.base
        self._features = features.reshape(-1)  # (1, 1, n_features) -> (n_features,)
        if len(self._features) != task.base.manifest.n_features:
            raise BundleError(
                f"The vision encoder gives {len(self._features)} features, and its manifest says "
                f"{task.base.manifest.n_features}."
            )
        self._seconds = seconds
        self._lock = threading.Lock()

    def ask(self, question: str | None = None, **options: Unpack[Options]) -> Answer:
        """The best of the task's labels; see `ContrastiveTask`."""
        self._task.generation(options)
        return self.choose(question, self._task.labels)

    def choose(self, question: str | None, labels: Sequence[str]) -> Answer:
        """The best of these labels, as an answer; log_probabilities is its score."""
        began = time.perf_counter()
        best = self.rank(question, labels=labels)[0]
        spent = time.perf_counter() - began
        timing = {"see": self._seconds, "first_token": spent, "total": self._seconds + spent}
        self._seconds = 0.0
        return Answer(best.label, (), (best.score,), timing, "label")

    def stream(self, question: str | None = None, **options: Unpack[Options]) -> Iterator[str]:
        """The best of the task's labels, in one piece."""
        return iter([self.ask(question, **options).text])

    def decode(self, question: str | None, limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        raise RequestError(f"The task {self._task.name!r} chooses among labels; there are no tokens to decode.")

    def _rank(self, question: str | None, labels: Sequence[str]) -> list[Ranked]:
        texts = self._closed.texts(self._task.question(question), labels)
        scores = self._closed.scores(self._features, texts)
        return [Ranked(labels[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


class ContrastiveTask(Task):
    """A loaded task whose model only chooses among labels.

    `rank` scores any labels, `ask`, `ask_many` and `stream` answer with the best of the task's own: `text` is the
    label, `log_probabilities` its score, `finish` is `label`, and there are no tokens. Options are checked as
    always; `temperature` and `stop` are refused; `cancel` ends `ask_many` between batches; the others change nothing.
    """

    def __init__(self, folder: Path, manifest: TaskManifest, base: ContrastiveBase, preprocess: Any) -> None:
        super().__init__(folder, manifest, cast(Any, base), preprocess)

    @property
    def base(self) -> ContrastiveBase:  # type: ignore[override]
        return cast(ContrastiveBase, super().base)

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit features (n, 1, n_features) of pixel values (n, 3, size, size)."""
        return run(self.base.vision_encoder, "image_embeds", {"pixel_values": pixels})

    def generation(self, options: Options) -> Generation:
        """Options, checked; raises RequestError for one without a meaning here, and without labels to choose from."""
        generation = super().generation(options)
        for name, default in REFUSED.items():
            if getattr(generation, name) != default:
                raise RequestError(
                    f"The task {self.name!r} chooses among labels, so {name} has no meaning. Leave it out."
                )
        if not self.labels:
            raise RequestError(
                f"The task {self.name!r} only chooses among labels, and has none of its own. Give them to rank: "
                "task.rank(image, question, labels=['…', '…'])."
            )
        return generation

    def _view(self, features: NDArray[np.float32], seconds: float) -> View:
        return ContrastiveView(self, features, seconds)

    def _refuse_unreadable(self, question: str | None, too_long: bool = False, of_labels: bool = True) -> None:
        self.base.texts(self.question(question), self.labels if of_labels else ())

    def _answer_together(
        self, requests: Sequence[tuple[ImageLike, str | None]], generation: Generation
    ) -> list[Answer]:
        views = _see_together(self, [image for image, _ in requests])
        return [view.ask(question) for view, (_, question) in zip(views, requests, strict=True)]


def compare_choice(view: View, case: Mapping[str, Any], tolerance: float) -> tuple[str, float]:
    """Compare a golden case's labels: what differs, in words ('' for nothing), and the largest gap of a score.

    tolerance: of a score; where it is infinite, the best label is all that is compared.
    """
    expected = dict(zip(case["labels"], case["scores"], strict=True))
    ranked = view.rank(case["question"], labels=case["labels"])
    gap = float(np.max([abs(row.score - expected[row.label]) for row in ranked]))  # unlike max, NaN is the largest
    given = [expected[row.label] for row in ranked]
    if not in_order(given if np.isfinite(tolerance) else [given[0], max(given)]):
        order = ", ".join(repr(label) for label in sorted(expected, key=lambda label: -expected[label])[:5])
        return f"ranked {', '.join(repr(row.label) for row in ranked[:5])}, expected {order}", gap
    if not gap <= tolerance:
        return f"scores differ by {gap:.2e}, allowed is {tolerance:.0e}", gap
    return "", gap


def in_order(scores: Sequence[float]) -> bool:
    """Whether scores fall, those that are within TIE of each other aside."""
    best_behind = -np.inf
    for score in reversed(scores):
        if score < best_behind - TIE:
            return False
        best_behind = max(best_behind, score)
    return True
