"""How llguidance follows the structure of an answer: `Grammars` of a model, and a `Follower` for each answer."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ._structure import ESCAPES, Structure
from .errors import AnswerError, RequestError
from .formats.token_bytes import token_bytes

N_GRAMMARS = 16  # that a model remembers
MAX_STATES, MAX_SIZE = 10_000, 100_000  # of a lexer, 1 to 2 kB each, and of a grammar, in symbols
# Every way to write a text is allowed, and the model chooses among them.
HEAD = '%llguidance {"no_forcing": true}\n'
PLACE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: ")
JSON_OPTIONS = {"whitespace_pattern": " ?", "json_allowed_escapes": ESCAPES, "lenient": False, "coerce_one_of": False}


@dataclass(eq=False, repr=False)
class Grammar:
    """A structure that a model's tokens can write.

    Attributes:
        make: returns a matcher of llguidance at the start.
        table: the bytes of each token.
        drops_space: whether the model may begin with a space that is no part of the answer. Most are taught to.
        is_json: whether the answer is JSON.
    """

    make: Callable[[], Any]
    table: Sequence[bytes]
    drops_space: bool
    is_json: bool

    def __post_init__(self) -> None:
        self._matcher = self.make()

    def follow(self) -> Follower:
        """Begin an answer."""
        return Follower(self)

    def matcher(self, is_full: bool = False) -> Any:
        """Return a matcher for one answer; is_full: whether those before it have reached llguidance's limit.

        Copies share what they have learned, which makes them quick, and which has a bound.
        """
        if is_full:
            self._matcher = self.make()
        return self._matcher.deep_copy()

    def first_tokens(self) -> NDArray[np.intp]:
        """Return the tokens that an answer may begin with."""
        follower = self.follow()
        return follower.allowed() if follower.look() else np.empty(0, np.intp)


class Follower:
    """Says which tokens may come next in one answer, and what its text is."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar, self._matcher = grammar, grammar.matcher()
        self._tokens: list[int] = []
        self._mask = np.zeros(-(-len(grammar.table) // 32), np.int32)  # a bit for each token
        self._returned = ""

    def look(self) -> bool:
        """Compute which tokens may come next, for the two methods below; returns whether the answer can go on."""
        self._compute()
        if self._matcher.is_error():
            self._matcher = self._grammar.matcher(is_full=True)
            self._matcher.consume_tokens(self._tokens)
            self._compute()
        # After an error of its own, llguidance would allow the end.
        return bool(self._mask.any()) and not (self._matcher.is_stopped() and not self._matcher.is_accepting())

    def _compute(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)

    def allows(self, token: int) -> bool:
        """Return whether a token may come next."""
        return bool(int(self._mask[token >> 5]) >> (token & 31) & 1)

    def allowed(self) -> NDArray[np.intp]:
        """Return the tokens that may come next, in order."""
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little", count=len(self._grammar.table))
        return np.flatnonzero(bits.view(np.bool_))

    def take(self, token: int) -> bool:
        """Go on behind a token that was allowed; returns whether nothing but the end can follow."""
        self._tokens.append(token)
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped() and self._matcher.is_accepting())

    def text(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """Return the answer's text, and that no stop text ended it: as `AnswerText.text`."""
        # Half a character at the end of what is written so far is left out.
        text = b"".join([self._grammar.table[token] for token in tokens]).decode(errors="ignore")
        return text.removeprefix(" ") if self._grammar.drops_space else text, False

    def more(self, tokens: Sequence[int], last: bool) -> str:
        """Return the text that was added since the last call: as `AnswerText.more`."""
        text, _ = self.text(tokens)
        new, self._returned = text[len(self._returned) :], text
        return new

    def unreadable(self, tokens: Sequence[int]) -> AnswerError | None:
        """Return why Python cannot read an answer that is complete; None where it can."""
        try:
            if self._grammar.is_json:
                json.loads(self.text(tokens)[0])
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in thousands of lists
            return AnswerError(f"The answer is JSON that Python does not read: {error}. Ask for less.")
        return None


class Grammars:
    """The structures that were asked of a model. Nothing is imported or computed before the first.

    Args:
        tokenizer: the model's.
        n_vocab: number of tokens that the model knows.
        end: ids of the tokens that end an answer. They write nothing here, though one may be a line break.
    """

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, end: Collection[int]) -> None:
        self._tokenizer, self._n_vocab, self._end = tokenizer, n_vocab, end
        self._known: OrderedDict[Structure, Grammar] = OrderedDict()  # the last used comes last
        self._lock = threading.Lock()
        self._opened: Any = None
        self._table: list[bytes] = []
        self._spaces: NDArray[np.intp] = np.empty(0, np.intp)  # tokens that begin with a space

    def find(self, structure: Structure) -> Grammar:
        """Return the grammar of a structure.

        Raises:
            RequestError: llguidance is not installed, does not follow the structure, or the model cannot write it.
        """
        with self._lock, _request_errors(structure):
            found = self._known.get(structure) or self._compile(structure)
            self._known[structure] = found
            self._known.move_to_end(structure)
            while len(self._known) > N_GRAMMARS:
                self._known.popitem(last=False)
            return found

    def _compile(self, structure: Structure) -> Grammar:
        rules, is_json = _rules(structure), structure.option == "schema"
        grammar = Grammar(self._maker(structure, f"start: body\n{rules}"), self._table, False, is_json)
        allowed = grammar.first_tokens()
        if np.isin(allowed, self._spaces).any():
            return grammar
        # No answer begins with a space, and so the model may write one before it.
        free = Grammar(self._maker(structure, f'start: " "? body\n{rules}'), self._table, True, is_json)
        if not len(allowed) and all(self._table[token] == b" " for token in free.first_tokens()):
            raise RequestError(
                f"No answer fits {structure.option}, or the model has no token to begin one. Ask for something else."
            )
        return free

    def _maker(self, structure: Structure, rules: str) -> Callable[[], Any]:
        import llguidance

        if self._opened is None:
            self._table = token_bytes(self._tokenizer, self._n_vocab, self._end)
            # No UTF-8 has this byte, which llguidance takes as the mark of a special token.
            self._table = [b"" if b"\xff" in token else token for token in self._table]
            self._spaces = np.array([i for i, token in enumerate(self._table) if token[:1] == b" "], np.intp)
            vocabulary = _Vocabulary(self._table, min(self._end))
            self._opened = llguidance.LLTokenizer(vocabulary, n_vocab=self._n_vocab, eos_token=[*self._end])
        limits = llguidance.LLParserLimits(max_lexer_states=MAX_STATES, max_grammar_size=MAX_SIZE, verbose_errors=False)
        text = llguidance.LLMatcher.grammar_from_lark(HEAD + rules)
        failed, told = llguidance.LLMatcher.validate_grammar_with_warnings(text, self._opened, limits=limits)
        if failed or told:
            raise _refused(structure, told[0])
        return partial(llguidance.LLMatcher, self._opened, text, log_level=0, limits=limits)


class _Vocabulary:
    """The model's tokens as llguidance takes them (its `TokenizerWrapper`)."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokens: Sequence[bytes], end: int) -> None:
        self.tokens, self.eos_token_id = tokens, end

    def __call__(self, text: bytes) -> list[int]:
        """Tokenize a text; llguidance asks for it only where it forces texts, which `HEAD` forbids."""
        raise NotImplementedError


def _rules(structure: Structure) -> str:
    """Return the rule `body`, in llguidance's dialect of Lark."""
    import llguidance

    if structure.option == "schema":
        return f"body: %json {json.dumps({**json.loads(structure.text), 'x-guidance': JSON_OPTIONS})}"
    if structure.option == "choices":
        return f"body: {' | '.join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(structure.text))}"
    (grammar,) = json.loads(llguidance.LLMatcher.grammar_from_regex(structure.text))["grammars"]
    return "body: " + str(grammar["lark_grammar"]).removeprefix("start: ")


def _refused(structure: Structure, reason: object) -> RequestError:
    # llguidance says where in its own grammar, which it shows behind what it has to say.
    told = PLACE.sub("", str(reason).split("\n   1 |")[0])
    lines = [line.strip() for line in told.splitlines()]
    said = " ".join(line for line in lines if line.strip("^ "))[:400]
    return RequestError(f"{structure.option} cannot be followed: {said.rstrip('.')}. Change it, or leave it out.")


@contextmanager
def _request_errors(structure: Structure) -> Iterator[None]:
    """Turn the failures of llguidance, and its panics, which are no Exceptions, into a RequestError."""
    try:
        yield
    except ImportError as error:
        raise RequestError(
            f"{structure.option} needs a package that is not installed: llguidance. "
            "`pip install 'tvp-edge[structured]'` adds it."
        ) from error
    except (RequestError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _refused(structure, error) from error
