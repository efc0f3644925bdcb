"""How an answer's tokens are chosen, and when the answer ends."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ._answer_text import AnswerText
from ._following import Follower
from ._runtime.stopping import StoppedError, stoppable
from ._structure import OPTIONS, Structure, structure_of, unfinished
from .errors import AnswerError, RequestError, near


class Options(TypedDict, total=False):
    """The options of `ask`, `ask_many` and `stream`. Each may be left out.

    Attributes:
        max_new_tokens: longest answer, in tokens, at least 1. Default: the bundle's.
        temperature: 0 (default) takes the likeliest token. Otherwise logits are divided by it and a token is drawn.
        top_k: draws among the k likeliest tokens. Default 0: among all.
        top_p: draws among the likeliest tokens that make up this share, above 0 and at most 1. Default 1: all.
        seed: the same seed draws the same answer. Default: another answer every time.
        stop: a text, or several, that ends the answer and is not part of it. It is looked for in the answer's text,
            which has no special tokens.
        time_limit: seconds after which the answer ends where it is, also while the picture or the question is read; it
            may have no token.
        cancel: an event that another thread sets to end the answer in the same way.
        schema: a JSON Schema. The answer is JSON that it allows.
        choices: texts, none empty. The answer is one of them.
        regex: a regular expression, in the syntax of Rust's crate `regex`. It matches the whole answer.

    The last three need the extra `structured`. One of them at most is given, and no `stop` with it. Tokens that cannot
    lead to such an answer are left out before a token is chosen. An answer that ends before it is complete, by whatever
    limit, is an `AnswerError`. A contrastive task refuses them.
    """

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: str | Sequence[str]
    time_limit: float | None
    cancel: threading.Event | None
    schema: Mapping[str, Any] | None
    choices: Sequence[str] | None
    regex: str | None


@dataclass(frozen=True)
class Generation:
    """`Options`, checked.

    Attributes:
        structure: what the answer must be; None for a free one.
        told: is called with the answer behind each of its tokens, in the thread that computes.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    time_limit: float | None = None
    cancel: threading.Event | None = None
    structure: Structure | None = None
    told: Callable[[Answering], None] | None = None

    @staticmethod
    def of(options: Any, max_new_tokens: int) -> Generation:
        """Check the options that a caller gave.

        Args:
            options: a mapping as `Options`.
            max_new_tokens: the bundle's own limit.

        Raises:
            RequestError: an option is unknown or out of its range.
        """
        known = Options.__annotations__
        if unknown := [name for name in options if name not in known]:
            raise RequestError(
                f"There is no option {unknown[0]!r}; the options are {', '.join(known)}.{near(unknown[0], known)}"
            )
        given = {name: value for name, value in options.items() if value is not None}
        given.setdefault("max_new_tokens", max_new_tokens)
        stop = given.get("stop", ())
        given["stop"] = stop = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Sequence) else stop
        if isinstance(choices := given.get("choices"), list):
            given["choices"] = tuple(choices)
        for name, (kind, is_allowed, requirement) in CHECKS.items():
            value = given.get(name)
            if value is not None and not (_is(value, kind) and is_allowed(value)):
                raise RequestError(f"{name} is {value!r}; it must be {requirement}.")
            if value is not None and kind in (int, float):
                given[name] = kind(value)
        structure = structure_of(given)
        return Generation(**{name: given[name] for name in given if name not in OPTIONS}, structure=structure)

    def choose(self, logits: NDArray[np.float32], rng: np.random.Generator) -> int:
        """Return the next token of logits (n_vocab,)."""
        if self.temperature == 0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # a temperature close to 0 leaves only the likeliest token
            scaled = (logits.astype(np.float64) - float(logits.max())) / self.temperature
        order = np.argsort(-scaled, kind="stable")[: self.top_k or None]
        shares = np.exp(scaled[order] - scaled[order[0]])
        shares /= shares.sum()
        if self.top_p < 1:  # the fewest tokens that reach the share, at least one
            n_kept = int(np.searchsorted(shares.cumsum(), self.top_p)) + 1
            order, shares = order[:n_kept], shares[:n_kept] / shares[:n_kept].sum()
        return int(order[min(int(np.searchsorted(shares.cumsum(), rng.random(), side="right")), len(order) - 1)])


def _is(value: Any, kind: type) -> bool:
    # numpy's numbers count as well, though they are not Python's int and float.
    if kind is float:
        try:
            return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # a whole number too large for a float
            return False
    return isinstance(value, Integral if kind is int else kind) and not isinstance(value, bool)


# Option -> its type, whether a value of that type is allowed, and the requirement in words.
CHECKS: dict[str, tuple[type, Any, str]] = {
    "max_new_tokens": (int, lambda v: v >= 1, "a whole number of at least 1"),
    "temperature": (float, lambda v: v >= 0, "a number of at least 0"),
    "top_k": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "top_p": (float, lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "seed": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "stop": (tuple, lambda v: all(isinstance(s, str) and s for s in v), "a text or a list of texts, none empty"),
    "time_limit": (float, lambda v: v > 0, "a number of seconds above 0"),
    "cancel": (threading.Event, lambda v: True, "a threading.Event"),
    "schema": (Mapping, lambda v: True, "a JSON Schema, as a mapping"),
    "choices": (tuple, lambda v: v and all(isinstance(s, str) and s for s in v), "a list of texts, none empty"),
    "regex": (str, lambda v: v != "", "a regular expression that is not empty"),
}


@dataclass(eq=False, repr=False)
class Answering:
    """One answer while it is made.

    Args:
        tokenizer, end: of the model, see `AnswerText`.
        generation: how tokens are chosen.
        began: `time.perf_counter()` when the question came.
        follower: of the structure that the answer must have; None for a free one.

    Attributes:
        tokens, scores: ids and log-probabilities so far.
        first_token: seconds from `began` to the first token.
        finish: why the answer ended; '' while it goes on.
        text: of the answer's tokens.
        limited_from: the moment that the time limit counts from, at first `began`; infinite for one that does not.
    """

    tokenizer: Tokenizer
    end: Sequence[int]
    generation: Generation
    began: float
    follower: Follower | None = None
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    first_token: float = 0.0
    finish: str = ""

    def __post_init__(self) -> None:
        self.text: AnswerText | Follower = self.follower or AnswerText(self.tokenizer, self.end, self.generation.stop)
        self._rng = np.random.default_rng(self.generation.seed)
        self.limited_from = self.began

    def take(self, logits: NDArray[np.float32], room: int) -> int | None:
        """Choose a token.

        Args:
            logits: (n_vocab,).
            room: number of tokens that the model can still read.

        Returns:
            The token, where the model must read it for the next one; None where the answer ends.
        """
        generation = self.generation
        token, is_complete = self._choose(logits)
        if token is None:
            self.finish = "stuck"
            if generation.told is not None:
                generation.told(self)
            return None
        self.tokens.append(token)
        self.scores.append(log_probability(logits, token))
        now = time.perf_counter()
        self.first_token = self.first_token or now - self.began
        if token in self.end or is_complete:
            self.finish = "end"
        elif generation.stop and self.text.text(self.tokens)[1]:
            self.finish = "stop"
        elif len(self.tokens) == generation.max_new_tokens or room < 1:
            self.finish = "length"
        elif generation.time_limit is not None and now - self.limited_from >= generation.time_limit:
            self.finish = "time"
        elif generation.cancel is not None and generation.cancel.is_set():
            self.finish = "cancelled"
        if generation.told is not None:
            generation.told(self)
        return None if self.finish else token

    def _choose(self, logits: NDArray[np.float32]) -> tuple[int | None, bool]:
        """Return a token, and whether it completes a structure; None where none is allowed."""
        generation, follower = self.generation, self.follower
        if follower is None:
            return generation.choose(logits, self._rng), False
        if not follower.look():
            return None, False
        token = int(logits.argmax())
        # The likeliest of all tokens is the likeliest that is allowed, if it is; to find the others costs more.
        if generation.temperature > 0 or not follower.allows(token):
            allowed = follower.allowed()
            token = int(allowed[generation.choose(logits[allowed], self._rng)])
        return token, token not in self.end and follower.take(token)

    @property
    def error(self) -> AnswerError | None:
        """Why there is no answer though it has ended: it has not the structure that it must have."""
        if self.follower is None or not self.finish:
            return None
        return (
            self.follower.unreadable(self.tokens) if self.finish == "end" else unfinished(self.finish, len(self.tokens))
        )


@contextmanager
def end_when_stopped(answerings: Sequence[Answering]) -> Iterator[None]:
    """Stop what runs in the block when all answers must end; then they do.

    One of several with a cancel event of its own ends behind its next token, and not before.
    """
    cancel = answerings[0].generation.cancel
    if any(answering.generation.cancel is not cancel for answering in answerings):
        cancel = None
    limits = [(answering.limited_from, answering.generation.time_limit) for answering in answerings]
    ends = [begin + limit for begin, limit in limits if limit is not None]
    try:
        with stoppable(cancel, max(ends) if len(ends) == len(limits) else None):
            yield
    except StoppedError as error:
        for answering in answerings:
            answering.finish = error.reason


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-probabilities along the last axis, in float32."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """Return the log-probability of one token of logits (n_vocab,), with half the work of `log_softmax`."""
    largest = logits.max()
    odds = np.exp(logits - largest)
    return float(logits[token] - largest - np.log(odds.sum()))
