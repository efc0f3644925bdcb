"""Does a manifest fit the graphs beside it? If not, that is a BundleError before the first question.

The numbers of a manifest decide how much memory an answer takes, so each is compared with the graphs first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import BundleError
from ..formats.manifest import CausalManifest, ContrastiveManifest, GenerativeManifest, Seq2SeqManifest

Shape = Sequence[int | str | None]  # a name or None where a graph leaves a size open
DECODER = "decoder_model_merged.onnx"


def check_decoder(session: Any, manifest: CausalManifest) -> None:
    """Check inputs and outputs of a causal model's decoder; raises BundleError for the first that does not fit."""
    cache = _check_layers(session, manifest)
    inputs: dict[str, Shape] = {"inputs_embeds": [None, None, manifest.n_text]}
    if manifest.position_axes > 1:
        inputs["position_ids"] = [manifest.position_axes, None, None]
    elif any(value.name == "position_ids" for value in session.get_inputs()):
        inputs["position_ids"] = [None, None]  # a decoder that counts places by itself has none
    inputs |= {"seqlens_k": [None], "total_sequence_length": [], "num_logits_to_keep": []}
    _compare_decoder(session, manifest, inputs, cache)


def check_seq2seq_decoder(session: Any, manifest: Seq2SeqManifest) -> None:
    """As `check_decoder`, of a decoder behind an encoder."""
    cache = _check_layers(session, manifest)
    inputs: dict[str, Shape] = {"inputs_embeds": [None, None, manifest.n_text]}
    _compare_decoder(session, manifest, inputs | _cache("cross_key_values", manifest, cache), cache)


def _check_layers(session: Any, manifest: GenerativeManifest) -> Shape:
    """Check the number of outputs, before anything is counted up to n_layers; returns the shape of keys and values."""
    n_outputs = len(session.get_outputs())
    if 2 * manifest.n_layers + 1 != n_outputs:
        raise BundleError(
            f"{DECODER} has {n_outputs} outputs, and its manifest says {manifest.n_layers} layers, "
            "of which each has two, besides the logits. Export the bundle again."
        )
    return [None, manifest.n_kv_heads, None, manifest.head_size]


def _compare_decoder(session: Any, manifest: GenerativeManifest, inputs: dict[str, Shape], cache: Shape) -> None:
    given = {"logits": [None, None, manifest.n_vocab], **_cache("present", manifest, cache)}
    _compare(DECODER, "input", session.get_inputs(), inputs | _cache("past_key_values", manifest, cache))
    _compare(DECODER, "output", session.get_outputs(), given)


def check_encoder(session: Any, manifest: Seq2SeqManifest) -> None:
    """As `check_decoder`, of the encoder."""
    cache = [None, manifest.n_kv_heads, None, manifest.head_size]
    _compare("encoder_model.onnx", "input", session.get_inputs(), {"inputs_embeds": [None, None, manifest.n_text]})
    _compare("encoder_model.onnx", "output", session.get_outputs(), _cache("cross_key_values", manifest, cache))


def check_vision_encoder(session: Any, connector: Any, manifest: GenerativeManifest) -> None:
    """As `check_decoder`, of the vision encoder and of the connector (None where there is none)."""
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
    """As `check_decoder`, of the two encoders of a contrastive model."""
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
    """As `check_decoder`, of the preprocessing graph, which feeds the vision encoder."""
    _compare("preprocess.onnx", "input", session.get_inputs(), {"image": [None, None, 3]})
    _compare("preprocess.onnx", "output", session.get_outputs(), {"pixel_values": encoder.get_inputs()[0].shape})


def _cache(prefix: str, manifest: GenerativeManifest, shape: Shape) -> dict[str, Shape]:
    return {f"{prefix}.{i}.{kind}": shape for i in range(manifest.n_layers) for kind in ("key", "value")}


def _compare(file: str, kind: str, found: Sequence[Any], wanted: Mapping[str, Shape]) -> None:
    """Compare names and fixed sizes of a graph's inputs or outputs with those that the manifest asks for."""
    shapes = {value.name: value.shape for value in found}
    if odd := sorted(shapes.keys() ^ wanted.keys()):
        side = "has" if odd[0] in shapes else "lacks"
        raise BundleError(
            f"{file} {side} the {kind} {odd[0]!r}, which its manifest "
            f"{'does not allow' if odd[0] in shapes else 'asks for'}. Export the bundle again."
        )
    for name, shape in wanted.items():
        sizes = shapes[name]
        if len(sizes) != len(shape) or any(
            isinstance(size, int) and isinstance(want, int) and size != want
            for size, want in zip(sizes, shape, strict=True)
        ):
            raise BundleError(
                f"{file}: the {kind} {name!r} has the shape {_shape_text(sizes)}, and its manifest says "
                f"{_shape_text(shape)}. Export the bundle again."
            )


def _shape_text(shape: Shape) -> str:
    return f"({', '.join(str(size) if isinstance(size, int) else '?' for size in shape)})"
