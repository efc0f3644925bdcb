"""The execution providers that each part of a bundle runs on, and their options."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ProviderError, near

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

CUDA_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",  # by default memory grows by powers of two
    "cudnn_conv_algo_search": "HEURISTIC",  # by default the first run of each shape times every algorithm
    "use_tf32": "0",  # by default float32 products have 10 bits of mantissa, too few for parity
}
# An operator of these that stays on the CPU, although another provider was asked for, is worth a warning. Shapes and
# the like belong on the CPU.
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


@dataclass(frozen=True)
class Plan:
    """The providers for the parts of a base.

    Attributes:
        chosen: what onnxruntime gets, by part.
        automatic: the parts that nobody named a provider for. They alone fall back to the CPU if theirs does not start.
    """

    chosen: Mapping[str, Chosen]
    automatic: frozenset[str]


def onnxruntime() -> Any:
    """Import onnxruntime; raises ProviderError, with the line that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ProviderError(
            "onnxruntime is not installed. On a CPU: pip install onnxruntime. With CUDA or TensorRT: "
            "pip install onnxruntime-gpu. On a Jetson, install NVIDIA's own onnxruntime-gpu wheel."
        ) from error
    return onnxruntime


def with_cuda() -> Any:
    """Import onnxruntime, and load CUDA's libraries once, where they come from pip wheels.

    This comes before anything asks for the list of providers: a CUDA that is a plug-in registers itself when its
    libraries are loaded.
    """
    ort = onnxruntime()
    with _preloading:
        if ort in _preloaded or not hasattr(ort, "preload_dlls"):
            return ort
        _preloaded.append(ort)
        if {CUDA, TENSORRT} & {*ort.get_available_providers()} or ", cuda-plugin-ep=" in ort.get_build_info():
            with redirect_stdout(sys.stderr):  # it prints missing libraries, and answers are read from stdout
                ort.preload_dlls()
    return ort


def make_plan(wanted: Providers, parts: Iterable[str], cache: Path, precision: str, device: str = "") -> Plan:
    """Choose providers for the parts of a base; see `choose_providers`.

    A wrong choice for any other part is an error as well. A vision encoder that was not exported for TensorRT and shall
    run there gets a warning.

    Args:
        wanted: the caller's choice.
        parts: names of the base's parts.
        cache: folder for TensorRT's engines of this base.
        precision, device: of the base's manifest.
    """
    choices = _by_part(wanted)
    chosen = {part: choose_providers(wanted, part, cache, precision, device) for part in PARTS}
    if chosen[VISION_ENCODER][0][0] == TENSORRT and device in ("cpu", "cuda"):
        log.warning(
            "The %s was not exported for TensorRT, and has operators that TensorRT lacks. TensorRT builds an engine "
            "for each piece between them; that takes long and runs slowly. Export it with --device tensorrt.",
            VISION_ENCODER,
        )
    return Plan(
        {part: chosen[part] for part in parts},
        frozenset(part for part, choice in choices.items() if isinstance(choice, str) and choice == "auto"),
    )


def choose_providers(wanted: Providers, part: str, cache: Path, precision: str = "fp32", device: str = "") -> Chosen:
    """Turn a caller's choice into the list that onnxruntime gets for one part.

    Args:
        wanted: `auto`, a provider, several of them by priority, or a mapping of parts to these.
            `auto` takes CUDA where onnxruntime reports it, and the CPU. It takes the CPU alone for int8 and int4 that
            were made for a CPU, since CUDA would leave most of them to the CPU. It never takes TensorRT, which builds
            its engine for minutes.
            A provider is a name (`cpu`, `cuda`, `tensorrt`, or onnxruntime's own) or (name, options). The options
            override those set here. One provider alone gets the usual ones behind it, for the nodes that it does not
            take (TensorRT: CUDA, CPU). Several are taken as given, with the CPU last.
        part: one of PARTS, or its file's name. The preprocessing always runs on the CPU, since other providers resize
            in other ways. TensorRT runs the vision encoder only: it lacks the decoder's operators, and would build the
            other engines anew for each length of a question.
        cache: folder for TensorRT's engines of this base.
        precision, device: of the base's manifest.

    Raises:
        ProviderError: the part or the provider is unknown, or the provider cannot run here or not this part.
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


def runs_on(session: Any, what: str) -> str:
    """Return the provider that runs most nodes of a session, or the first one where onnxruntime does not tell.

    Heavy operators that stay on the CPU, although another provider is there, get a warning.

    Args:
        session: onnxruntime's.
        what: names the graph in messages.

    Raises:
        ProviderError: the first provider takes no node at all.
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
            "%s is on %s, which has no kernel for some of its nodes. The CPU runs these: %s.",
            what,
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


def _refuse(part: str, names: list[str]) -> None:
    """Raise ProviderError for a provider that was named for a part and cannot run it."""
    if part == PREPROCESS and names != [CPU]:
        raise ProviderError(
            f"{', '.join(names)} was asked for the {PREPROCESS}, which always runs on the CPU: other providers resize "
            "pictures in other ways. Leave it out."
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
