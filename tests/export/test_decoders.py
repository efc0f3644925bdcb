"""Language models of every kind behind a vision encoder: the model's own scores, or a sentence that says why not.

The oracle is transformers' own forward of the whole model. benchmarks/decoders.py also exports what the trials accept.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.decoders import Row, build, names, reason, trial_of
from tvp.export.kinds import causal, generative, kind_of
from tvp.sdk.errors import ModelError


def of_the_page() -> list[Row]:
    """The rows of docs/reference/decoders.md."""
    text = (Path(__file__).parents[2] / "docs/reference/decoders.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [Row(*row) for row in cells if len(row) == 4 and row[1] in ("causal", "seq2seq")]


PAGE = of_the_page()


def test_the_page_has_every_decoder_of_transformers():
    assert {row.name: row.kind for row in PAGE} == names()
    assert {"exact", "bounded", "refused", "not built"} == {row.outcome for row in PAGE}


@pytest.mark.parametrize("told", [row for row in PAGE if row.outcome != "not built"], ids=lambda row: row.name)
def test_a_decoder_is_exact_or_refused_by_its_operation(told):
    """The whole table, but for the export and its questions: each trial compares with transformers' own forward."""
    found = trial_of(told.name, told.kind)
    assert found.outcome == told.outcome
    if found.outcome == "refused":
        assert masked(reason(found)) == masked(told.why)
        assert found.why.startswith(f"This blip-2 model cannot be exported: '{told.name}' is not traced, because ")
        assert "It can be trained on and evaluated." in found.why
        assert "\n" not in found.why
    else:
        assert found.why == told.why


def masked(why: str) -> str:
    """A reason without its figures, which differ in their last digits from machine to machine."""
    return re.sub(r"\d[\d.e+-]*", "0", why)


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2"])
def test_what_is_behind_the_head_is_followed(name, monkeypatch):
    """Loss, scores and answers once came from the head alone, and so did what the gate compared with."""
    family = build(name)
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
