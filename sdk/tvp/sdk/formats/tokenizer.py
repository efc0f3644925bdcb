"""The bundle's tokenizers, whose failures are BundleErrors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import BundleError
from .tokenizer_parts import refuse_unusual


def read_tokenizer(file: Path) -> Tokenizer:
    """Read a tokenizer.json, without truncation and padding; raises BundleError as `refuse_unusual` does."""
    refuse_unusual(file)
    with _bundle_errors(f"The tokenizer {file} is damaged"):
        tokenizer = Tokenizer.from_file(os.fspath(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_text_tokenizer(file: Path, n_positions: int, pad_token: int) -> Tokenizer:
    """Read the tokenizer of a contrastive model's texts.

    Args:
        n_positions: a longer text is cut to so many tokens.
        pad_token: id that fills a shorter text up to them; -1 for none.
    """
    tokenizer = read_tokenizer(file)
    tokenizer.enable_truncation(n_positions)
    if pad_token >= 0:
        tokenizer.enable_padding(length=n_positions, pad_id=pad_token)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, special: bool = True) -> list[int]:
    """Return the token ids of a text; special: whether with begin and end tokens."""
    with _bundle_errors("The bundle's tokenizer fails"):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    return ids


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text of tokens, without special tokens."""
    with _bundle_errors("The bundle's tokenizer fails"):
        text: str = tokenizer.decode(list(tokens), skip_special_tokens=True)
    return text


@contextmanager
def _bundle_errors(what: str) -> Iterator[None]:
    """Turn bare Exceptions of tokenizers, and its panics, which are no Exceptions, into a BundleError."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{what}: {error}") from error
