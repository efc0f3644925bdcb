"""The bytes that each token of a bundle's tokenizer writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from tokenizers import Tokenizer

from ..errors import RequestError
from .tokenizer_parts import decoder_parts

BYTE = re.compile("<0x([0-9A-F]{2})>")  # of a tokenizer that falls back to bytes
# Decoders that turn a token into the same text wherever it stands behind another.
LOCAL = ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece")


def token_bytes(tokenizer: Tokenizer, n_vocab: int, never: Collection[int]) -> list[bytes]:
    """Return what each token adds to a text that has begun; b"" for special tokens, which write nothing.

    A text's first space, which SentencePiece and WordPiece leave out, is there.

    Args:
        tokenizer: the bundle's.
        n_vocab: number of tokens that the model knows.
        never: ids that write nothing either.

    Raises:
        RequestError: the tokenizer is of a kind whose tokens have no bytes of their own.
    """
    bytes_of = _reader(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    silent = {*never, *(number for number, token in added.items() if token.special)}
    table = [b""] * n_vocab
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number < n_vocab and number not in silent:
            table[number] = bytes_of(token)
    return table


def _reader(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    decoder = tokenizer.decoder
    kinds = [part["type"] for part in decoder_parts(tokenizer)]
    if "ByteLevel" in kinds and all(kind in ("ByteLevel", "Fuse") for kind in kinds):
        return _of_byte_level
    if not kinds or not all(kind in LOCAL for kind in kinds):
        names = ", ".join(map(str, kinds)) or "none"
        raise RequestError(
            f"This model's tokenizer has the decoder {names}, whose tokens have no bytes of their own. Structured "
            "answers need a byte-level tokenizer, SentencePiece or WordPiece; rank can choose among labels."
        )

    def of_local(token: str) -> bytes:
        byte = BYTE.fullmatch(token) if "ByteFallback" in kinds else None
        # Between two others, so that no decoder takes the space at a text's end away.
        text: str = decoder.decode(["a", token, "a"])
        return bytes([int(byte[1], 16)]) if byte else text[1:].removesuffix(last).encode()

    last = decoder.decode(["a", "a"])[1:]
    return of_local


def _alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


ALPHABET = _alphabet()


def _of_byte_level(token: str) -> bytes:
    if all(letter in ALPHABET for letter in token):
        return bytes(ALPHABET[letter] for letter in token)
    return token.encode()  # a token that was added as it is
