"""Which family a checkpoint gets, how it wants to be asked, and what is said of one that cannot be loaded."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlavaOnevisionProcessor

from tests.tiny import amend, save_tiny, save_tiny_guide
from tests.tokens import TEMPLATES
from tvp.sdk.errors import ModelError, RequestError
from tvp.trainer import families

USUAL = "USER: {image}\n{question} ASSISTANT:"
PARTS = "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """LLaVA-OneVision, which comes with a ChatML template."""
    return save_tiny("llava_onevision", tmp_path / "model")


def set_template(folder, template):
    processor = LlavaOnevisionProcessor.from_pretrained(folder)
    processor.chat_template = template
    processor.save_pretrained(folder)


def test_the_chat_template_of_a_checkpoint_is_used(folder):
    family = families.load(folder)
    prompt = "<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert (family.layout.prompt, family.layout.answer) == (prompt, "{answer}")
    before, after = family.prompt_ids("What?")
    assert family.tokenizer.decode(before) == "<|im_start|>user\n"
    assert family.tokenizer.decode(after) == "\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_beside_the_tokenizer_only_is_used_too(folder):
    (folder / "chat_template.jinja").unlink()
    assert families.load(folder).layout.prompt == USUAL
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATES["llava_onevision"]}))
    assert families.load(folder).layout.prompt.startswith("<|im_start|>user\n{image}")


def test_a_template_of_plain_text_is_given_plain_text(folder):
    set_template(folder, PLAIN)
    layout = families.load(folder).layout
    assert (layout.prompt, layout.answer) == ("user: {image}\n{question} assistant:", " {answer}")


def test_tvp_prompt_goes_before_a_template(folder):
    amend(folder, tvp_prompt="Look: {image} {question} =")
    family = families.load(folder)
    assert family.layout.prompt == "Look: {image} {question} ="
    assert family.tokenizer.decode(family.prompt_ids("What?")[1]) == " What? ="


def test_the_begin_token_is_written_once(tmp_path):
    """Idefics3's template writes one, and so does its tokenizer."""
    family = families.load(save_tiny("idefics3", tmp_path))
    before, after = family.prompt_ids("What?")
    assert before[0] == family.tokenizer.bos_token_id
    assert [*before, *after].count(family.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}: {question}{% endfor %}",
        PARTS + "{{ c['text'] }}{% endif %}{% endfor %}<image>{% endfor %}",
        PARTS + "something{% endif %}{% endfor %}{% endfor %}",
        "{{ raise_exception('no user may speak') }}",
        "{% for",
    ],
)
def test_a_template_without_one_picture_and_one_question_is_refused(folder, template):
    set_template(folder, template)
    with pytest.raises(ModelError, match=r"does not show a picture and a question\. Set tvp_prompt"):
        families.load(folder)
    amend(folder, tvp_prompt="{image}{question}")
    assert families.load(folder).layout.prompt == "{image}{question}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 9999999999 }}",
        "{% set x = namespace(a='aaaaaaaaaa') %}{% for i in range(99) %}{% set x.a = x.a ~ x.a %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(99999) %}aaaaaaaaaa{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_a_template_that_never_ends_is_refused(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="Set tvp_prompt"):
        families.load(folder)
    amend(folder, tvp_prompt="{image}{question}")
    families.load(folder)


def test_a_template_that_asks_for_the_date_is_the_same_every_day(folder, caplog):
    message = "<|im_start|>user\n<image>\n{{ messages[0]['content'][1]['text'] }}<|im_end|>\n"
    fallback = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}\n"
    (folder / "chat_template.jinja").write_text(fallback + message)
    assert families.load(folder).layout.prompt.startswith("26 Jul 2024<|im_start|>user\n{image}")
    assert "asks for today's date" in caplog.text
    for volatile in ("{{ strftime_now('%d %b %Y') }}", "{{ [1, 2, 3] | random }}", "{{ lipsum() }}"):
        (folder / "chat_template.jinja").write_text(volatile + message)
        with pytest.raises(ModelError, match="Set tvp_prompt"):
            families.load(folder)


@pytest.mark.parametrize("prompt", ["What is this? {image}", "{image} {image} {question}", "{question} {image}"])
def test_a_prompt_without_a_question_or_with_two_pictures_is_refused(folder, prompt):
    amend(folder, tvp_prompt=prompt)
    with pytest.raises(ModelError, match=r"must hold \{question\} and at most one \{image\}"):
        families.load(folder)


@pytest.mark.parametrize(
    ("ends_with", "kind", "text"), [("\n", "minigpt4", "yes"), ("###", "vpgtrans", "yes"), ("</s>", "bliva", "yes")]
)
def test_an_answer_ends_as_its_release_ends_it(tmp_path, ends_with, kind, text):
    family = families.load(save_tiny(kind, tmp_path))
    tokens = family.tokenizer(f"a yes{ends_with}", add_special_tokens=False).input_ids[1:]
    answer = family.answer_ids("yes")
    assert answer == tokens[: len(answer)]
    assert answer[-1] in family.layout.end
    assert family.text(answer) == text


def test_an_unsupported_architecture_is_named_with_the_nearest_supported(tmp_path):
    for kind, near in (("llava_next_video", "llava_next"), ("llawa", "llava"), ("qwen2_5_v", "qwen2_5_vl")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ModelError, match=rf"architecture '{kind}'.*supported are.*Did you mean {near}\b"):
            families.load(tmp_path)


def test_a_configuration_that_says_nothing_is_refused(tmp_path):
    for text in ("", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"readable config\.json"):
            families.load(tmp_path)


def test_damaged_checkpoints_and_bad_devices_are_named(folder):
    for name in ("model.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        for part in (whole[: len(whole) // 2], b""):
            (folder / name).write_bytes(part)
            with pytest.raises(ModelError, match=r"is (incomplete or )?damaged"):
                families.load(folder)
        (folder / name).write_bytes(whole)
    with pytest.raises(RequestError, match="device 'abacus'"):
        families.load(folder, "abacus")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="incomplete"):
        families.load(folder)


def set_json(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_prompt_that_ends_in_a_space_keeps_the_answers_first_word(folder):
    """The space belongs to the answer's first token, and so would take it along."""
    set_json(folder / "config.json", tvp_prompt="USER: {image}\n{question} ASSISTANT: ")
    family = families.load(folder)
    answers = [family.answer_ids(answer) for answer in ("yes", "no", "3")]
    assert [family.text(ids) for ids in answers] == ["yes", "no", "3"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"tvp_prompt": 3}),
        ("config.json", {"vision_feature_layer": "last"}),
        ("config.json", {"text_config": {"num_attention_heads": 0}}),
        ("config.json", {"vision_config": {"model_type": "pixtral"}}),
        ("preprocessor_config.json", {"image_mean": 0.5}),
        ("preprocessor_config.json", {"image_mean": None}),
        ("preprocessor_config.json", {"resample": 0}),
        ("processor_config.json", None),
        ("preprocessor_config.json", None),
    ],
)
def test_a_checkpoint_with_a_broken_part_is_a_model_error(folder, file, change):
    if change is None:
        (folder / file).write_text("{ this is no JSON")
    else:
        set_json(folder / file, **change)
    with pytest.raises(ModelError):
        families.load(folder)


def test_an_image_processor_that_is_not_there_is_not_guessed(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError):
        families.load(folder)


def test_of_several_end_tokens_the_one_of_chats_is_taught(folder):
    set_json(folder / "generation_config.json", eos_token_id=[7, families.load(folder).tokenizer.eos_token_id, 9])
    family = families.load(folder)
    assert family.layout.end[0] == family.tokenizer.eos_token_id
    assert set(family.layout.end) == {7, family.tokenizer.eos_token_id, 9}


def test_answers_beyond_the_context_are_refused_in_scoring_too(tmp_path):
    family = families.load(save_tiny("blip2", tmp_path / "model"))
    seen = family.see(family.to_pixels(torch.rand(1, 3, 64, 64)))
    n_left = family.n_positions - seen.shape[1] - len(family.prompt_ids("x")[1])
    question, answer = "x" + " What" * (n_left - 1), "yes yes yes"
    for call in (
        lambda: family.answer_loss(seen, [question], [answer]),
        lambda: family.answer_scores(seen, [question], [answer]),
        lambda: family.generate(seen, [question], 8),
    ):
        with pytest.raises(RequestError, match="at most"):
            call()
    with pytest.raises(RequestError, match="max_new_tokens"):
        family.generate(seen, ["x"], 0)


def test_the_size_of_pictures_that_a_configuration_leaves_out_is_its_classes(tmp_path):
    folder = save_tiny("blip2", tmp_path / "blip2")
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]["image_size"]
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*.safetensors"):
        file.unlink()  # weights are not read
    assert families.input_side(folder) == 224


def test_the_size_of_pictures_of_a_model_that_takes_any(tmp_path):
    folder = save_tiny("qwen2vl", tmp_path / "qwen2vl")
    processor = folder / "preprocessor_config.json"
    amend(folder, tvp_canvas=None)
    side = int(json.loads(processor.read_text())["max_pixels"] ** 0.5)
    assert families.input_side(folder) == side < 224
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"max_pixels": 12_845_056}))
    assert families.input_side(folder) == 224


def test_the_size_of_pictures_of_open_clip(tmp_path):
    assert families.input_side(save_tiny_guide(tmp_path / "guide")) == 64
    assert families.input_side("open_clip:ViT-L-14-336@openai") == 336
