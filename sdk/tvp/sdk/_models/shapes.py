"""Does what a manifest says fit the graphs beside it? What does not is a BundleError before the first question.

A manifest's numbers decide how much memory an answer takes, so none is believed that a graph contradicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._manifest import BaseManifest, ContrastiveManifest
from .errors import BundleError

Shape = Sequence[int | str | None]  # a name or None where a graph leaves a size open


def check_decoder(session: Any, manifest: BaseManifest) -> None:
    """Inputs and outputs of `decoder_model_merged.onnx`; raises BundleError for the first that does not fit."""
    outputs = session.get_outputs()
    # Before anything is counted up to n_layers, which may be anything.
    if 2 * manifest.n_layers + 1 != len(outputs):
        raise BundleError(
            f"decoder_model_merged.onnx has {len(outputs)} outputs, and its manifest says {manifest.n_layers} layers, "
            "of which each has two, besides the logits. Export the bundle again."
        )
    cache = [None, manifest.n_kv_heads, None, manifest.head_size]
    inputs: dict[str, Shape] = {"inputs_embeds": [None, None, manifest.n_text]}
    if manifest.start_token >= 0:
        if manifest.position_axes != 1:
            raise BundleError(f"A decoder behind an encoder has no {manifest.position_axes} position_axes; it has 1.")
        inputs |= _cache("cross_key_values", manifest, cache)
    else:
        if manifest.position_axes > 1:
            inputs["position_ids"] = [manifest.position_axes, None, None]
        elif any(value.name == "position_ids" for value in session.get_inputs()):
            inputs["position_ids"] = [None, None]  # which a decoder that counts places by itself has not
        inputs |= {"seqlens_k": [None], "total_sequence_length": [], "num_logits_to_keep": []}
    inputs |= _cache("past_key_values", manifest, cache)
    given = {"logits": [None, None, manifest.n_vocab], **_cache("present", manifest, cache)}
    _compare("decoder_model_merged.onnx", "input", session.get_inputs(), inputs)
    _compare("decoder_model_merged.onnx", "output", outputs, given)


def check_encoder(session: Any, manifest: BaseManifest) -> None:
    """As check_decoder, of `encoder_model.onnx`."""
    cache = [None, manifest.n_kv_heads, None, manifest.head_size]
    _compare("encoder_model.onnx", "input", session.get_inputs(), {"inputs_embeds": [None, None, manifest.n_text]})
    _compare("encoder_model.onnx", "output", session.get_outputs(), _cache("cross_key_values", manifest, cache))


def check_vision_encoder(session: Any, connector: Any, manifest: BaseManifest) -> None:
    """As check_decoder, of `vision_encoder.onnx` and of `connector.onnx` (None where there is none)."""
    seen: Shape = [None, manifest.n_image_tokens, manifest.n_text]
    _compare("vision_encoder.onnx", "input", session.get_inputs(), {"pixel_values": [None, 3, None, None]})
    if connector is None:
        _compare("vision_encoder.onnx", "output", session.get_outputs(), {"image_embeds": seen})
        return
    features = {value.name: value.shape for value in session.get_outputs()}.get("image_features", ())
    _compare("vision_encoder.onnx", "output", session.get_outputs(), {"image_features": features})
    tokens: Shape = [None, None]
    taken = {"image_features": features, "question_ids": tokens, "question_mask": tokens}
    _compare("connector.onnx", "input", connector.get_inputs(), taken)
    _compare("connector.onnx", "output", connector.get_outputs(), {"image_embeds": seen})


def check_contrastive(encoder: Any, text_encoder: Any, manifest: ContrastiveManifest) -> None:
    """As check_decoder, of the two encoders of a model that only chooses among labels."""
    features: Shape = [None, manifest.n_features]
    _compare("vision_encoder.onnx", "input", encoder.get_inputs(), {"pixel_values": [None, 3, None, None]})
    _compare("vision_encoder.onnx", "output", encoder.get_outputs(), {"image_embeds": [None, 1, manifest.n_features]})
    ids = {"input_ids": [None, manifest.n_positions if manifest.pad_token >= 0 else None]}
    _compare("text_encoder.onnx", "input", text_encoder.get_inputs(), ids)
    _compare("text_encoder.onnx", "output", text_encoder.get_outputs(), {"text_features": features})
    if manifest.pad_token >= 0 and not isinstance(text_encoder.get_inputs()[0].shape[1], int):
        raise BundleError(
            "text_encoder.onnx takes texts of any length, and its manifest fills them up. Export the bundle again."
        )


def check_preprocess(session: Any, encoder: Any) -> None:
    """Inputs and outputs of `preprocess.onnx`, which feeds the vision encoder."""
    _compare("preprocess.onnx", "input", session.get_inputs(), {"image": [None, None, 3]})
    _compare("preprocess.onnx", "output", session.get_outputs(), {"pixel_values": encoder.get_inputs()[0].shape})


def _cache(prefix: str, manifest: BaseManifest, shape: Shape) -> dict[str, Shape]:
    return {f"{prefix}.{i}.{kind}": shape for i in range(manifest.n_layers) for kind in ("key", "value")}


def _compare(file: str, kind: str, found: Sequence[Any], wanted: Mapping[str, Shape]) -> None:
    """Compare the names and the fixed sizes of a graph's inputs or outputs with those that are wanted."""
    shapes = {value.name: value.shape for value in found}
    if odd := sorted(shapes.keys() ^ wanted.keys()):
        side = "has" if odd[0] in shapes else "lacks"
        raise BundleError(
            f"{file} {side} the {kind} {odd[0]!r}, which its manifest's family and number of layers "
            f"{'do not allow' if odd[0] in shapes else 'ask for'}. Export the bundle again."
        )
    for name, shape in wanted.items():
        sizes = shapes[name]
        if len(sizes) != len(shape) or any(
            isinstance(size, int) and isinstance(want, int) and size != want
            for size, want in zip(sizes, shape, strict=True)
        ):
            raise BundleError(
                f"{file}: the {kind} {name!r} has the shape {_said(sizes)}, and its manifest says {_said(shape)}. "
                "Export the bundle again."
            )


def _said(shape: Shape) -> str:
    return f"({', '.join(str(size) if isinstance(size, int) else '?' for size in shape)})"
