"""onnxruntime sessions: which providers they run on, and one set of sessions for each base."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ._layout import Words
from ._manifest import BaseManifest, ClosedManifest
from .errors import BundleError, ProviderError, RequestError, near

if TYPE_CHECKING:
    from ._closed import ClosedBase

Providers = str | Sequence[str | tuple[str, dict[str, Any]]]

SHORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def onnxruntime() -> Any:
    """Import onnxruntime, or say which line installs one."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            "onnxruntime is not installed. On a CPU: pip install 'tvp[cpu]'. With CUDA or TensorRT: "
            "pip install 'tvp[gpu]'. On a Jetson install NVIDIA's own onnxruntime-gpu wheel."
        ) from error
    return onnxruntime


def choose_providers(wanted: Providers) -> list[Any]:
    """Turn `auto`, a name or a list into what onnxruntime takes.

    `auto` is CUDA where onnxruntime reports it, and CPU. Names may be short (`cpu`, `cuda`,
    `tensorrt`) or onnxruntime's own.
    Raises ProviderError for a name that is unknown or not available in this installation.
    """
    available = onnxruntime().get_available_providers()
    if isinstance(wanted, str):
        if wanted == "auto":
            return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        wanted = [wanted]
    chosen: list[Any] = []
    if not isinstance(wanted, Sequence):
        raise ProviderError(f"providers is {wanted!r}; give 'auto', a name, or a list of names and (name, options).")
    for item in wanted:
        pair = (item, None) if isinstance(item, str) else item
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ProviderError(f"{item!r} is not a provider; give a name or (name, options).")
        name, options = pair
        full = SHORT_NAMES.get(name.lower(), name)
        if full not in available:
            usable = [*(short for short, name_ in SHORT_NAMES.items() if name_ in available), *available]
            raise ProviderError(
                f"The provider {name!r} is not available in this onnxruntime; available are "
                f"{', '.join(available)}.{near(name, usable)}"
            )
        chosen.append(full if options is None else (full, options))
    if not chosen:
        raise ProviderError("No provider was given; use 'auto', 'cpu', 'cuda' or 'tensorrt'.")
    return chosen


def open_session(file: Path, providers: list[Any]) -> Any:
    """Open a model; a provider that fell back silently is an error."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # One pool of threads per session spins between runs by default, and three sessions' pools fight
    # over the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if hasattr(ort, "preload_dlls") and providers[0] != "CPUExecutionProvider":
        ort.preload_dlls()  # finds CUDA's libraries where they come from pip wheels
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    try:
        session = ort.InferenceSession(file, options, providers=providers)
    except Exception as error:  # onnxruntime raises its own types, one for each status code
        if first == "CPUExecutionProvider":
            raise BundleError(f"onnxruntime cannot load {file}: {error}") from error
        raise ProviderError(f"{first} failed to start with {file.name}: {error}") from error
    if first not in session.get_providers():
        raise ProviderError(
            f"{first} did not start for {file.name}; onnxruntime fell back to {session.get_providers()}. "
            "`tvp doctor` shows what is installed; providers='cpu' runs without it."
        )
    return session


def run(session: Any, output: str, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Run a session for one output; onnxruntime's own errors become a ProviderError."""
    return run_all(session, inputs, [output])[0]


def run_all(
    session: Any, inputs: dict[str, NDArray[Any]], outputs: list[str] | None = None
) -> list[NDArray[np.float32]]:
    """Run a session for these outputs (default: all)."""
    try:
        results: list[NDArray[np.float32]] = session.run(outputs, inputs)
    except Exception as error:  # onnxruntime raises its own types, one for each status code
        raise ProviderError(f"onnxruntime failed to compute {', '.join(outputs or ['an answer'])}: {error}") from error
    return results


@dataclass
class Connector:
    """The graph that reads a picture's features and the prompt, in tokens of its own."""

    session: Any
    tokenizer: Tokenizer
    n_positions: int
    prompt: str

    def embed(self, features: NDArray[np.float32], question: str) -> NDArray[np.float32]:
        """Image embeddings (1, n_image, n_text) of features (1, …) for a question."""
        ids = self.tokenizer.encode(self.prompt.replace("{image}", "").replace("{question}", question)).ids
        if len(ids) > self.n_positions:
            raise RequestError(
                f"The question takes {len(ids)} tokens, and this model's Q-Former reads at most {self.n_positions}. "
                "Ask a shorter question."
            )
        row = np.array([ids], np.int64)
        inputs: dict[str, NDArray[Any]] = {
            "image_features": features,
            "question_ids": row,
            "question_mask": np.ones_like(row),
        }
        return run(self.session, "image_embeds", inputs)


@dataclass
class Base:
    """A loaded base: its sessions, token embeddings and tokenizer, shared by the tasks that use it.

    n_before: tokens before the image embeddings; no question changes them.
    connector: what makes image embeddings of picture and question, where the vision encoder alone does not.
    encoder: what reads picture and question for a decoder that only writes the answer, as T5's.
    """

    manifest: BaseManifest
    vision_encoder: Any
    decoder: Any
    embeddings: NDArray[np.floating[Any]]
    tokenizer: Tokenizer
    words: Words
    n_before: int
    connector: Connector | None = None
    encoder: Any = None

    def __post_init__(self) -> None:
        inputs = {value.name: value.type for value in self.decoder.get_inputs()}
        self.feeds_positions = "position_ids" in inputs  # a decoder that counts places by itself has none
        half = any(kind == "tensor(float16)" for name, kind in inputs.items() if name.startswith("past_key_values"))
        self.cache_type: type[np.floating[Any]] = np.float16 if half else np.float32


_loaded: weakref.WeakValueDictionary[tuple[str, str], Base | ClosedBase] = weakref.WeakValueDictionary()


def load_base(folder: Path, manifest: BaseManifest | ClosedManifest, providers: list[Any]) -> Base | ClosedBase:
    """Open a verified base, or return the one that another task has open."""
    key = (manifest.digest, repr(providers))
    base = _loaded.get(key)
    if base is None:
        base = _loaded[key] = _open_base(folder, manifest, providers)
    return base


def _open_base(folder: Path, manifest: BaseManifest | ClosedManifest, providers: list[Any]) -> Base | ClosedBase:
    if isinstance(manifest, ClosedManifest):
        from ._closed import open_closed

        return open_closed(folder, manifest, providers)
    try:
        tokenizer = _open_tokenizer(folder / "tokenizer.json")
        embeddings = np.load(folder / "embed_tokens.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BundleError(f"The base in {folder} is damaged: {error}") from error
    if embeddings.ndim != 2 or embeddings.shape[1] != manifest.n_text:
        raise BundleError(
            f"{folder / 'embed_tokens.npy'} has the shape {embeddings.shape}; the manifest says "
            f"({manifest.n_vocab}, {manifest.n_text})."
        )
    added = tokenizer.get_added_tokens_decoder()
    words = Words(
        manifest.layout,
        lambda text, special: tokenizer.encode(text, add_special_tokens=special).ids,
        frozenset(token_id for token_id, token in added.items() if token.special),
    )
    try:
        n_before = len(words.prompt_ids("a")[0])
    except ValueError as error:
        raise BundleError(f"The base in {folder} is damaged: its tokenizer does not know its image token.") from error
    connector = None
    if manifest.n_connector_positions:
        connector = Connector(
            open_session(folder / "connector.onnx", providers),
            _open_tokenizer(folder / "connector_tokenizer.json"),
            manifest.n_connector_positions,
            manifest.layout.prompt,
        )
    return Base(
        manifest,
        open_session(folder / "vision_encoder.onnx", providers),
        # TensorRT has no GroupQueryAttention; the decoder takes the providers after it.
        open_session(folder / "decoder_model_merged.onnx", _without_tensorrt(providers)),
        embeddings,
        tokenizer,
        words,
        n_before,
        connector,
        open_session(folder / "encoder_model.onnx", providers) if manifest.start_token >= 0 else None,
    )


def _open_tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(os.fspath(file))
    except Exception as error:  # tokenizers raises a bare Exception
        raise BundleError(f"The tokenizer {file} is damaged: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_tensorrt(providers: list[Any]) -> list[Any]:
    left = [p for p in providers if (p if isinstance(p, str) else p[0]) != "TensorrtExecutionProvider"]
    return left or choose_providers("auto")
