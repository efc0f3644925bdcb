"""Texts that are no texts, and nesting without end, in every file of data: each is told by file and line."""

from __future__ import annotations

import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.trainer.test_hostile_data import opened, save, write_parquet
from tvp.sdk.errors import DataError
from tvp.trainer import convert
from tvp.trainer.config import make_config
from tvp.trainer.data import ClassFolder, Jsonl
from tvp.trainer.prompt import Geometry, Prompt

DEEP = "[" * 100_000
DIGITS = "9" * 5000
ROW = {"image": "a.png", "question": "?", "answer": "x"}
MEME = {"img": "img/a.png", "label": 0, "text": "x"}
POPE = {"image": "a.png", "text": "?", "label": "no"}


@pytest.mark.parametrize(
    "line", [DEEP, '{"labels": ' * 50_000, f'{{"image": {DIGITS}}}', '{"a": 1} {"a": 1}', "NaN", "\0"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "train.jsonl", "coco_pope_random.json"])
def test_a_line_that_is_no_row_is_named(tmp_path, line, name):
    row, task = {"a.jsonl": (ROW, "custom"), "train.jsonl": (MEME, "hateful-memes")}.get(name, (POPE, "pope-random"))
    save(tmp_path / "a.png")
    save(tmp_path / "img" / "a.png")
    (tmp_path / name).write_text(json.dumps(row) + "\n" + line)
    with pytest.raises(DataError, match=rf"{name}, line 2 (is n|has )") as told:
        opened(tmp_path / name, task, "test")
    assert len(str(told.value)) < 1000
    messages: list[str] = []
    assert len(opened(tmp_path / name, task, "test", skip_bad=messages)) == len(messages) == 1


@pytest.mark.parametrize("key", ["image", "question", "answer", "caption", "labels"])
def test_half_a_character_is_told_wherever_it_is(tmp_path, key):
    save(tmp_path / "a.png")
    row = ROW | {"labels": ["x", "\ud800"]} if key == "labels" else ROW | {key: "\udfff"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=rf"line 1 has half a character .*{key}"):
        Jsonl(tmp_path / "a.jsonl")


def test_a_class_whose_name_is_no_text_is_told(tmp_path):
    save(tmp_path / "cat" / "a.png")
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/do\xff")
    os.mkdir(broken)
    Image.new("RGB", (3, 3)).save(broken + "/a.png")
    with pytest.raises(DataError, match=r"a class whose name is no text"):
        ClassFolder(tmp_path, "train", "?")


@pytest.mark.parametrize(
    "about", [DEEP, '{"info": [1]}', "1", '{"info": {"features": {"label": {"names": 3}}}}', "\xff", DIGITS]
)
def test_parquet_whose_metadata_names_no_classes_is_told(tmp_path, about):
    file = write_parquet(tmp_path / "train.parquet", [b"x"], about=about)
    with pytest.raises(DataError, match=r"train\.parquet is not a parquet file with columns"):
        opened(file.parent)
    file = write_parquet(file, [b"x"], about='{"info": {"features": {"label": {"names": ["cat", "\\ud800"]}}}}')
    with pytest.raises(DataError, match=r"a class whose name is no text"):
        opened(file.parent)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"models = {DEEP}", "nested too deeply"),
        (f"steps = {DIGITS}", "not a TOML file"),
        ('task = "\\ud800"', "not a TOML file"),
        (b"task = '\xff'", "not a TOML file"),
        ("models = [{a = 1}]", "a list of texts"),
        (b"#" * 2**21, "more than"),
    ],
)
def test_a_configuration_that_is_none_is_told(tmp_path, text, says):
    file = tmp_path / "a.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"a\.toml .*{says}"):
        make_config({}, file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match=r"no file .*a\.toml"):
        make_config({}, file)


GEOMETRY = {"canvas": 8, "inner": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"facts": DEEP},
        {"facts": "[]"},
        {"facts": '{"task": "\\ud800"}'},
        {"facts": DIGITS},
        {"geometry": DEEP},
        {"geometry": "[1]"},
        {"geometry": '{"canvas": 8.0, "inner": 4}'},
        {"geometry": '{"canvas": 8, "inner": 4.0}'},
        {"geometry": '{"canvas": 8, "inner": 4, "fit": []}'},
        {"geometry": '{"canvas": 1000000000000, "inner": 4}'},
        {"pixel_range": "x"},
        {"format": DIGITS},
        {"dtype": "int8"},
        {"dtype": "float8_e4m3fn", "nan": "yes"},
    ],
)
def test_a_prompt_file_that_is_none_is_told(tmp_path, change):
    about = {"format": "2", "geometry": json.dumps(GEOMETRY), "facts": "{}", "pixel_range": "free"}
    dtype = getattr(torch, change.get("dtype", "float32"))
    frame = torch.full((3, 8, 8), float("nan") if "nan" in change else 0.0).to(dtype)
    save_file({"frame": frame}, tmp_path / "prompt.safetensors", about | change)
    with pytest.raises(DataError, match=r"prompt\.safetensors is not an intact prompt file"):
        Prompt.load(tmp_path / "prompt.safetensors")
    Prompt.start(Geometry(8, 4), "free").save(tmp_path / "prompt.safetensors")
    Prompt.load(tmp_path / "prompt.safetensors")


def test_a_language_model_with_a_deep_configuration_is_told(tmp_path):
    from tvp.sdk.errors import ModelError

    (tmp_path / "config.json").write_text(DEEP)
    with pytest.raises(ModelError, match="nested too deeply"):
        convert.convert("minigpt4", [], tmp_path, None, tmp_path / "out")
