"""The base of a seq2seq model (T5): an encoder and a decoder.

T5's attention does not use transformers' attention interface, so there is no fused operator and no buffer written in
place. The decoder's own keys and values grow by one token in each run, which costs little for short answers. The
encoder's graph computes the keys and values of its output once, for every layer of the decoder.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx import OnnxConfig
from optimum.utils import NormalizedConfig
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, T5ForConditionalGeneration

from tvp.sdk.errors import ModelError
from tvp.sdk.formats.manifest import Seq2SeqManifest
from tvp.trainer.families.seq2seq import Seq2SeqFamily

from ..graphs import N_DUMMY, Traced, write_graph
from ..trial import different, refusals, session, trial_inputs
from .generative import about, cases, facts, measure, tokenizer_texts, weight_sizes, write_shared

__all__ = ["about", "cases", "check", "measure", "sizes", "tokenizer_texts", "write"]

Pairs = list[tuple[Tensor, Tensor]]
N_READ = 7  # tokens that the traced encoder reads; the axis is dynamic
N_LONG = 300  # tokens that the trial reads: more than local attention reaches


def write(family: Seq2SeqFamily, folder: Path, fused: bool) -> Seq2SeqManifest:
    """See `Kind.write`."""
    write_shared(family, folder, fused)
    export_encoder(family, folder / "encoder_model.onnx")
    export_decoder(family, folder / "decoder_model_merged.onnx")
    config = family.text_config
    return Seq2SeqManifest(
        **facts(family), n_layers=config.num_decoder_layers, start_token=config.decoder_start_token_id
    )


@torch.no_grad()
def check(family: Seq2SeqFamily) -> None:
    """See `Kind.check`. T5 itself is known to be exact, and may be too large to be tried in seconds."""
    model = family.language_model
    if type(model) is T5ForConditionalGeneration:
        return
    with refusals(family), tempfile.TemporaryDirectory() as folder:
        blocks = getattr(getattr(model, "decoder", None), "block", None)
        if blocks is None or not hasattr(blocks[0].layer[1], "EncDecAttention"):
            raise ModelError(f"{type(model).__name__} is not wired as T5 is, which is the only one with an export")
        files = Path(folder, "encoder.onnx"), Path(folder, "decoder.onnx")
        export_encoder(family, files[0])
        export_decoder(family, files[1])
        read, answer = trial_inputs(family, N_LONG), torch.tensor([[family.text_config.decoder_start_token_id, 3, 5]])
        own = model(inputs_embeds=read, decoder_input_ids=answer).logits
        encoder, decoder = (session(file) for file in files)
        names = [value.name for value in encoder.get_outputs()]
        cross = dict(zip(names, encoder.run(None, {"inputs_embeds": read.numpy()}), strict=True))
        config = family.text_config
        empty = torch.zeros(1, config.num_heads, 0, config.d_kv).numpy()
        past = {f"past_key_values.{name[17:]}": empty for name in names}
        parts = []
        for token in answer[0]:
            embedded = family.embed_tokens(token[None, None]).numpy()
            fed_now = {"inputs_embeds": embedded, **past, **cross}
            taken = {value.name for value in decoder.get_inputs()}
            logits, *present = decoder.run(None, {name: a for name, a in fed_now.items() if name in taken})
            past = dict(zip(past, present, strict=True))
            parts.append(torch.from_numpy(logits))
        if why := different(torch.cat(parts, 1), own):
            raise ModelError(f"in onnxruntime, {why}")


def sizes(family: Seq2SeqFamily, precision: str, encoder_precision: str) -> dict[str, int]:
    """See `Kind.sizes`."""
    language_model = family.language_model
    return weight_sizes(family, [language_model], language_model.lm_head, precision, encoder_precision)


class Encoder(nn.Module):
    """The encoder: inputs_embeds -> keys and values of its output for each layer of the decoder."""

    def __init__(self, family: Seq2SeqFamily) -> None:
        super().__init__()
        model = family.language_model
        self.encoder, self.config = model.encoder, model.config
        attentions = [block.layer[1].EncDecAttention for block in model.decoder.block]
        self.projections = nn.ModuleList(linear for attention in attentions for linear in (attention.k, attention.v))

    def forward(self, inputs_embeds: Tensor) -> tuple[Tensor, ...]:
        states = self.encoder(inputs_embeds=inputs_embeds).last_hidden_state
        shape = (states.shape[0], states.shape[1], self.config.num_heads, self.config.d_kv)
        # (n, length, heads, head) -> (n, heads, length, head)
        return tuple(linear(states).view(shape).transpose(1, 2) for linear in self.projections)


class Decoder(nn.Module):
    """The decoder: inputs_embeds, past and encoder's keys and values -> logits, present keys and values."""

    def __init__(self, family: Seq2SeqFamily) -> None:
        super().__init__()
        model = family.language_model
        self.decoder, self.head, self.config = model.decoder, model.lm_head, model.config

    def forward(self, inputs_embeds: Tensor, past_key_values: Pairs, cross_key_values: Pairs) -> tuple[Tensor, ...]:
        cache = EncoderDecoderCache(_cache(past_key_values), _cache(cross_key_values))
        cache.is_updated = dict.fromkeys(range(len(cross_key_values)), True)
        hidden = self.decoder(
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=cross_key_values[0][0][:, 0],  # T5 reads only its length
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        if self.config.tie_word_embeddings:
            hidden = hidden * self.config.d_model**-0.5
        present = [t for layer in cache.self_attention_cache.layers for t in (layer.keys, layer.values)]
        return (self.head(hidden), *present)


def _cache(pairs: Pairs) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(pairs):
        cache.update(key, value, layer)
    return cache


class EncoderConfig(OnnxConfig):  # type: ignore[misc]
    """Optimum's configuration of an encoder that reads embeddings."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    _MODEL_PATCHER = Traced

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"inputs_embeds": {0: "batch_size", 1: "encoder_length"}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return _named(self._config, "cross_key_values", "encoder_length")

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Tensor]:
        return {"inputs_embeds": torch.randn(2, N_READ, self._config.d_model)}


class DecoderConfig(OnnxConfig):  # type: ignore[misc]
    """Optimum's configuration of a decoder that reads embeddings. Its own keys and values grow."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    _MODEL_PATCHER = Traced

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {
            "inputs_embeds": {0: "batch_size", 1: "sequence_length"},
            **_named(self._config, "past_key_values", "past_length"),
            **_named(self._config, "cross_key_values", "encoder_length"),
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        logits = {"logits": {0: "batch_size", 1: "sequence_length"}}
        return logits | _named(self._config, "present", "total_length")

    def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, Any]:
        config = self._config

        def pairs(length: int) -> Pairs:
            zeros = torch.zeros(2, config.num_heads, length, config.d_kv)
            return [(zeros.clone(), zeros.clone()) for _ in range(config.num_decoder_layers)]

        return {
            "inputs_embeds": torch.randn(2, N_DUMMY, config.d_model),
            "past_key_values": pairs(3),
            "cross_key_values": pairs(N_READ),
        }


def export_encoder(family: Seq2SeqFamily, file: Path) -> None:
    """Write the encoder as a graph, with the decoder's projections of its output to keys and values."""
    write_graph(Encoder(family), EncoderConfig(family.language_model.config), file)


def export_decoder(family: Seq2SeqFamily, file: Path) -> None:
    """Write the decoder as one graph, for the first token and for later ones."""
    write_graph(Decoder(family), DecoderConfig(family.language_model.config), file)


def _named(config: Any, prefix: str, length: str) -> dict[str, dict[int, str]]:
    """Return the name and dynamic axes of a key and a value for each layer of the decoder."""
    layers = range(config.num_decoder_layers)
    return {f"{prefix}.{i}.{kind}": {0: "batch_size", 2: length} for i in layers for kind in ("key", "value")}
