"""Keys and values of a decoder without an encoder: one buffer, written in place and rewound instead of copied."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._runtime.providers import CPU, CUDA, onnxruntime
from .._runtime.stopping import stopped
from ..errors import ProviderError, RequestError
from ..formats.manifest import CausalManifest
from .positions import positions_of

BLOCK = 64  # positions by which a buffer grows
KINDS = ("key", "value")  # each layer has one of both


class Decoder:
    """The session of a decoder, and the facts that its cache needs.

    Args:
        session: onnxruntime's.
        manifest: of the base.
        n_before: number of tokens before the image embeddings; no question changes them.
        device_id: of the GPU that the session runs on.

    Attributes:
        feeds_positions: whether the graph takes positions as an input; some graphs count places by themselves.
        cache_type: dtype of keys and values.
        copies_inputs: whether onnxruntime copies inputs from the CPU to a device.
        cache_place: device and its number, where keys and values lie.
    """

    def __init__(self, session: Any, manifest: CausalManifest, n_before: int, device_id: int) -> None:
        self.session, self.manifest, self.n_before = session, manifest, n_before
        self.feeds_positions = any(value.name == "position_ids" for value in session.get_inputs())
        self.cache_type = cache_type_of(session)
        provider = session.get_providers()[0]
        self.copies_inputs = provider != CPU
        # CUDA has this attention in half precision only; in fp32 it runs on the CPU, and its cache lies there.
        self.cache_place = ("cuda", device_id) if provider == CUDA and self.cache_type is np.float16 else ("cpu", 0)

    def refuse_length(self, n_tokens: int) -> None:
        """Raise RequestError for more tokens than the model reads."""
        n_positions = self.manifest.n_positions
        if n_positions and n_tokens > n_positions:
            raise RequestError(
                f"The picture, the question and the answer so far take {n_tokens} tokens, and this model reads "
                f"at most {n_positions}. Ask a shorter question or a shorter answer."
            )

    def positions(self, order: NDArray[np.int64], firsts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of tokens by their places; see `positions_of`."""
        manifest = self.manifest
        return positions_of(manifest.position_axes, self.n_before, manifest.n_image_tokens, order, firsts)


class KeyValues:
    """Keys and values of `n_rows` sequences. Each row has a length of its own.

    Each tensor is bound as input and output of the decoder, which writes behind a row's length in place.
    Going back to an earlier length costs nothing: values behind the length are never read.
    On the CPU, inputs are bound once. For a device, onnxruntime copies an input when it is bound
    (`IOBinding::BindInput`) and not when it runs, so it is bound again for each run.
    """

    def __init__(self, decoder: Decoder, n_rows: int = 1) -> None:
        self._decoder = decoder
        self._tensors: list[Any] = []
        self._binding: Any = None  # the tensors, bound once for all runs until they grow
        self._fed: dict[str, Any] = {}  # other inputs, and the logits, bound for all runs of one shape
        self._shape = (0, 0)  # that shape: number of new tokens, number of logits
        self._capacity = 0
        self.lengths = np.zeros(n_rows, np.int64)
        self._firsts = np.ones(n_rows, np.int64)  # number of tokens that each row began with; these may see each other

    @property
    def length(self) -> int:
        """The length of the longest row."""
        return int(self.lengths.max())

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that its tensors take now."""
        manifest = self._decoder.manifest
        n_values = len(self.lengths) * manifest.n_kv_heads * self._capacity * manifest.head_size
        return len(self._tensors) * n_values * np.dtype(self._decoder.cache_type).itemsize

    def room(self, row: int = 0) -> int:
        """Return how many more tokens a row can take."""
        n_positions = self._decoder.manifest.n_positions
        return n_positions - int(self.lengths[row]) if n_positions else sys.maxsize

    def rewind(self, length: int = 0) -> None:
        """Go back to a length in all rows."""
        self.lengths[:] = length

    def run(self, embeddings: NDArray[np.float32], n_logits: int) -> NDArray[np.float32]:
        """Append embeddings (n_rows, n_new, n_text); returns logits (n_rows, n_logits, n_vocab) of the last.

        If the manifest says so, the tokens that a sequence begins with see each other. Later tokens see those before
        them.
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
        if self._decoder.feeds_positions:
            inputs["position_ids"] = self._decoder.positions(self.lengths[:, None] + np.arange(n_new), self._firsts)
        self._reserve(int(totals.max()))
        with _provider_errors():
            if self._shape != (n_new, n_logits):
                self._bind(inputs, n_new, n_logits)
            for name, value in inputs.items():
                self._fed[name].numpy()[...] = value
            if self._decoder.copies_inputs:
                self._bind_fed()
                if self._decoder.cache_place[0] == "cpu":
                    self._bind_cache()
            stopped(lambda options: self._decoder.session.run_with_iobinding(self._binding, options))
        self.lengths = totals
        logits: NDArray[np.float32] = self._fed["logits"].numpy().copy()  # the next run writes over them
        return logits

    def _bind(self, inputs: dict[str, Any], n_new: int, n_logits: int) -> None:
        """Make the inputs and the logits of runs of this shape; the next run of the same shape uses them again."""
        ort, manifest = onnxruntime(), self._decoder.manifest
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
        """Return copies of a single sequence, to be continued in different ways by n_new tokens in one batch."""
        return KeyValues.together([self] * n_rows, n_new)

    @staticmethod
    def together(rows: Sequence[KeyValues], n_new: int) -> KeyValues:
        """Return copies of single sequences as the rows of one batch, with room for the first of n_new tokens each.

        onnxruntime continues several sequences by only one token a run.
        """
        both = KeyValues(rows[0]._decoder, len(rows))
        longest, n_positions = max(row.length for row in rows), rows[0]._decoder.manifest.n_positions
        # n_new is a limit: far fewer tokens may come, and there may not be memory for all of it.
        most = longest + min(n_new, BLOCK)

        def fill(i: int, array: NDArray[Any]) -> None:
            # numpy() copies the whole tensor from a device, so it is called once for equal rows.
            read = {key: row._tensors[i].numpy() for key, row in {id(row): row for row in rows}.items()}
            for place, row in enumerate(rows):
                array[place, :, : row.length] = read[id(row)][0, :, : row.length]

        both._reserve(min(most, n_positions or most), fill)
        for place, row in enumerate(rows):
            both.lengths[place], both._firsts[place] = row.length, row._firsts[0]
        return both

    def _reserve(self, length: int, fill: Callable[[int, NDArray[Any]], None] | None = None) -> None:
        """Make room for a length; fill: writes to the array of the i-th new tensor (default: the old values)."""
        manifest = self._decoder.manifest
        self._decoder.refuse_length(length)
        if length <= self._capacity:
            return
        capacity = -(-length // BLOCK) * BLOCK
        if self._decoder.cache_place[0] != "cpu":  # to grow, all of it goes to the CPU and back
            capacity = max(capacity, 2 * self._capacity)
        capacity = min(manifest.n_positions or capacity, capacity)
        shape = (len(self.lengths), manifest.n_kv_heads, capacity, manifest.head_size)
        ort = onnxruntime()
        # Attributes change only when all tensors are there: a full device or Ctrl-C leaves them as they were.
        tensors: list[Any] = []
        binding = self._decoder.session.io_binding()
        with _provider_errors():
            for i in range(2 * manifest.n_layers):
                array = np.zeros(shape, self._decoder.cache_type)
                if fill:
                    fill(i, array)
                elif self._tensors:
                    array[:, :, : self.length] = self._tensors[i].numpy()[:, :, : self.length]
                tensors.append(ort.OrtValue.ortvalue_from_numpy(array, *self._decoder.cache_place))
                binding.bind_ortvalue_output(f"present.{i // 2}.{KINDS[i % 2]}", tensors[i])
        self._shape = (0, 0)
        self._tensors, self._binding, self._capacity = tensors, binding, capacity


def cache_type_of(session: Any) -> type[np.floating[Any]]:
    """Return the dtype of a decoder's keys and values."""
    kinds = {value.type for value in session.get_inputs() if value.name.startswith("past_key_values")}
    return np.float16 if "tensor(float16)" in kinds else np.float32


@contextmanager
def _provider_errors() -> Iterator[None]:
    """Turn onnxruntime's errors while decoding, such as a full device, into a ProviderError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise ProviderError(f"onnxruntime failed while decoding: {str(error) or 'there is no more memory'}") from error
