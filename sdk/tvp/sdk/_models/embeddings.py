"""Token embeddings in a file, of which each request reads its own rows."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..formats._npy import read_header
from ..formats.manifest import GenerativeManifest


class TokenEmbeddings:
    """A table of floats (n_vocab, n_text), the largest tensor of a small model.

    It is read and not mapped: where another program shortens a mapped file, the next look at it ends the process
    (SIGBUS). Here that is a BundleError, and so is a file that was written again.

    Args:
        folder: of the base; the file is embed_tokens.npy.
        manifest: of the base, which says the shape.

    Raises:
        BundleError: the file is damaged, or of another shape.
    """

    def __init__(self, folder: Path, manifest: GenerativeManifest) -> None:
        self._name = folder / "embed_tokens.npy"
        try:
            self._file = open(self._name, "rb", buffering=0)  # noqa: SIM115 (open as long as this is)
            weakref.finalize(self, self._file.close)
            shape, by_columns, self._dtype = read_header(self._file)
            self._begin = self._file.tell()
        except Exception as error:  # a header may be anything
            raise BundleError(f"The base in {folder} is damaged: {self._name.name}: {error}") from error
        self._n_rows, self._n_text = manifest.n_vocab, manifest.n_text
        if self._dtype.kind != "f" or by_columns or shape != (self._n_rows, self._n_text):
            raise BundleError(
                f"{self._name} is {self._dtype} {shape}{' by columns' * by_columns}; the manifest says "
                f"({self._n_rows}, {self._n_text}), of floats. Export the bundle again."
            )
        if (token := max(manifest.layout.end)) >= self._n_rows:
            raise BundleError(
                f"The manifest in {folder} names the token {token}, and its vocabulary has {self._n_rows}. "
                "Export the bundle again."
            )
        self._n_bytes = self._n_text * self._dtype.itemsize  # of a row
        self._seeking = threading.Lock()
        self._state = self._now()
        if self._state[0] != self._begin + self._n_rows * self._n_bytes:
            raise BundleError(f"The base in {folder} is damaged: {self._name.name} has {self._state[0]} bytes.")

    def rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the embeddings (n, n_text) of token ids.

        Raises:
            BundleError: there is no such token, or the file has changed.
        """
        self.refuse_unknown(ids)
        content = b"".join([self._read(token) for token in ids])
        if len(content) != len(ids) * self._n_bytes or self._now() != self._state:
            raise BundleError(f"{self._name} was changed under the loaded task. Load the task again.")
        table: NDArray[Any] = np.frombuffer(content, self._dtype).reshape(len(ids), self._n_text)
        rows: NDArray[np.float32] = table.astype(np.float32, copy=False)
        return rows

    def refuse_unknown(self, ids: Sequence[int]) -> None:
        """Raise BundleError for a token without a row."""
        if (largest := max(ids, default=0)) >= self._n_rows:
            raise BundleError(
                f"The tokenizer gives the token {largest}, and {self._name.name} has {self._n_rows} rows. "
                "Export the bundle again."
            )

    def _read(self, row: int) -> bytes:
        place = self._begin + row * self._n_bytes
        try:
            if hasattr(os, "pread"):
                return os.pread(self._file.fileno(), self._n_bytes, place)
            with self._seeking:
                self._file.seek(place)
                return self._file.read(self._n_bytes)
        except OSError as error:
            raise BundleError(f"{self._name} cannot be read: {error.strerror or error}.") from error

    def _now(self) -> tuple[int, int]:
        """Return size and time of the content."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns
