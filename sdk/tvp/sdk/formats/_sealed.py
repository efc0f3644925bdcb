"""A manifest's file: JSON that holds the sha256 of its own bytes, with the 64 digits of the digest replaced by zeros.

So one changed byte is noticed, and a client in any language can compute it. TVP writes format 2 and reads format 1 too:
see `_from_format_1`.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ._fields import read_texts
from .calibration import FEATURE

FORMAT = 2
KNOWN = (FEATURE,)  # features that this version knows
MAX_MANIFEST = 2**21  # bytes; a real one has some thousands
ZEROS = "0" * 64  # stands for the digest while it is computed


def sealed(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a manifest with this content, its format and its digest included."""
    whole = {**content, "format": FORMAT, "sha256": ZEROS}
    text = json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    if text.count(ZEROS) != 1:
        raise BundleError("No text in a manifest may hold 64 zeros in a row; they stand for its digest.")
    return text.replace(ZEROS, hashlib.sha256(text.encode()).hexdigest()).encode()


def read_content(file: Path) -> dict[str, Any]:
    """Return the content of an intact manifest, as format 2 has it."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe may never begin
            raise BundleError(f"{file} is not a file; it is not a manifest.")
        if status.st_size > MAX_MANIFEST:
            raise BundleError(f"{file} is larger than {MAX_MANIFEST >> 20} MiB; it is not a manifest.")
        data = file.read_bytes()
    except OSError as error:
        raise BundleError(f"The manifest {file} cannot be read: {error.strerror or error}.") from error
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"The manifest {file} is damaged: it is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BundleError(f"The manifest {file} is damaged: it is not a JSON object.")
    version: Any = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise BundleError(f"{file} is of format {version}, and this TVP reads up to {FORMAT}. Update TVP.")
    digest_of = {1: _digest_1, 2: _digest_2}.get(version) if type(version) is int else None
    if digest_of is None or digest_of(content, data) != content.get("sha256"):
        raise BundleError(
            f"The manifest {file} is damaged or was edited: its content does not match its own sha256. "
            "Export or copy the bundle again."
        )
    if version == 1:
        content = _from_format_1(content)
    assert isinstance(content, dict)
    needed = read_texts(content.get("requires", []), f"{file}: requires")
    if unknown := [name for name in needed if name not in KNOWN]:
        raise BundleError(f"The bundle of {file} needs {', '.join(unknown)}, which this TVP does not know. Update TVP.")
    return content


def _digest_2(content: Mapping[str, Any], data: bytes) -> str:
    own = content.get("sha256")
    if not isinstance(own, str) or len(own) != 64 or not own.isascii() or data.count(own.encode()) != 1:
        return ""
    return hashlib.sha256(data.replace(own.encode(), ZEROS.encode())).hexdigest()


# Format 1.


def _digest_1(content: Mapping[str, Any], data: bytes) -> str:
    """Return the digest of format 1: over canonical JSON without the digest. The file must be canonical too."""

    def canonical(value: Mapping[str, Any]) -> bytes:
        return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    try:
        if canonical(content) != data:
            return ""
    except ValueError:  # a lone surrogate
        return ""
    return hashlib.sha256(canonical({k: v for k, v in content.items() if k != "sha256"})).hexdigest()


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of format 1 as format 2 has it. Missing or wrong values are found when fields are read."""
    if isinstance(task := content.get("task"), dict):
        base = content.get("base")
        return content | task | {"kind": "task", "base": base.get("digest") if isinstance(base, dict) else base}
    if "kind" in content:
        return content | {"kind": "contrastive" if content["kind"] == "closed" else content["kind"]}
    start = content.get("start_token")
    return content | {"kind": "seq2seq" if type(start) is int and start >= 0 else "causal"}
