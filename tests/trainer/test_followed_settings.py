"""What a checkpoint's files say is followed, or refused: never passed over silently."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tiny import CANVAS, amend, save_tiny, save_tiny_guide
from tvp.sdk.errors import ModelError
from tvp.trainer import families
from tvp.trainer.families._checkpoint import Checkpoint
from tvp.trainer.families._translate import config_of


def read(file):
    return json.loads(file.read_text())


def change(file, **fields):
    file.write_text(json.dumps(read(file) | fields))


def scores_of(folder):
    family = families.load(folder)
    canvas = torch.rand(1, 3, CANVAS, CANVAS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return family.answer_scores(family.see(family.to_pixels(canvas)), ["What is this?"], ["a dog", "no", "3"])


def as_transformers_5(part):
    """A configuration in the words of transformers 5."""
    if not isinstance(part, dict):
        return part
    part = {key: as_transformers_5(value) for key, value in part.items()}
    if "rope_theta" in part:
        scaling = part.pop("rope_scaling", None) or {"rope_type": "default"}
        part["rope_parameters"] = {"rope_theta": part.pop("rope_theta"), **scaling}
    return part


@pytest.mark.parametrize("name", ["llava", "qwen2vl", "qwen2_5_vl", "smolvlm", "paligemma2", "internvl"])
def test_rotary_settings_of_transformers_5_are_followed(tmp_path, name):
    folder = save_tiny(name, tmp_path)
    config = read(folder / "config.json")
    text = config["text_config"]
    text["rope_theta"] = 77.0
    (folder / "config.json").write_text(json.dumps(config))
    before = scores_of(folder)
    after = as_transformers_5(config)
    after.pop("rope_theta", None)
    assert after["text_config"]["rope_parameters"]["rope_theta"] == 77.0
    (folder / "config.json").write_text(json.dumps(after))
    assert torch.equal(scores_of(folder), before)
    after["text_config"]["rope_parameters"]["rope_theta"] = 5e5
    (folder / "config.json").write_text(json.dumps(after))
    assert not torch.equal(scores_of(folder), before), "the planted base must count"


def test_what_rope_parameters_say_has_a_place_or_is_refused():
    def told(rope, **beside):
        return config_of({"text_config": {"rope_parameters": rope, **beside}}, "it")["text_config"]

    scaled = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
    assert told(scaled) == {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    sections = {"rope_theta": 1e6, "type": "mrope", "mrope_section": [1, 2, 3]}
    assert told(sections)["rope_scaling"] == {"rope_type": "default", "mrope_section": [1, 2, 3]}
    part = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}
    assert told(part) == {"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    assert told({"full_attention": part, "sliding_attention": part}) == told(part)
    assert told({"rope_theta": 1e4}, rope_theta=1e4) == {"rope_theta": 1e4}
    for rope, beside in (
        ({"full_attention": part, "sliding_attention": scaled}, {}),
        ({"rope_theta": 1e4}, {"rope_theta": 1e6}),
        ({"rope_type": "default"}, {}),
        ([1e4], {}),
    ):
        with pytest.raises(ModelError, match="rope_parameters"):
            told(rope, **beside)


def test_tokenizer_files_of_transformers_5_are_read(tmp_path):
    folder = save_tiny("llava_onevision", tmp_path)
    before = families.load(folder)
    file = folder / "tokenizer_config.json"
    found = read(file)
    tokens = found.pop("additional_special_tokens", None) or ["<image>"]
    for name in ("added_tokens_decoder", "extra_special_tokens"):
        found.pop(name, None)
    found |= {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": tokens, "backend": "tokenizers"}
    file.write_text(json.dumps(found))
    (folder / "special_tokens_map.json").unlink()
    (folder / "added_tokens.json").unlink(missing_ok=True)
    after = families.load(folder)
    assert after.prompt_ids("What is this?") == before.prompt_ids("What is this?")
    assert after.answer_ids("a dog") == before.answer_ids("a dog")
    assert after.tokenizer.all_special_ids == before.tokenizer.all_special_ids
    assert after.layout == before.layout


def test_an_image_processor_inside_the_processors_file_is_read(tmp_path):
    folder = save_tiny("llava_onevision", tmp_path)
    before = families.load(folder).pixel_format
    images = read(folder / "preprocessor_config.json")
    (folder / "preprocessor_config.json").unlink()
    for kind in ("LlavaOnevisionImageProcessor", "LlavaOnevisionImageProcessorFast", "LlavaOnevisionImageProcessorPil"):
        change(folder / "processor_config.json", image_processor={**images, "image_processor_type": kind})
        assert families.load(folder).pixel_format == before


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 0.5, "image_mean": [1.0, 2.0, 3.0]},
        {"rescale_factor": 0.00392156862745098},
    ],
)
@pytest.mark.parametrize("name", ["siglip", "llava-clip", "llava"])
def test_pixels_are_scaled_as_the_processor_scales_them(tmp_path, name, settings):
    folder = save_tiny(name, tmp_path)
    change(folder / "preprocessor_config.json", **settings)
    picture = np.random.default_rng(0).integers(0, 256, (CANVAS, CANVAS, 3), np.uint8)
    processor = hf.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    theirs = processor(Image.fromarray(picture), return_tensors="pt").pixel_values[0].float()
    family = families.load(folder)
    ours = family.to_pixels(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)[0]  # (H, W, C) -> (C, H, W)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"do_resize": False}, "does not resize"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"do_grayscale": True}, "do_grayscale"),
        ({"rescale_offset": True}, "rescale_offset"),
        ({"image_std": [0.5, 0.0, 0.5]}, "deviations above 0"),
        ({"image_mean": ["a", "b", "c"]}, "needs numbers"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "needs numbers"),
        ({"rescale_factor": float("inf")}, "positive number"),
        ({"rescale_factor": 0}, "positive number"),
        ({"rescale_factor": "1/255"}, "positive number"),
        ({"size": {"shortest_edge": 2 * CANVAS}}, "middle of a picture"),
    ],
)
def test_what_an_image_processor_does_besides_is_refused(tmp_path, settings, match):
    folder = save_tiny("llava-clip", tmp_path)
    change(folder / "preprocessor_config.json", **settings)
    with pytest.raises(ModelError, match=match):
        families.load(folder)


def test_a_canvas_beyond_the_processors_limits_is_told(tmp_path, caplog):
    folder = save_tiny("qwen2_5_vl", tmp_path)
    families.load(folder)
    assert not caplog.records
    for limits in ({"min_pixels": 4 * CANVAS**2, "max_pixels": 9 * CANVAS**2}, {"min_pixels": 1, "max_pixels": 64}):
        caplog.clear()
        change(folder / "preprocessor_config.json", size=None, **limits)
        families.load(folder)
        assert "name another --canvas" in caplog.text


@pytest.mark.parametrize(("field", "value"), [("interpolation", "random"), ("interpolation", "box"), ("mode", "L")])
def test_what_open_clip_does_with_a_picture_besides_is_refused(tmp_path, field, value):
    folder = save_tiny_guide(tmp_path)
    config = read(folder / "open_clip_config.json")
    config["preprocess_cfg"][field] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="TVP resizes by"):
        families.load(folder)


def test_a_strategy_that_nobody_knows_is_refused(tmp_path):
    folder = save_tiny("llava", tmp_path)
    amend(folder, vision_feature_select_strategy="middle")
    with pytest.raises(ModelError, match="supported are default and full"):
        families.load(folder)


def test_an_encoder_that_is_no_square_is_refused(tmp_path):
    checkpoint = Checkpoint("it", str(save_tiny("siglip", tmp_path)))
    assert checkpoint.pixel_format([CANVAS, CANVAS]) == checkpoint.pixel_format(CANVAS)
    for size in ([CANVAS, CANVAS // 2], [], 0, 10**6):
        with pytest.raises(ModelError, match="no square"):
            checkpoint.pixel_format(size)


def test_an_adapter_beside_its_base_is_not_left_out(tmp_path):
    folder = save_tiny("llava", tmp_path)
    weights = load_file(folder / "model.safetensors")
    more = {**weights, "model.language_model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 4)}
    save_file(more, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="weights of an adapter"):
        families.load(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for file in ("adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin"):
        (folder / file).write_text('{"peft_type": "LORA", "base_model_name_or_path": "us/base"}')
        with pytest.raises(ModelError, match=rf"holds an adapter \({file}.*merge_and_unload"):
            families.load(folder)
        (folder / file).unlink()


def test_weights_without_a_place_are_told(tmp_path, caplog):
    folder = save_tiny("llava", tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.strange": torch.ones(4)}, folder / "model.safetensors", {"format": "pt"})
    families.load(folder)
    assert "holds 1 weights that the model has no place for: model.strange" in caplog.text


def test_a_head_of_its_own_is_not_tied_away(tmp_path):
    folder = save_tiny("paligemma", tmp_path)
    weights = load_file(folder / "model.safetensors")
    table = next(tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight"))
    head = (
        "lm_head.weight" if "model.language_model.embed_tokens.weight" in weights else "language_model.lm_head.weight"
    )
    save_file({**weights, head: table.clone()}, folder / "model.safetensors", {"format": "pt"})
    families.load(folder)
    save_file({**weights, head: table + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        families.load(folder)


def test_settings_of_answers_that_are_not_followed_are_told(tmp_path, caplog):
    folder = save_tiny("llava", tmp_path)
    file = folder / "generation_config.json"
    change(file, repetition_penalty=1.2, suppress_tokens=[5], stop_strings=["###"], num_beams=1)
    families.load(folder)
    told = caplog.text
    assert all(part in told for part in ("repetition_penalty=1.2", "suppress_tokens=[5]", "stop_strings=['###']"))
    assert "num_beams" not in told


@pytest.mark.parametrize("end", [10**9, -1, "</s>", [2, 10**9]])
def test_an_end_that_is_no_token_is_refused(tmp_path, end):
    folder = save_tiny("llava", tmp_path)
    change(folder / "generation_config.json", eos_token_id=end)
    with pytest.raises(ModelError, match="eos_token_id"):
        families.load(folder)


def test_an_image_token_that_the_tokenizer_lacks_is_refused(tmp_path):
    folder = save_tiny("llava", tmp_path)
    for wrong in (10**6, 0, 20, None):
        amend(folder, image_token_index=wrong, image_token_id=wrong)
        with pytest.raises(ModelError, match="image token"):
            families.load(folder)
