"""onnxruntime sessions: opened on what was chosen, and one set of them for each base."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ._external import refuse_elsewhere
from ._manifest import BaseManifest, ContrastiveManifest, Identity, verify
from ._providers import CPU, CUDA, ON_CPU, TENSORRT, Chosen, Plan, onnxruntime, runs_on
from ._shapes import check_decoder, check_encoder, check_vision_encoder
from .errors import BundleError, ProviderError, RequestError
from .formats.layout import UNKNOWN, PromptTokenizer

if TYPE_CHECKING:
    from ._closed import ContrastiveBase

try:
    _trim: Callable[[int], Any] = ctypes.CDLL(None).malloc_trim
except (AttributeError, OSError, TypeError):  # another C library, another system

    def _trim(pad: int) -> None:
        pass


# The graphs of a base, by part.
FILES = {
    "vision_encoder": "vision_encoder.onnx",
    "connector": "connector.onnx",
    "encoder": "encoder_model.onnx",
    "decoder": "decoder_model_merged.onnx",
    "text_encoder": "text_encoder.onnx",
}


def open_session(file: Path, providers: Chosen, listed: Container[str] = ()) -> Any:
    """Open a model on exactly these providers; one that does not start is an error, now or in a later run.

    listed: names, beside it, of the files that it may read weights from.
    """
    refuse_elsewhere(file, listed)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Threads that sleep between a token's few hundred operators cost a seventh of its time, so they spin; but only
    # while something runs, or the pools of several sessions fight over the same cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # An arena of its own keeps, for as long as a session lives, the most that one picture ever took (12 megapixels:
    # 37 MiB), and a plan of its memory for every size of picture; without, answers take the same time.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    first, tensorrt = providers[0][0], dict(providers).get(TENSORRT)
    if first != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if tensorrt is not None:
        _make_folders(tensorrt)
        if "trt_profile_min_shapes" not in tensorrt:  # one shape, and so one engine: a picture at a time
            options.add_free_dimension_override_by_name("batch_size", 1)
    try:
        # By default onnxruntime goes on with other providers when one fails, in a run too, and only prints it.
        session = ort.InferenceSession(file, options, providers=providers, enable_fallback=False)
    except Exception as error:  # onnxruntime raises its own types, one for each status code
        if first == CPU:
            raise BundleError(f"onnxruntime cannot load {file}: {error}") from error
        raise ProviderError(f"{first} failed to start with {file.name}: {error}") from error
    missing = [name for name, _ in providers if name not in session.get_providers()]
    if missing:
        raise ProviderError(
            f"{' and '.join(missing)} did not start for {file.name}; onnxruntime fell back to "
            f"{', '.join(session.get_providers())}. `tvp doctor` shows what is installed; providers='cpu' runs "
            "without it."
        )
    return session


def _make_folders(settings: Mapping[str, str]) -> None:
    for key in ("trt_engine_cache_path", "trt_timing_cache_path"):
        try:
            Path(settings[key]).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ProviderError(
                f"TensorRT's cache {settings[key]} cannot be made: {error.strerror or error}. "
                f"Set TVP_HOME or the option {key} to a folder that can be written."
            ) from error


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
        row = np.array([self.ids(question)], np.int64)
        inputs: dict[str, NDArray[Any]] = {
            "image_features": features,
            "question_ids": row,
            "question_mask": np.ones_like(row),
        }
        return run(self.session, "image_embeds", inputs)

    def ids(self, question: str) -> list[int]:
        """What it reads of a question; raises RequestError for one that is too long."""
        ids = encode(self.tokenizer, self.prompt.replace("{image}", "").replace("{question}", question))
        if len(ids) > self.n_positions:
            raise RequestError(
                f"The question takes {len(ids)} tokens, and this model's Q-Former reads at most {self.n_positions}. "
                "Ask a shorter question."
            )
        return ids


@dataclass
class Base:
    """A loaded base: its sessions, token embeddings and tokenizer, shared by the tasks that use it.

    n_before: tokens before the image embeddings; no question changes them.
    connector: what makes image embeddings of picture and question, where the vision encoder alone does not.
    encoder: what reads picture and question for a decoder that only writes the answer, as T5's.
    providers: what each part really runs on.
    fallbacks: why a part is on the CPU that was not to be, by part.
    verified: the files that were found to be as the manifest says, by identity; see `verify`.
    checked: whether the files were verified before they were opened.
    device_id: of the GPU that the decoder runs on.
    """

    manifest: BaseManifest
    vision_encoder: Any
    decoder: Any
    embeddings: NDArray[np.floating[Any]]
    tokenizer: Tokenizer
    words: PromptTokenizer
    n_before: int
    connector: Connector | None = None
    encoder: Any = None
    providers: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    verified: set[Identity] = field(default_factory=set)
    checked: bool = True
    device_id: int = 0
    last: Trims = field(default_factory=lambda: Trims())  # goes when all above have gone

    def __post_init__(self) -> None:
        inputs = {value.name: value.type for value in self.decoder.get_inputs()}
        self.feeds_positions = "position_ids" in inputs  # a decoder that counts places by itself has none
        half = any(kind == "tensor(float16)" for name, kind in inputs.items() if name.startswith("past_key_values"))
        self.cache_type: type[np.floating[Any]] = np.float16 if half else np.float32
        provider = self.decoder.get_providers()[0]
        self.copies_inputs = provider != CPU
        # CUDA has this attention in half precision only; in fp32 it runs on the CPU, and there its cache lies.
        self.cache_place = ("cuda", self.device_id) if provider == CUDA and half else ("cpu", 0)

    def refuse_too_long(self, question: str, n_answer: int = 0) -> None:
        """Raise RequestError, before anything runs, for a question that cannot be read to its end.

        n_answer: tokens of an answer that are to be read behind it.
        """
        before, after = self.words.prompt_ids(question)
        if self.connector is not None:
            self.connector.ids(question)
        if self.encoder is None:
            self.refuse_length(len(before) + self.manifest.n_image_tokens + len(after) + n_answer)

    def refuse_length(self, n_tokens: int) -> None:
        n_positions = self.manifest.n_positions
        if n_positions and n_tokens > n_positions:
            raise RequestError(
                f"The picture, the question and the answer so far take {n_tokens} tokens, and this model reads "
                f"at most {n_positions}. Ask a shorter question or a shorter answer."
            )


class Trims:
    """Gives freed memory back to the system when it goes.

    glibc keeps the weights of a closed base for later, up to all of 620 MB when measured. It is not the base itself
    that does this: a base whose `__del__` runs can still be found in `_loaded` by another thread.
    """

    def __del__(self) -> None:
        _trim(0)


_loaded: weakref.WeakValueDictionary[tuple[str, str], Base | ContrastiveBase] = weakref.WeakValueDictionary()
_locks: weakref.WeakValueDictionary[str, _Lock] = weakref.WeakValueDictionary()
_locks_lock = threading.Lock()


class _Lock:
    """A lock that a weak dictionary can hold."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def load_base(
    folder: Path, manifest: BaseManifest | ContrastiveManifest, plan: Plan, *, verify_files: bool = True
) -> Base | ContrastiveBase:
    """Verify and open a base, or return the one that another task has open on the same providers.

    Threads that load the same base open it once; other bases do not wait for it.
    """
    key = (manifest.digest, repr(sorted(plan.chosen.items())))
    with _locks_lock:
        turn = _locks.setdefault(manifest.digest, _Lock())
    with turn.lock:
        base = _loaded.get(key)
        verified: set[Identity] = set() if base is None else base.verified
        if verify_files:
            verify(folder, manifest.files, verified)
        # What was opened unseen is not what has been verified now, of another folder or later.
        unseen = base is not None and verify_files and not base.checked
        if base is None or unseen or not base.fallbacks.keys() <= plan.automatic:
            if isinstance(manifest, ContrastiveManifest):
                from ._closed import open_contrastive

                base = open_contrastive(folder, manifest, plan, verified)
            else:
                base = _open_base(folder, manifest, plan, verified)
            base.checked = verify_files
            _loaded[key] = base
        return base


def _open_base(folder: Path, manifest: BaseManifest, plan: Plan, verified: set[Identity]) -> Base:
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    try:
        embeddings = np.lib.format.open_memmap(folder / "embed_tokens.npy", mode="r")
    except Exception as error:  # a header may be anything
        raise BundleError(f"The base in {folder} is damaged: embed_tokens.npy: {error}") from error
    if embeddings.dtype.kind != "f" or embeddings.shape != (manifest.n_vocab, manifest.n_text):
        raise BundleError(
            f"{folder / 'embed_tokens.npy'} is {embeddings.dtype} {embeddings.shape}; the manifest says "
            f"({manifest.n_vocab}, {manifest.n_text}), of floats. Export the bundle again."
        )
    if (token := max(manifest.start_token, *manifest.layout.end)) >= manifest.n_vocab:
        raise BundleError(
            f"The manifest in {folder} names the token {token}, and its vocabulary has {manifest.n_vocab}. "
            "Export the bundle again."
        )
    added = tokenizer.get_added_tokens_decoder()
    words = PromptTokenizer(
        manifest.layout,
        lambda text, special: encode(tokenizer, text, special),
        frozenset(token_id for token_id, token in added.items() if token.special and token.content != UNKNOWN),
    )
    try:
        n_before = len(words.prompt_ids("a")[0])
    except ValueError as error:
        raise BundleError(f"The base in {folder} is damaged: its tokenizer does not know its image token.") from error
    sessions, places, fallbacks = open_parts(folder, plan, manifest.files)
    connector = None
    if manifest.n_connector_positions:
        connector = Connector(
            sessions["connector"],
            read_tokenizer(folder / "connector_tokenizer.json"),
            manifest.n_connector_positions,
            manifest.layout.prompt,
        )
    base = Base(
        manifest,
        sessions["vision_encoder"],
        sessions["decoder"],
        embeddings,
        tokenizer,
        words,
        n_before,
        connector,
        sessions.get("encoder"),
        places,
        fallbacks,
        verified,
        device_id=int(dict(plan.chosen["decoder"]).get(CUDA, {}).get("device_id", 0)),
    )
    check_vision_encoder(base.vision_encoder, connector and connector.session, manifest)
    check_decoder(base.decoder, manifest)
    if base.encoder is not None:
        check_encoder(base.encoder, manifest)
    return base


def open_parts(
    folder: Path, plan: Plan, listed: Container[str]
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Open each part, see `open_session`; returns sessions, what they run on, and why some are on the CPU that were to
    be elsewhere."""
    sessions: dict[str, Any] = {}
    places: dict[str, str] = {}
    fallbacks: dict[str, str] = {}
    for part, providers in plan.chosen.items():
        file = folder / FILES[part]
        try:
            session = open_session(file, providers, listed)
            places[part] = runs_on(session, file.name)
        except ProviderError as error:
            if part not in plan.automatic or providers == ON_CPU:
                raise
            fallbacks[part] = str(error)
            session, places[part] = open_session(file, ON_CPU, listed), CPU
        sessions[part] = session
        _trim(0)  # of what reading a graph took, glibc keeps up to 0.4 of its weights for later
    return sessions, places, fallbacks


def read_tokenizer(file: Path) -> Tokenizer:
    with told(f"The tokenizer {file} is damaged"):
        tokenizer = Tokenizer.from_file(os.fspath(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, special: bool = True) -> list[int]:
    """Token ids of a text. special: whether with begin and end tokens."""
    with told("The bundle's tokenizer fails"):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    return ids


@contextmanager
def told(what: str) -> Iterator[None]:
    """What tokenizers raises, as a BundleError: bare Exceptions, and its panics, which are no Exceptions."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(f"{what}: {error}") from error
