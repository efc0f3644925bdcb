"""The text of an answer, whole and while its tokens come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from .formats.tokenizer import decode
from .formats.tokenizer_parts import decoder_parts

BYTE = re.compile("<0x[0-9A-Fa-f+][0-9A-Fa-f]>")  # as the library's decoder reads them
OF_BYTES = set("<0x>+ABCDEFabcdef0123456789")
UNFINISHED = "\ufffd"  # tokenizers write this for a character whose bytes are incomplete
PER_TOKEN = ("ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece")


class AnswerText:
    """The text of an answer while its tokens come. Text that was returned is never taken back.

    Args:
        tokenizer: the bundle's.
        end: ids of the tokens that end an answer.
        stop: texts that end it.
    """

    def __init__(self, tokenizer: Tokenizer, end: Sequence[int], stop: tuple[str, ...]) -> None:
        self._tokenizer, self._end, self._stop = tokenizer, end, stop
        self._returned = ""
        self._settled: _Settled | None = None

    def text(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """Return the text of an answer's tokens, and whether a stop text ended it."""
        # An end token need not be a special one: BLIP-2 ends at a line break, VPGTrans at "##".
        kept = tokens[:-1] if tokens and tokens[-1] in self._end else tokens
        text = decode(self._tokenizer, kept).lstrip()
        # Stop texts are looked for before the end is stripped, because a stop text may be a line break.
        ends = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        return text[: min(ends, default=None)].rstrip(), bool(ends)

    def more(self, tokens: Sequence[int], last: bool) -> str:
        """Return the text that has become final since the last call.

        Args:
            tokens: all tokens of the answer so far.
            last: whether no token follows.
        """
        if not last:
            if self._settled is None:
                self._settled = _Settled(self._tokenizer)
            tokens = tokens[: self._settled.count(tokens)]
            if not tokens:
                return ""
        text, stopped = self.text(tokens)
        if not last and not stopped:
            text = text.rstrip(UNFINISHED)
            # Text that may be the start of a stop text waits.
            starts = (n for s in self._stop for n in range(len(s) - 1, 0, -1) if text.endswith(s[:n]))
            text = text[: len(text) - max(starts, default=0)].rstrip()
        new, self._returned = text[len(self._returned) :], text
        return new


class _Settled:
    """How many of an answer's tokens have a text that no later token changes, but for an unfinished character.

    SentencePiece writes rare characters as bytes. A run of bytes is decoded as a whole, and tokens without a text are
    no end of it. Of a decoder whose parts look further, nothing is final before the end; no published tokenizer has
    one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        parts = decoder_parts(tokenizer)
        kinds = [part["type"] for part in parts]
        self._tokenizer = tokenizer
        self._is_local = _is_local(parts)
        self._has_bytes = "ByteFallback" in kinds
        self._suffix = parts[0]["suffix"] if kinds == ["BPEDecoder"] else ""
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}

    def count(self, tokens: Sequence[int]) -> int:
        n = len(tokens) if self._is_local else 0
        while n and self._waits(self._tokenizer.id_to_token(tokens[n - 1])):
            n -= 1
        return n

    def _waits(self, token: str | None) -> bool:
        """Return whether a token at the end may be written otherwise when others follow, or has no text."""
        if token is None or token in self._special:
            return True
        if self._has_bytes and BYTE.fullmatch(token):
            return True
        return bool(self._suffix) and self._suffix in token.removesuffix(self._suffix)


def _is_local(parts: Sequence[dict[str, Any]]) -> bool:
    """Return whether a decoder's parts work token by token, or on joined text letter by letter."""
    joined = False
    for place, part in enumerate(parts):
        kind = part["type"]
        of_letters = kind == "Replace" and _replaces_a_letter(part)
        if joined and not (kind in ("Fuse", "Metaspace", "Strip") or of_letters):
            return False
        if kind == "ByteFallback":
            # Nothing before it may make a token of a byte, or unmake it.
            if not all(before["type"] == "Replace" and _replaces_a_letter(before) for before in parts[:place]):
                return False
        elif kind == "BPEDecoder":
            if len(parts) > 1 or UNFINISHED in part["suffix"]:
                return False
        elif kind not in PER_TOKEN:
            return False
        joined |= kind in ("ByteLevel", "Fuse")
    return True


def _replaces_a_letter(part: dict[str, Any]) -> bool:
    """Return whether a part replaces one letter, which is none of those that bytes are written with, by others."""
    letter, content = part["pattern"].get("String", ""), part["content"]
    return len(letter) == 1 and letter != UNFINISHED and not OF_BYTES & {letter, *content}
