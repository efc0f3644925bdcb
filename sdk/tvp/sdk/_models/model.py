"""What every kind of model does: `Model`. A task asks it and does not know its kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .._following import Grammar
from .._generation import Generation
from .._results import Ranked
from .._runtime.sessions import Parts, TrimmedMemory
from ..errors import AnswerError, RequestError
from ..formats.calibration import Calibrated
from ..formats.manifest import BaseManifest

MAX_TEXT = 8192  # characters of a question or a label; more than any context in use, and bounded before tokenising


class Request(NamedTuple):
    """A question with its options, checked and parsed once.

    Attributes:
        question: as the model parsed it.
        generation: how the answer's tokens are chosen.
        labels: the task's labels as the model parsed them; None where its answers are free.
        grammar: of the structure that the answer must have; None where it is free.
    """

    question: Any
    generation: Generation
    labels: Any = None
    grammar: Grammar | None = None


class Reply(NamedTuple):
    """A model's answer. `Answer` has the same fields, and the time of the picture.

    Attributes:
        text, tokens, log_probabilities, finish: as of `Answer`.
        first_token: seconds from the question to the first token.
        error: why there is no answer, where it must have a structure and has not.
    """

    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    first_token: float
    finish: str
    error: AnswerError | None = None


class Model(Protocol):
    """An opened base, shared by the tasks that have it. Nothing here is locked: a view takes turns.

    Attributes:
        parts: the opened graphs.
        trimmed: gives memory back when the model goes; `share` sets it.
    """

    parts: Parts
    trimmed: TrimmedMemory

    @property
    def manifest(self) -> BaseManifest:
        """What the base says about itself."""

    def parse(self, question: str) -> Any:
        """Return a question as the model reads it; raises RequestError for one that it cannot read."""

    def parse_labels(self, question: Any, labels: tuple[str, ...], calibration: Calibrated = ()) -> Any:
        """Return labels as answers to a parsed question; raises RequestError for one that cannot be scored.

        The base may have many tasks, so the task's calibration comes with the labels.
        """

    def refuse_too_long(self, question: Any) -> None:
        """Raise RequestError for a parsed question that does not fit into the context. Answering raises it too."""

    def n_prompt(self, question: Any) -> int:
        """Return the number of tokens that are read before an answer; 0 for a model that reads none."""

    def n_bytes(self, seen: Any) -> int:
        """Return the bytes of memory that a state takes now."""

    def request(
        self, question: Any, generation: Generation, labels: tuple[str, ...], calibration: Calibrated = ()
    ) -> Request:
        """Return what `answer` takes.

        Args:
            question: from `parse`.
            generation: the checked options.
            labels: the task's own.
            calibration: the task's own. Default: none.

        Raises:
            RequestError: the model cannot answer in this way.
        """

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the vision encoder over pixel values (n, 3, size, size)."""

    def see(self, pixels: NDArray[np.float32]) -> list[Any]:
        """Encode pixel values (n, 3, size, size); returns a state for each picture, which all below take."""

    def features(self, seen: Any) -> NDArray[np.float32]:
        """Return the vision encoder's features (n_tokens, n_channels) of one picture."""

    def answer(self, seen: Any, request: Request, began: float) -> Reply:
        """Answer about one picture; began: `time.perf_counter()` when the question came."""

    def stream(self, seen: Any, request: Request, began: float) -> Iterator[str]:
        """Answer in pieces of text. The state is free again when this returns, before the pieces come."""

    def answer_many(self, seen: Sequence[Any], requests: Sequence[Request], began: float) -> list[Reply]:
        """Answer one request about each state; the same state may come several times."""

    def rank(self, seen: Any, question: Any, labels: Any) -> list[Ranked]:
        """Score parsed labels as answers to a parsed question; best first."""

    def decode(self, seen: Any, question: Any, limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each token of a greedy answer with its logits (n_vocab,); at most `limit` of them."""


def encode_pictures(model: Model, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a model's vision encoder over pixel values (n, 3, size, size), all at once where that changes no answer."""
    if len(pixels) == 1:
        return model.encode(pixels)
    takes_many = isinstance(model.parts.sessions["vision_encoder"].get_inputs()[0].shape[0], str)
    # Below fp16 all pictures of one run share a scale: a picture's neighbours would change its answer.
    if takes_many and model.manifest.precision in ("fp32", "fp16"):
        return model.encode(pixels)
    return np.concatenate([model.encode(row[None]) for row in pixels])


def check_text(kind: str, text: str) -> None:
    """Raise RequestError for a text that is too long to be read; kind: how the message names it."""
    if len(text) > MAX_TEXT:
        raise RequestError(f"The {kind} has {len(text):,} characters; at most {MAX_TEXT:,} are allowed. Shorten it.")
