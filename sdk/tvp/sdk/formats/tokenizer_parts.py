"""May a stranger's tokenizer.json be loaded? Its parts are looked at before the tokenizers library sees them.

That library believes what it reads: normalizers that replace a letter by a page one after the other, post-processors
that repeat the text, and regular expressions that repeat repetitions take gigabytes or end the process. No published
tokenizer comes near the bounds of this module.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..errors import BundleError

MAX_FILE = 2**27  # bytes; the largest published tokenizer.json has 33 MB
MAX_PARTS, MAX_DEPTH = 64, 4  # components of one section, and sequences in sequences
MAX_GROWTH = 32  # a text may become so many times as long
MAX_ADDED = 64  # special tokens around a text
MAX_PATTERN, MAX_COUNT, MAX_OPEN = 4096, 64, 3  # letters; {n}; and repetitions without an end in one branch

KINDS = {
    "normalizer": """BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Sequence Strip
        StripAccents""",
    "pre_tokenizer": """BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace Punctuation Sequence
        Split UnicodeScripts Whitespace WhitespaceSplit""",
    "post_processor": "BertProcessing ByteLevel RobertaProcessing Sequence TemplateProcessing",
    "decoder": "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Sequence Strip WordPiece",
    "model": "BPE Unigram WordLevel WordPiece",
}
COUNTS = re.compile(r"\{(?=\d|,\d)(\d{0,9})(,?)(\d{0,9})\}")
PARTS_OF_SEQUENCE = ("normalizers", "pretokenizers", "processors", "decoders")


def refuse_unusual(file: Path) -> None:
    """Raise BundleError for a tokenizer.json with parts that could take the memory or the process.

    Raises:
        BundleError: it is too large, is not JSON, or has a part that no published tokenizer has.
    """
    try:
        if (size := os.stat(file).st_size) > MAX_FILE:
            raise _refused(file, f"it has {size:,} bytes; at most {MAX_FILE:,} are allowed")
        content = json.loads(file.read_bytes(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"The tokenizer {file} is damaged: it is not JSON ({error}).") from error
    except OSError as error:
        raise BundleError(f"The tokenizer {file} cannot be read: {error.strerror or error}.") from error
    if not isinstance(content, dict):
        raise BundleError(f"The tokenizer {file} is damaged: it is not a JSON object.")
    try:
        for section, kinds in KINDS.items():
            growth, n_added = 1.0, 0
            for number, part in enumerate(_parts(content.get(section))):
                if number == MAX_PARTS:
                    raise ValueError(f"it has more than {MAX_PARTS} parts")
                if section == "model":
                    part = {"type": part.get("type")}  # its other fields are a vocabulary
                elif part.get("type") not in kinds.split():
                    raise ValueError(f"it has the part {str(part.get('type'))[:40]!r}")
                growth *= _growth(part)
                n_added += _added(part)
            if growth > MAX_GROWTH:
                raise ValueError(f"it makes a text up to {growth:.3g} times as long; at most {MAX_GROWTH} is allowed")
            if n_added > MAX_ADDED:
                raise ValueError(f"it puts {n_added} tokens around a text; at most {MAX_ADDED} are allowed")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _refused(file, f"its {section}: {error}") from error


def _refused(file: Path, reason: str) -> BundleError:
    return BundleError(f"The tokenizer {file} is refused: {reason}. Take it from a source that you trust.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return found


def _parts(section: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a section's components, those in sequences too."""
    if section is None:
        return
    if not isinstance(section, dict):
        raise ValueError("it is not an object")
    if depth > MAX_DEPTH:
        raise ValueError("its sequences are nested too deeply")
    if section.get("type") != "Sequence":
        yield section
        return
    for name in PARTS_OF_SEQUENCE:
        for part in section.get(name) or ():
            yield from _parts(part, depth + 1)


def decoder_parts(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the components of a tokenizer's decoder in the order in which they work, those of sequences too."""
    decoder = tokenizer.decoder
    # Its state, and not the whole tokenizer's, whose vocabulary takes a second to write.
    return [] if decoder is None else list(_parts(json.loads(decoder.__getstate__())))


def _growth(part: dict[str, Any]) -> float:
    """Return how many times as long a component may make a text, at most; checks its regular expression."""
    kind, pattern = part.get("type"), part.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if regex is not None:
        refuse_regex(regex)
    if kind == "Replace":
        content = len(part["content"])
        if literal == "":
            raise ValueError("it replaces an empty text")
        return max(1.0, content / len(literal)) if literal else content + 1.0
    if kind == "Prepend" and len(part["prepend"]) > MAX_ADDED:
        raise ValueError("it puts a long text before each text")
    return 1.0


def _added(part: dict[str, Any]) -> int:
    """Return the number of tokens that a post-processor puts around a text, and refuse one that repeats the text."""
    if part.get("type") != "TemplateProcessing":
        return 2
    n_added = 0
    tokens = part.get("special_tokens") or {}
    for name, most in (("single", 1), ("pair", 2)):
        pieces = part.get(name) or []
        if sum("Sequence" in piece for piece in pieces) > most:
            raise ValueError("it repeats the text")
        special = [piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece]
        n_added = max(n_added, sum(len(tokens[token]["ids"]) for token in special))
    return n_added


def refuse_regex(pattern: str) -> None:
    """Raise ValueError for a regular expression that could take very long, or much memory: repeated repetitions.

    Args:
        pattern: in the syntax of Oniguruma.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a regular expression has {len(pattern):,} letters")
    groups, atom = [_Group()], _Group()  # the open groups, and what a quantifier would repeat
    place = 0
    while place < len(pattern):
        letter, rest = pattern[place], pattern[place:]
        place += 1
        counts: tuple[int, int, int] | None = None
        if letter in "*+?":
            counts = (0 if letter != "+" else 1, 1 if letter == "?" else -1, 1)
        elif letter == "{":
            counts = _counts(rest)
        if counts is not None:
            least, most, length = counts
            place += length - 1
            place += pattern[place : place + 1] in ("+", "?")  # possessive or lazy
            atom = atom.repeated(least, most)
            groups[-1].take(atom)
            continue
        atom = _Group()
        if letter == "\\":
            if rest[1:2] in ("k", "g") or (rest[1:2].isdigit() and rest[1] != "0"):
                raise ValueError("a regular expression refers to one of its groups")
            place += max(1, rest.find("}")) if rest[2:3] == "{" else 1
        elif letter == "[":
            place = _end_of_class(pattern, place)
        elif letter == "(":
            if rest.startswith(("(?(", "(?~", "(?&", "(?R", "(?{", "(*")):
                raise ValueError("a regular expression has a condition, a call or an absence")
            groups.append(_Group())
            place += rest[1:2] == "?"  # of `(?:`, `(?=`, `(?i:`; no quantifier
        elif letter == ")" and len(groups) > 1:
            atom = groups.pop()
            groups[-1].take(atom)
        elif letter == "|":
            groups[-1].n_open = 0


@dataclass(eq=False, repr=False)
class _Group:
    """A group of a regular expression, or one letter.

    Attributes:
        varies: whether it can match texts of several lengths.
        n_open: number of repetitions without an end in its last branch.
        copies: how often the compiled expression holds its largest part.
    """

    varies: bool = False
    n_open: int = 0
    copies: int = 1

    def take(self, other: _Group) -> None:
        self.varies |= other.varies
        self.n_open += other.n_open
        self.copies = max(self.copies, other.copies)
        if self.n_open > MAX_OPEN:
            raise ValueError(f"a regular expression has more than {MAX_OPEN} repetitions in a row")

    def repeated(self, least: int, most: int) -> _Group:
        """Return this group with a quantifier; most: -1 without an end."""
        if self.varies and most != 1:
            raise ValueError("a regular expression repeats a repetition")
        copies = self.copies * max(1, least, most)
        if copies > MAX_COUNT:
            raise ValueError(f"a regular expression repeats a part {copies} times; at most {MAX_COUNT} are allowed")
        return _Group(self.varies or least != most, most == -1, copies)


def _end_of_class(pattern: str, place: int) -> int:
    """Return the place behind a character class that begins before `place`; classes may be nested."""
    depth = 1
    place += pattern[place : place + 1] == "^"
    place += pattern[place : place + 1] == "]"
    while place < len(pattern) and depth:
        letter = pattern[place]
        place += 2 if letter == "\\" else 1
        depth += (letter == "[") - (letter == "]")
    if depth:
        raise ValueError("a regular expression has a class without an end")
    return place


def _counts(rest: str) -> tuple[int, int, int] | None:
    """Read `{n}`, `{n,}`, `{,m}` or `{n,m}`; returns least and most repetitions (-1 without an end), and its length."""
    found = COUNTS.match(rest)
    if found is None:
        return None  # it stands for itself
    low, comma, high = found.groups()
    return int(low or 0), int(high) if high else -1 if comma else int(low), found.end()
