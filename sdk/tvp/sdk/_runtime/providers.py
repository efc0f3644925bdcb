"""Execution providers: which ones run each part of a bundle, and with which options."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ProviderError, near
from .fork import in_child

log = logging.getLogger("tvp.sdk")

Choice = str | tuple[str, Mapping[str, Any]]  # a provider's name, or (name, options)
Providers = Choice | Sequence[Choice] | Mapping[str, Choice | Sequence[Choice]]  # a mapping gives them by part
Chosen = list[tuple[str, dict[str, str]]]  # (name, options), as onnxruntime takes them

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SHORT_NAMES = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
ON_CPU: Chosen = [(CPU, {})]
PREPROCESS, VISION_ENCODER = "preprocess", "vision_encoder"
PARTS = (PREPROCESS, VISION_ENCODER, "connector", "encoder", "decoder", "text_encoder")
FILE_NAMES = {"encoder_model": "encoder", "decoder_model_merged": "decoder"}  # names of files that stand for parts

_preloading = threading.Lock()
_preloaded: list[Any] = []


def _renew_lock() -> None:
    global _preloading
    _preloading = threading.Lock()  # a thread of the parent may have held the old one


in_child(_renew_lock)

CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",  # by default memory grows by powers of two
    "cudnn_conv_algo_search": "HEURISTIC",  # by default the first run of each shape times every algorithm
    "use_tf32": "0",  # by default float32 products have 10 bits of mantissa, too few for parity
}
# Operators that take most of the time. If another provider was chosen and the CPU runs one of these, a warning says so.
# Arithmetic of shapes belongs on the CPU.
HEAVY = {
    "Attention",
    "Conv",
    "FusedConv",
    "FusedMatMul",
    "Gemm",
    "GroupQueryAttention",
    "LayerNormalization",
    "MatMul",
    "MatMulInteger",
    "MatMulNBits",
    "MultiHeadAttention",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Softmax",
}


class Plan(NamedTuple):
    """The providers of the parts of a base.

    Attributes:
        chosen: the providers of each part.
        automatic: the parts whose provider `auto` chose. Only these fall back to the CPU if it does not start.
        threads: of each graph on the CPU; 0 lets onnxruntime choose.
    """

    chosen: Mapping[str, Chosen]
    automatic: frozenset[str]
    threads: int = 0


def onnxruntime() -> Any:
    """Import onnxruntime; raises ProviderError, with the commands that install it, if it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            "onnxruntime is not installed. On a CPU: pip install onnxruntime. With CUDA or TensorRT: "
            "pip install onnxruntime-gpu. On a Jetson, install NVIDIA's own onnxruntime-gpu wheel."
        ) from error
    return onnxruntime


def with_cuda() -> Any:
    """Import onnxruntime and load CUDA's libraries from their pip wheels, once.

    Call this before you read the list of providers: loading also registers CUDA where it is a plug-in.
    """
    ort = onnxruntime()
    with _preloading:
        if ort in _preloaded or not hasattr(ort, "preload_dlls"):
            return ort
        _preloaded.append(ort)
        if {CUDA, TENSORRT} & {*ort.get_available_providers()} or ", cuda-plugin-ep=" in ort.get_build_info():
            with redirect_stdout(sys.stderr):  # it prints the libraries that it lacks, and stdout is for answers
                ort.preload_dlls()
    return ort


def make_plan(
    wanted: Providers, parts: Iterable[str], cache: Path, precision: str, device: str = "", threads: int = 0
) -> Plan:
    """Choose the providers of the parts of a base; see `choose_providers`.

    Logs a warning if TensorRT is to run a vision encoder that was not exported for it.

    Args:
        wanted: what the caller asked for. All of it is checked, also for parts that the base does not have.
        parts: the parts of the base.
        cache, precision, device: as of `choose_providers`.
        threads: as of `Plan`.

    Raises:
        ProviderError: as of `choose_providers`.
    """
    choices = _by_part(wanted)
    chosen = {part: choose_providers(wanted, part, cache, precision, device) for part in PARTS}
    if chosen[VISION_ENCODER][0][0] == TENSORRT and device in ("cpu", "cuda"):
        log.warning(
            "The %s was not exported for TensorRT, and TensorRT lacks some of its operators. It builds an engine for "
            "each piece between them: that takes long, and the pieces run slowly. Export with --device tensorrt.",
            VISION_ENCODER,
        )
    return Plan(
        {part: chosen[part] for part in parts},
        frozenset(part for part, choice in choices.items() if isinstance(choice, str) and choice == "auto"),
        threads,
    )


def choose_providers(wanted: Providers, part: str, cache: Path, precision: str = "fp32", device: str = "") -> Chosen:
    """Choose the providers of one part.

    Args:
        wanted: what the caller asked for.
            `auto` takes CUDA where onnxruntime has it, else the CPU. An int8 or int4 base that was exported for the
            CPU stays there: CUDA lacks most of its operators. `auto` never takes TensorRT, which needs minutes to
            build an engine.
            A provider is a name (`cpu`, `cuda`, `tensorrt`, or onnxruntime's own) or (name, options). These options
            override the defaults of this module. Operators that the provider lacks go to CUDA (behind TensorRT) and
            then to the CPU.
            A list names providers by priority; only the CPU is added behind it.
            A mapping gives any of these to a part; a part that it does not name is on `auto`.
        part: one of PARTS, or the name of its file without the suffix. The preprocessing always runs on the CPU,
            because other providers resize differently. TensorRT runs only the vision encoder: it lacks operators of
            the decoder, and it would build an engine of the other parts for each length of a question.
        cache: the folder for the TensorRT engines of this base.
        precision: of the base, from its manifest.
        device: that the base was exported for, from its manifest; '' (default) where it does not say.

    Returns:
        Providers with their options, by priority.

    Raises:
        ProviderError: a part or a provider is unknown, or a provider is not available or cannot run this part.
    """
    part = _part_name(part)
    choice = _by_part(wanted)[part]
    only_cpu = part == PREPROCESS or (isinstance(choice, str) and SHORT_NAMES.get(choice.lower(), choice) == CPU)
    available = (onnxruntime() if only_cpu else with_cuda()).get_available_providers()
    if isinstance(choice, str) and choice == "auto":
        on_gpu = CUDA in available and (precision in ("fp32", "fp16") or device in ("cuda", "tensorrt"))
        pairs: list[tuple[str, Mapping[str, Any]]] = [(CUDA, {})] if on_gpu else [(CPU, {})]
    else:
        pairs = _pairs(choice, available)
        if isinstance(wanted, Mapping):
            _check_part(part, [name for name, _ in pairs])
    if part == PREPROCESS:
        return list(ON_CPU)
    if len(pairs) == 1 and pairs[0][0] == TENSORRT and CUDA in available:
        options = pairs[0][1]
        pairs.append((CUDA, {"device_id": options["device_id"]} if "device_id" in options else {}))
    if part != VISION_ENCODER:
        pairs = [pair for pair in pairs if pair[0] != TENSORRT]
    # An int8 or int4 base for a GPU has its vision encoder in fp16.
    half = precision == "fp16" or (precision != "fp32" and device in ("cuda", "tensorrt"))
    if all(name != CPU for name, _ in pairs):
        pairs.append((CPU, {}))
    return [
        (name, {**_defaults(name, cache, half), **{str(key): str(value) for key, value in options.items()}})
        for name, options in pairs
    ]


def runs_on(session: Any, graph: str) -> str:
    """Return the provider that runs most operators of a session, or the first one where onnxruntime does not report it.

    Logs a warning if the CPU runs operators that take time although another provider was chosen.

    Args:
        session: onnxruntime's.
        graph: name of the graph, for messages.

    Raises:
        ProviderError: the first provider runs no operator.
    """
    first: str = session.get_providers()[0]
    if first == CPU or not hasattr(session, "get_provider_graph_assignment_info"):  # an older onnxruntime
        return first
    nodes: list[tuple[str, str]] = [
        (group.ep_name, node.op_type)
        for group in session.get_provider_graph_assignment_info()
        for node in group.get_nodes()
    ]
    if not nodes:
        return first
    counts = Counter(name for name, _ in nodes)
    if first not in counts:
        raise ProviderError(f"{first} runs no operator of {graph}; ask for {', '.join(counts)}, which runs them all.")
    left = Counter(operator for name, operator in nodes if name == CPU and operator in HEAVY)
    if left:
        log.warning(
            "%s runs on %s, but the CPU runs these operators, which that provider lacks: %s.",
            graph,
            first,
            ", ".join(f"{n} {operator}" for operator, n in left.most_common()),
        )
    return counts.most_common(1)[0][0]


def _by_part(wanted: Providers) -> dict[str, Any]:
    if not isinstance(wanted, Mapping):
        return dict.fromkeys(PARTS, wanted)
    return dict.fromkeys(PARTS, "auto") | {_part_name(part): choice for part, choice in wanted.items()}


def _part_name(part: Any) -> str:
    name: str = FILE_NAMES.get(part, part) if isinstance(part, str) else ""
    if name not in PARTS:
        raise ProviderError(
            f"{part!r} is not a part of a bundle; the parts are {', '.join(PARTS)}.{near(str(part), PARTS)}"
        )
    return name


def _check_part(part: str, names: list[str]) -> None:
    """Raise ProviderError if the caller named a provider for a part that it cannot run."""
    if part == PREPROCESS and names != [CPU]:
        raise ProviderError(
            f"The {PREPROCESS} was to run on {', '.join(names)}; it always runs on the CPU, because other providers "
            f"resize pictures differently. Leave {PREPROCESS} out of the providers."
        )
    if part != VISION_ENCODER and TENSORRT in names:
        raise ProviderError(
            f"TensorRT runs only the {VISION_ENCODER}, not the {part}. Give the {part} 'cuda' or 'cpu'."
        )


def _pairs(choice: Any, available: list[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the providers that the caller chose, by onnxruntime's names, with their options."""
    items = [choice] if isinstance(choice, str) or _is_pair(choice) else choice
    if not isinstance(items, Sequence) or isinstance(items, bytes):
        raise ProviderError(
            f"providers is {choice!r}; it must be 'auto', a name, or a list of names and (name, options)."
        )
    pairs: list[tuple[str, Mapping[str, Any]]] = []
    for item in items:
        if not (isinstance(item, str) or _is_pair(item)):
            raise ProviderError(f"{item!r} is not a provider; it must be a name or (name, options).")
        name, options = (item, {}) if isinstance(item, str) else item
        full = SHORT_NAMES.get(name.lower(), name)
        if full not in available:
            usable = [*(short for short, name_ in SHORT_NAMES.items() if name_ in available), *available]
            raise ProviderError(
                f"The provider {name!r} is not available in this onnxruntime; available are {', '.join(available)}."
                f"{' `tvp doctor` shows more.' if name.lower() in SHORT_NAMES else near(name, usable)}"
            )
        if any(full == other for other, _ in pairs):
            raise ProviderError(f"The provider {name!r} is given twice. Name it once.")
        if full == CPU and options:  # onnxruntime would ignore them
            raise ProviderError(
                f"The CPU has no option {next(iter(options))!r}, and no other. Give a number of threads as "
                "load(threads=…), or as TVP_THREADS."
            )
        pairs.append((full, options))
    if not pairs:
        raise ProviderError(
            "No provider was given; it must be 'auto', 'cpu', 'cuda', 'tensorrt' or onnxruntime's own name."
        )
    return pairs


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Mapping)


def _defaults(name: str, cache: Path, half: bool) -> dict[str, str]:
    if name == CUDA:
        return CUDA_OPTIONS
    if name != TENSORRT:
        return {}
    # An engine fits one version of onnxruntime and its TensorRT. The engine's file name says which GPU it is for.
    folder = str(cache / f"onnxruntime-{onnxruntime().__version__}")
    return {
        # onnxruntime's parser of these options takes True and False, and refuses 1 and 0.
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": folder,
        "trt_layer_norm_fp32_fallback": "True",  # in fp16 the sums of a layer norm overflow
        "trt_fp16_enable": str(half),
    }
