"""The decode loop: one key/value buffer, written in place and rewound instead of copied."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._providers import onnxruntime
from ._sessions import Base, run_all
from .errors import ProviderError

BLOCK = 64  # positions by which a buffer grows
KINDS = ("key", "value")  # of which each layer has one


class KeyValues:
    """Keys and values of `n_rows` sequences, of which each has a length of its own.

    Each tensor is bound as input and output of the decoder, which writes behind a row's length in place.
    Going back to an earlier length costs nothing: what lies behind it is never read.
    What a run reads on the CPU is bound once; elsewhere onnxruntime copies an input that lies on another device when it
    is bound (`IOBinding::BindInput`), and not when it runs, so there it is bound again for each run.
    """

    def __init__(self, base: Base, n_rows: int = 1) -> None:
        self._base = base
        self._tensors: list[Any] = []
        self._binding: Any = None  # the tensors, bound once for all runs until they grow
        self._fed: dict[str, Any] = {}  # what a run takes and gives besides, bound for all runs of one shape
        self._shape = (0, 0)  # which that is: new tokens, logits
        self._capacity = 0
        self.lengths = np.zeros(n_rows, np.int64)
        self._firsts = np.ones(n_rows, np.int64)  # how many tokens each row began with, which may see each other

    @property
    def length(self) -> int:
        """Of the longest row."""
        return int(self.lengths.max())

    def room(self, row: int = 0) -> int:
        """How many more tokens a row can take."""
        n_positions = self._base.manifest.n_positions
        return n_positions - int(self.lengths[row]) if n_positions else sys.maxsize

    def rewind(self, length: int = 0) -> None:
        """Go back to a length, all rows."""
        self.lengths[:] = length

    def run(self, embeddings: NDArray[np.float32], n_logits: int) -> NDArray[np.float32]:
        """Append embeddings (n_rows, n_new, n_text); returns logits (n_rows, n_logits, n_vocab) of the last.

        Where the base says so, all that a sequence begins with see each other; later tokens see what is before them.
        """
        n_new = embeddings.shape[1]
        self._firsts = np.where(self.lengths == 0, n_new, self._firsts)
        totals = self.lengths + n_new
        inputs = {
            "inputs_embeds": embeddings,
            "seqlens_k": totals - 1,
            "total_sequence_length": totals.max(),
            "num_logits_to_keep": np.int64(n_logits),
        }
        if self._base.feeds_positions:
            inputs["position_ids"] = positions_of(self._base, self.lengths[:, None] + np.arange(n_new), self._firsts)
        self._reserve(int(totals.max()))
        with _told():
            if self._shape != (n_new, n_logits):
                self._bind(inputs, n_new, n_logits)
            for name, value in inputs.items():
                self._fed[name].numpy()[...] = value
            if self._base.copies_inputs:
                self._bind_fed()
                if self._base.cache_place[0] == "cpu":
                    self._bind_cache()
            self._base.decoder.run_with_iobinding(self._binding)
        self.lengths = totals
        logits: NDArray[np.float32] = self._fed["logits"].numpy().copy()  # the next run writes over them
        return logits

    def _bind(self, inputs: dict[str, Any], n_new: int, n_logits: int) -> None:
        """Make what runs of this shape take and give; the next run of the same shape uses it again."""
        ort, manifest = onnxruntime(), self._base.manifest
        kinds = {"inputs_embeds": np.float32, "seqlens_k": np.int32, "total_sequence_length": np.int32}
        arrays = {name: np.zeros(np.shape(value), kinds.get(name, np.int64)) for name, value in inputs.items()}
        arrays["logits"] = np.zeros((len(self.lengths), n_logits, manifest.n_vocab), np.float32)
        self._shape = (0, 0)  # until all is bound
        self._fed = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        self._binding.bind_ortvalue_output("logits", self._fed["logits"])
        self._bind_fed()
        self._bind_cache()
        self._shape = (n_new, n_logits)

    def _bind_cache(self) -> None:
        for i, tensor in enumerate(self._tensors):
            self._binding.bind_ortvalue_input(f"past_key_values.{i // 2}.{KINDS[i % 2]}", tensor)

    def _bind_fed(self) -> None:
        for name, value in self._fed.items():
            if name != "logits":
                self._binding.bind_ortvalue_input(name, value)

    def copies(self, n_rows: int, n_new: int) -> KeyValues:
        """Copies of a single sequence, to be continued in different ways by n_new tokens in one batch."""
        return KeyValues.together([self] * n_rows, n_new)

    @staticmethod
    def together(rows: Sequence[KeyValues], n_new: int) -> KeyValues:
        """Copies of single sequences as the rows of one batch, with room for the first of n_new tokens each.

        onnxruntime continues several sequences by one token a run only.
        """
        both = KeyValues(rows[0]._base, len(rows))
        longest, n_positions = max(row.length for row in rows), rows[0]._base.manifest.n_positions
        # A limit is not a length: what is asked for may be far more than what comes, or than there is memory for.
        most = longest + min(n_new, BLOCK)

        def fill(i: int, array: NDArray[Any]) -> None:
            # Of a device's memory numpy() is a copy of the whole, so once for rows that are the same.
            read = {key: row._tensors[i].numpy() for key, row in {id(row): row for row in rows}.items()}
            for place, row in enumerate(rows):
                array[place, :, : row.length] = read[id(row)][0, :, : row.length]

        both._reserve(min(most, n_positions or most), fill)
        for place, row in enumerate(rows):
            both.lengths[place], both._firsts[place] = row.length, row._firsts[0]
        return both

    def _reserve(self, length: int, fill: Callable[[int, NDArray[Any]], None] | None = None) -> None:
        """Make room for a length; fill: writes to the array of the i-th new tensor (default: what there was)."""
        manifest = self._base.manifest
        self._base.refuse_length(length)
        if length <= self._capacity:
            return
        capacity = -(-length // BLOCK) * BLOCK
        if self._base.cache_place[0] != "cpu":  # to grow, all of it goes to the CPU and back
            capacity = max(capacity, 2 * self._capacity)
        capacity = min(manifest.n_positions or capacity, capacity)
        shape = (len(self.lengths), manifest.n_kv_heads, capacity, manifest.head_size)
        ort = onnxruntime()
        # Taken over only when all is there: what fails on the way, a full device or Ctrl-C, leaves things as they were.
        tensors: list[Any] = []
        binding = self._base.decoder.io_binding()
        with _told():
            for i in range(2 * manifest.n_layers):
                array = np.zeros(shape, self._base.cache_type)
                if fill:
                    fill(i, array)
                elif self._tensors:
                    array[:, :, : self.length] = self._tensors[i].numpy()[:, :, : self.length]
                tensors.append(ort.OrtValue.ortvalue_from_numpy(array, *self._base.cache_place))
                binding.bind_ortvalue_output(f"present.{i // 2}.{KINDS[i % 2]}", tensors[i])
        self._shape = (0, 0)
        self._tensors, self._binding, self._capacity = tensors, binding, capacity


class GrowingKeyValues:
    """Keys and values of a decoder behind an encoder: the encoder's, and its own, which grow by copying."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._cross: dict[str, NDArray[Any]] = {}
        self._past: dict[str, NDArray[Any]] = {}

    def read(self, embeddings: NDArray[np.float32]) -> None:
        """Run the encoder over embeddings (1, n_read, n_text), and begin a new answer."""
        session = self._base.encoder
        names = [output.name for output in session.get_outputs()]
        self._cross = dict(zip(names, run_all(session, {"inputs_embeds": embeddings}), strict=True))
        self.rewind()

    def room(self, row: int = 0) -> int:
        """How many more tokens a row can take: T5's positions are relative."""
        return sys.maxsize

    def rewind(self, length: int = 0) -> None:
        """Forget the answer, and keep what was read."""
        manifest = self._base.manifest
        empty = np.zeros((1, manifest.n_kv_heads, 0, manifest.head_size), self._base.cache_type)
        self._past = {name.replace("cross", "past"): empty for name in self._cross}

    def run(self, embeddings: NDArray[np.float32], n_logits: int) -> NDArray[np.float32]:
        """Append embeddings (n_rows, n_new, n_text); returns logits (n_rows, n_logits, n_vocab) of the last."""
        logits, *present = run_all(self._base.decoder, {"inputs_embeds": embeddings, **self._past, **self._cross})
        self._past = dict(zip(self._past, present, strict=True))
        return logits[:, -n_logits:]

    def copies(self, n_rows: int, n_new: int) -> GrowingKeyValues:
        """Copies of a single sequence, to be continued in different ways in one batch."""
        other = GrowingKeyValues(self._base)
        other._cross, other._past = (
            {name: value.repeat(n_rows, 0) for name, value in tensors.items()} for tensors in (self._cross, self._past)
        )
        return other


@contextmanager
def _told() -> Iterator[None]:
    """What onnxruntime raises on the way, of a full device for instance, as a ProviderError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise ProviderError(f"onnxruntime failed while decoding: {str(error) or 'there is no more memory'}") from error


def positions_of(base: Base, order: NDArray[np.int64], firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of tokens by their places in sequences (n_rows, n): the same, or (axes, n_rows, n), several a token.

    Two positions are those of ChatGLM: a token's place, and 0; behind the `firsts` (n_rows,) tokens that see each
    other, the place of the last of those, and 1, 2, 3 …
    Three positions are those of Qwen2-VL (get_rope_index of transformers) for one square picture: time, row
    and column, of which a picture's tokens have their own, and text goes on behind the largest of them.
    """
    if base.manifest.position_axes == 1:
        return order
    if base.manifest.position_axes == 2:
        last = firsts[:, None] - 1
        return np.stack([np.minimum(order, last), (order - last).clip(0)])
    n_before, n_image = base.n_before, base.manifest.n_image_tokens
    side = math.isqrt(n_image)
    place = (order - n_before).clip(0, n_image - 1)
    in_image = (order >= n_before) & (order < n_before + n_image)
    text = np.where(order < n_before, order, order - n_image + side)
    parts = (np.zeros_like(place), place // side, place % side)
    return np.stack([np.where(in_image, n_before + part, text) for part in parts])


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities along the last axis, in float32."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """Of one token of logits (n_vocab,): as log_softmax, with half of its work, for it is asked at every token."""
    largest = logits.max()
    odds = np.exp(logits - largest)
    return float(logits[token] - largest - np.log(odds.sum()))
