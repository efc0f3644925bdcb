"""onnxruntime sessions: one graph on exactly the providers that were chosen, or all the graphs of a base."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, ProviderError
from ..formats.graph import check_graph
from ..formats.integrity import Identity, private_folder
from .fork import remember
from .providers import CPU, CUDA, ON_CPU, TENSORRT, Chosen, Plan, onnxruntime, runs_on
from .stopping import StoppedError, stopped

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


def open_session(file: Path, providers: Chosen, listed: Container[str] = (), threads: int = 0) -> Any:
    """Open a graph on exactly these providers. onnxruntime does not fall back to others, now or in a later run.

    Args:
        file: of the graph.
        providers: with their options, by priority.
        listed: names of the files beside the graph that it may read weights from.
        threads: that compute together on the CPU; 0 (default) lets onnxruntime choose.

    Raises:
        BundleError: the graph is damaged, reads weights from another file, or has an operator that no bundle has.
        ProviderError: a provider does not start.
    """
    check_graph(file, listed)
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads spin between the few hundred operators of a token: sleeping costs a seventh of its time. They spin only
    # during a run, or the thread pools of several sessions would fight over the same cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # With an arena, a session keeps the most memory that one picture ever took (12 megapixels: 37 MiB), and a memory
    # plan for every size of picture. Without, answers take the same time.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    first, tensorrt = providers[0][0], dict(providers).get(TENSORRT)
    if first != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if tensorrt is not None:
        _make_folders(tensorrt)
        if "trt_profile_min_shapes" not in tensorrt:  # one picture at a time: one shape, and so one engine
            options.add_free_dimension_override_by_name("batch_size", 1)
    try:
        # By default onnxruntime only prints that a provider failed, in a run too, and goes on with another one.
        session = ort.InferenceSession(file, options, providers=providers, enable_fallback=False)
    except Exception as error:  # onnxruntime raises its own types, one for each status code
        if first == CPU:
            raise BundleError(f"onnxruntime cannot load {file}: {error}") from error
        raise ProviderError(f"{first} failed to start with {file.name}: {error}") from error
    remember(session)
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
            private_folder(Path(settings[key]))  # an engine is code
        except BundleError as error:
            raise ProviderError(str(error)) from error
        except OSError as error:
            raise ProviderError(
                f"TensorRT's cache {settings[key]} cannot be made: {error.strerror or error}. "
                f"Set TVP_HOME or the option {key} to a folder that can be written."
            ) from error


def run(session: Any, output: str, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Run a session for one output; onnxruntime's own errors become a ProviderError.

    Raises:
        StoppedError: it was stopped; see stopping.py.
    """
    return run_all(session, inputs, [output])[0]


def run_all(
    session: Any, inputs: dict[str, NDArray[Any]], outputs: list[str] | None = None
) -> list[NDArray[np.float32]]:
    """Run a session for these outputs (default: all); raises ProviderError and StoppedError as `run` does."""
    try:
        results: list[NDArray[np.float32]] = stopped(lambda options: session.run(outputs, inputs, options))
    except StoppedError:
        raise
    except Exception as error:  # onnxruntime raises its own types, one for each status code
        raise ProviderError(f"onnxruntime failed to compute {', '.join(outputs or ['an answer'])}: {error}") from error
    return results


class TrimmedMemory:
    """Gives freed memory back to the system when it goes.

    glibc keeps the weights of a closed base for later: 620 MB of them when measured. The model itself does not do
    this: while its `__del__` runs, another thread could still find it among the opened ones.
    """

    def __del__(self) -> None:
        _trim(0)


@dataclass(eq=False, repr=False)
class Parts:
    """The opened graphs of a base.

    Attributes:
        sessions: onnxruntime's session of each part.
        providers: the provider that runs each part, by onnxruntime's name.
        fallbacks: why a part fell back to the CPU, for each part that did.
        device_id: of the GPU that the decoder runs on.
        files: what it was opened from, as `integrity.identities` returns it; where it was verified, any files that
            were found to hold the same.
    """

    sessions: dict[str, Any]
    providers: Mapping[str, str]
    fallbacks: Mapping[str, str]
    device_id: int = 0
    files: set[Identity] = field(default_factory=set)


def open_parts(folder: Path, plan: Plan, listed: Container[str]) -> Parts:
    """Open every graph of a base; see `open_session`.

    Args:
        folder: of the base.
        plan: the providers of each part. A part whose provider was chosen automatically runs on the CPU where that
            provider does not start.
        listed: names of the files in the folder that a graph may read weights from.
    """
    sessions: dict[str, Any] = {}
    places: dict[str, str] = {}
    fallbacks: dict[str, str] = {}
    for part, providers in plan.chosen.items():
        file = folder / FILES[part]
        try:
            session = open_session(file, providers, listed, plan.threads)
            places[part] = runs_on(session, file.name)
        except ProviderError as error:
            if part not in plan.automatic or providers == ON_CPU:
                raise
            fallbacks[part] = str(error)
            session, places[part] = open_session(file, ON_CPU, listed, plan.threads), CPU
        sessions[part] = session
        _trim(0)  # glibc keeps memory that reading a graph took, up to 0.4 of the size of its weights
    device_id = int(dict(plan.chosen.get("decoder", [])).get(CUDA, {}).get("device_id", 0))
    return Parts(sessions, places, fallbacks, device_id)
