"""How an answer's tokens are chosen, when they end, and how they become text."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ._decoder import log_probability
from ._sessions import Base, told
from .errors import RequestError, near

BYTE = re.compile("<0x[0-9A-F]{2}>")
UNFINISHED = "\ufffd"  # what tokenizers write for a character whose bytes have not all come


class Options(TypedDict, total=False):
    """What `ask`, `ask_many` and `stream` take besides picture and question; all of it may be left out.

    max_new_tokens: longest answer, in tokens (default: the bundle's).
    temperature: 0 (default) is greedy; otherwise logits are divided by it and a token is drawn.
    top_k: draw among the k likeliest (0: all). top_p: among the likeliest that make up this share (1: all).
    seed: the same seed draws the same answer (default: another every time).
    stop: a text, or several, at which the answer ends; it is not part of it. Special tokens are not part of any text.
    time_limit: seconds after which an answer ends where it is; it has at least one token.
    cancel: an event that another thread sets to end the answer where it is.
    """

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: str | Sequence[str]
    time_limit: float | None
    cancel: threading.Event | None


@dataclass(frozen=True)
class Generation:
    """`Options`, checked."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    time_limit: float | None = None
    cancel: threading.Event | None = None

    @staticmethod
    def of(options: Any, max_new_tokens: int) -> Generation:
        """Check what a caller gave; max_new_tokens: the bundle's. Raises RequestError."""
        known = Options.__annotations__
        if unknown := [name for name in options if name not in known]:
            raise RequestError(
                f"There is no option {unknown[0]!r}; there are {', '.join(known)}.{near(unknown[0], known)}"
            )
        given = {name: value for name, value in options.items() if value is not None}
        given.setdefault("max_new_tokens", max_new_tokens)
        stop = given.get("stop", ())
        given["stop"] = stop = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Sequence) else stop
        for name, (kind, allowed, said) in CHECKS.items():
            value = given.get(name)
            if value is not None and not (_is(value, kind) and allowed(value)):
                raise RequestError(f"{name} is {value!r}; it must be {said}.")
            if value is not None and kind in (int, float):
                given[name] = kind(value)
        return Generation(**given)

    def choose(self, logits: NDArray[np.float32], rng: np.random.Generator) -> int:
        """The next token, of logits (n_vocab,)."""
        if self.temperature == 0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # a temperature of next to nothing leaves the largest only
            scaled = (logits.astype(np.float64) - float(logits.max())) / self.temperature
        order = np.argsort(-scaled, kind="stable")[: self.top_k or None]
        shares = np.exp(scaled[order] - scaled[order[0]])
        shares /= shares.sum()
        if self.top_p < 1:  # the fewest that reach the share, at least one
            n_kept = int(np.searchsorted(shares.cumsum(), self.top_p)) + 1
            order, shares = order[:n_kept], shares[:n_kept] / shares[:n_kept].sum()
        return int(order[min(int(np.searchsorted(shares.cumsum(), rng.random(), side="right")), len(order) - 1)])


def _is(value: Any, kind: type) -> bool:
    # numpy's numbers too, which are not Python's own.
    if kind is float:
        try:
            return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        except OverflowError:  # a whole number that no float holds
            return False
    return isinstance(value, Integral if kind is int else kind) and not isinstance(value, bool)


CHECKS: dict[str, tuple[type, Any, str]] = {
    "max_new_tokens": (int, lambda v: v >= 1, "a whole number of at least 1"),
    "temperature": (float, lambda v: v >= 0, "a number of at least 0"),
    "top_k": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "top_p": (float, lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "seed": (int, lambda v: v >= 0, "a whole number of at least 0"),
    "stop": (
        tuple,
        lambda v: all(isinstance(s, str) and s for s in v),
        "a text or a list of texts, none empty",
    ),
    "time_limit": (float, lambda v: v > 0, "a number of seconds above 0"),
    "cancel": (threading.Event, lambda v: True, "a threading.Event"),
}


class Speech:
    """An answer's text while its tokens come: what has been said is never taken back."""

    def __init__(self, base: Base, stop: tuple[str, ...]) -> None:
        self._base, self._stop = base, stop
        self._said = ""

    def _is_byte(self, token: int) -> bool:
        return BYTE.fullmatch(self._base.tokenizer.id_to_token(token) or "") is not None

    def text(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """The text of an answer's tokens, and whether a stop text ended it."""
        # An end token need not be a special one: BLIP-2 ends at a line break, VPGTrans at "##".
        spoken = tokens[:-1] if tokens and tokens[-1] in self._base.manifest.layout.end else tokens
        with told("The bundle's tokenizer fails"):
            text = self._base.tokenizer.decode(list(spoken), skip_special_tokens=True).lstrip()
        # Before the end is stripped, since a stop text may be a line break.
        ends = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        return text[: min(ends, default=None)].rstrip(), bool(ends)

    def more(self, tokens: Sequence[int], last: bool) -> str:
        """What can be said now that could not be said before; last: whether no token follows."""
        if not last:
            # SentencePiece spells rare characters as bytes, and a run of bytes is read as a whole when it is over.
            n = next((n for n in range(len(tokens), 0, -1) if not self._is_byte(tokens[n - 1])), 0)
            tokens = tokens[:n]
        text, stopped = self.text(tokens)
        if not last and not stopped:
            text = text.rstrip(UNFINISHED)
            # What may turn out to be the beginning of a stop text waits.
            starts = (n for s in self._stop for n in range(len(s) - 1, 0, -1) if text.endswith(s[:n]))
            text = text[: len(text) - max(starts, default=0)].rstrip()
        if not text.startswith(self._said):
            return ""  # a tokenizer that changes what came before; what has been said stays
        new, self._said = text[len(self._said) :], text
        return new


@dataclass
class Answering:
    """One answer while it is made.

    began: `time.perf_counter()` of the question; limited_from: where the time limit counts from, at first the same.
    """

    base: Base
    generation: Generation
    began: float
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    first_token: float = 0.0
    finish: str = ""

    def __post_init__(self) -> None:
        self.speech = Speech(self.base, self.generation.stop)
        self._rng = np.random.default_rng(self.generation.seed)
        self.limited_from = self.began

    def take(self, logits: NDArray[np.float32], room: int) -> int | None:
        """Choose a token of logits (n_vocab,); returns it where it must be fed back, None where the answer ends.

        room: how many more tokens the model can read.
        """
        generation = self.generation
        token = generation.choose(logits, self._rng)
        self.tokens.append(token)
        self.scores.append(log_probability(logits, token))
        now = time.perf_counter()
        self.first_token = self.first_token or now - self.began
        if token in self.base.manifest.layout.end:
            self.finish = "end"
        elif generation.stop and self.speech.text(self.tokens)[1]:
            self.finish = "stop"
        elif len(self.tokens) == generation.max_new_tokens or room < 1:
            self.finish = "length"
        elif generation.time_limit is not None and now - self.limited_from >= generation.time_limit:
            self.finish = "time"
        elif generation.cancel is not None and generation.cancel.is_set():
            self.finish = "cancelled"
        return None if self.finish else token
