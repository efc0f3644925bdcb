"""Language models of every kind behind a vision encoder: the model's own scores, or a sentence that says why not.

The oracle is transformers' own forward of the whole model. benchmarks/decoders.py tries all of them; here are those
that each stand for a reason.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.decoders import build, names
from tvp.export.kinds import causal, generative, kind_of
from tvp.sdk.errors import ModelError

EXACT = {
    "granite": {"logits_scaling": 8.0},  # divides its logits
    "cohere": {"logit_scale": 0.25},  # multiplies them, and rotates neighbours
    "gemma2": {"final_logit_softcapping": 30.0},  # caps them
    "gemma3_text": {},  # two rotations
    "smollm3": {"no_rope_layers": [1, 0]},  # a layer that does not rotate
    "hunyuan_v1_dense": {},  # normalises behind the rotation
    "glm": {},  # rotates half a head
    "phi": {},
    "gpt2": {},  # adds positions
    "biogpt": {},
    "apertus": {},  # expm1
    "deepseek_v3": {},  # keys and values of other sizes
}
REFUSED = {
    "mixtral": "operation Split",
    "deepseek_v2": "operation aten::polar",
    "doge": "DogeAttention computes something else",
    "gpt_oss": "sinks",
    "falcon": "attention of FalconModel does not use",
    "mamba": "attention of MambaModel does not use",
    "bamba": "BambaMixer.torch_forward keeps a state",
}


@pytest.mark.parametrize("name", EXACT)
def test_a_decoder_is_exact(name):
    family = build(name, **EXACT[name])
    kind_of(family).check(family)


@pytest.mark.parametrize("name", REFUSED)
def test_a_decoder_is_refused_by_its_operation(name):
    family = build(name)
    with pytest.raises(ModelError, match=REFUSED[name]) as caught:
        kind_of(family).check(family)
    assert str(caught.value).startswith(f"This blip-2 model cannot be exported: '{name}' is not traced, because ")
    assert "It can be trained on and evaluated." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mt5", "umt5"])
def test_t5s_relatives_are_exact(name):
    family = build(name, "seq2seq")
    kind_of(family).check(family)


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2"])
def test_what_is_behind_the_head_is_followed(name, monkeypatch):
    """Loss, scores and answers once came from the head alone, and so did what the gate compared with."""
    family = build(name, **EXACT[name])
    images, question = torch.randn(1, 8, 32), "How many objects are there?"
    tokens, logits = family.generate_tokens(images, [question], 4)
    ids = torch.tensor([[*family.prompt_ids(question)[1], *tokens[0][:-1]]])
    inputs = torch.cat([images, family.embed_tokens(ids)], 1)
    causal_mask = torch.ones(inputs.shape[:2], dtype=torch.long)
    own = family.model.language_model(inputs_embeds=inputs, attention_mask=causal_mask).logits[0, -len(tokens[0]) :]
    assert torch.allclose(logits[0], own, atol=1e-4)
    assert torch.allclose(family.own_answer_logits(images, question, tokens[0]), own, atol=1e-4)
    assert not torch.allclose(family.head(family.decoder(inputs_embeds=inputs).last_hidden_state)[0, -1], own[-1])
    monkeypatch.setitem(family.__dict__, "head_is_last", True)
    with pytest.raises(ModelError, match="its scores differ by"):
        kind_of(family).check(family)


@pytest.mark.parametrize("head_dim", [2, 6, 12, 20, 24])
def test_heads_of_any_size(head_dim):
    """onnxruntime takes heads of a multiple of 8, and to rotate them of 16."""
    family = build("llama", head_dim=head_dim)
    kind_of(family).check(family)
    assert causal.cache_shape(family) == (1, -(-head_dim // 8) * 8)


ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_positions_of_every_type_are_exact_up_to_the_end(kind, monkeypatch):
    """The trial reads as many tokens as a bundle does."""
    more = {"original_max_position_embeddings": 64} if kind == "longrope" else {}
    family = build("llama", rope_scaling={"rope_type": kind, **ROPES[kind]}, **more)
    most = generative.n_positions(family)
    assert most == (64 if kind == "longrope" else 256)
    monkeypatch.setattr(causal, "N_READ", most - causal.N_STEPS)
    kind_of(family).check(family)
    if kind == "longrope":  # behind it, other factors hold
        monkeypatch.setattr(causal, "n_positions", lambda _: 256)
        monkeypatch.setattr(causal, "N_READ", 100)
        with pytest.raises(ModelError, match="scores differ"):
            kind_of(family).check(family)


def test_positions_of_a_type_that_nobody_knows_are_refused():
    family = build("llama")
    family.decoder.rotary_emb.rope_type = "spiral"
    with pytest.raises(ModelError, match="rotary positions are of the type 'spiral'; known are default, linear"):
        kind_of(family).check(family)


def test_a_window_bounds_the_text():
    assert generative.n_positions(build("mistral", sliding_window=40)) == 40
    assert generative.n_positions(build("qwen2", sliding_window=40)) == 256  # which does not use it


def test_the_trial_of_a_deep_model_leaves_it_as_it_was():
    family = build("llama", num_hidden_layers=7)
    before = [id(layer) for layer in family.decoder.layers], str(family.model.config)
    head = family.head.weight
    kind_of(family).check(family)
    assert before == ([id(layer) for layer in family.decoder.layers], str(family.model.config))
    assert family.head.weight is head
    assert [layer.self_attn.layer_idx for layer in family.decoder.layers] == list(range(7))


def test_opt_whose_words_are_narrower_than_its_layers_is_told():
    with pytest.raises(ModelError, match=r"makes embeddings of 32 values, and its language model reads 16"):
        build("opt", word_embed_proj_dim=16)


def test_every_decoder_of_transformers_is_known_to_the_survey():
    assert {"llama", "opt", "t5", "gpt2"} <= set(names())
