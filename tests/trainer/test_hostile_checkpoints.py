"""A stranger's checkpoint runs no code, fetches nothing and writes nothing outside; what is wrong with it is said."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny, save_tiny_guide
from tvp.sdk.errors import ModelError, RequestError
from tvp.trainer import convert, families
from tvp.trainer.eval_cli import evaluate
from tvp.trainer.losses import Guide
from tvp.trainer.published import KINDS

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """LLaVA-OneVision, whose folder has every kind of file."""
    return save_tiny("llava_onevision", tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made, tmp_path):
    """The files of it; a test replaces some."""
    new = tmp_path / "model"
    new.mkdir()
    for file in made.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
    return new


@pytest.fixture
def guide(tmp_path):
    return save_tiny_guide(tmp_path / "guide")


def put(file, *path, value):
    """Set one field of a JSON file, at any depth."""
    found = json.loads(file.read_text())
    inner = found
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    file.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("file", "path", "value", "match"),
    [
        ("config.json", ["auto_map"], {"AutoConfig": "evil.Config"}, "runs no code"),
        ("config.json", ["text_config", "auto_map"], {"AutoModel": "a/b--evil.Model"}, "runs no code"),
        ("config.json", ["trust_remote_code"], True, "runs no code"),
        ("config.json", ["_attn_implementation_internal"], "evil/kernel", "code of a hub"),
        ("config.json", ["text_config", "_attn_implementation"], "evil/kernel@v1:f", "code of a hub"),
        ("config.json", ["vision_config", "attn_implementation"], {"": "evil/kernel"}, "code of a hub"),
        ("config.json", ["kernel_config"], {"RMSNorm": "evil/kernel:Norm"}, "asks for a kernel"),
        ("config.json", ["use_kernels"], True, "asks for a kernel"),
        ("config.json", ["configuration_files"], ["config.4.0.0.json"], "does not follow"),
        ("config.json", ["transformers_weights"], "../other.safetensors", "does not follow"),
        ("config.json", ["vision_config", "backbone"], "evil/backbone", "does not follow"),
        ("config.json", ["vision_config", "model_type"], "timm_wrapper", "does not follow"),
        ("config.json", ["vision_config", "model_type"], "detr", "vision encoder"),
        ("config.json", ["text_config", "model_type"], "detr", "no family has"),
        ("config.json", ["text_config", "model_type"], ["llama"], "no family has"),
        ("config.json", ["tokenizer_class"], "AutoModel", "tokenizer class 'AutoModel'"),
        ("tokenizer_config.json", ["tokenizer_class"], "RagRetriever", "tokenizer class 'RagRetriever'"),
        ("tokenizer_config.json", ["tokenizer_class"], 3, "tokenizer class 3"),
        ("preprocessor_config.json", ["image_processor_type"], "PretrainedConfig", "image processor"),
        ("config.json", ["quantization_config"], {"quant_method": "fp8"}, "quantised"),
        ("config.json", ["text_config", "num_hidden_layers"], 10**9, "layers"),
        ("config.json", ["text_config", "num_labels"], 10**9, "At most"),
        ("config.json", ["text_config", "max_position_embeddings"], 10**12, "At most"),
        ("config.json", ["vision_config", "image_size"], [10**6, 10**6], "At most"),
        ("config.json", ["tvp_canvas"], 10**6, "At most"),
        ("config.json", ["tvp_prompt"], "\ud800 {image}{question}", "half a character"),
        ("config.json", ["\udfff"], 1, "half a character"),
        ("generation_config.json", ["custom_generate"], "evil/generate", "runs no code"),
        ("preprocessor_config.json", ["auto_map"], {"AutoImageProcessor": "evil.P"}, "runs no code"),
        ("processor_config.json", ["auto_map"], {"AutoProcessor": "evil.P"}, "runs no code"),
        ("tokenizer_config.json", ["auto_map"], {"AutoTokenizer": ["evil.T", None]}, "runs no code"),
        ("tokenizer_config.json", ["fast_tokenizer_files"], ["tokenizer.4.0/../../x.json"], "does not follow"),
        ("tokenizer_config.json", ["tokenizer_file"], "../other/tokenizer.json", "another file"),
        ("tokenizer_config.json", ["vocab_file"], "/etc/passwd", "another file"),
        ("tokenizer_config.json", ["chat_template"], [{"name": "../../x", "template": ""}], "chat template"),
        ("tokenizer_config.json", ["chat_template"], {"default": "", "/tmp/x": ""}, "chat template"),
        ("processor_config.json", ["chat_template"], {"..": ""}, "chat template"),
    ],
)
def test_a_file_that_names_code_or_other_files_is_refused(folder, file, path, value, match):
    put(folder / file, *path, value=value)
    with pytest.raises(ModelError, match=match) as refused:
        families.load(folder)
    assert file in str(refused.value) or match in ("vision encoder", "image processor")
    str(refused.value).encode()


def test_harmless_entries_of_published_files_are_no_hindrance(folder):
    for path, value in (
        (["_attn_implementation_autoset"], True),
        (["text_config", "_attn_implementation"], "flash_attention_2"),
        (["auto_map"], {}),
        (["quantization_config"], None),
        (["_name_or_path"], "somebody/else"),
    ):
        put(folder / "config.json", *path, value=value)
    put(folder / "tokenizer_config.json", "special_tokens_map_file", value="/home/somebody/map.json")
    family = families.load(folder)
    assert family.model.config.get_text_config()._attn_implementation in ("sdpa", "eager")


def test_code_beside_the_weights_does_not_run(folder, guide, tmp_path):
    """In open_clip's folder, `tokenizer_kwargs` are handed on to transformers."""
    proof = tmp_path / "ran"
    for place in (folder, guide):
        (place / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass T: pass\n")
        put(place / "tokenizer_config.json", "auto_map", value={"AutoTokenizer": ["evil.T", "evil.T"]})
        put(place / "tokenizer_config.json", "tokenizer_class", value="T")
    put(guide / "open_clip_config.json", "model_cfg", "text_cfg", "tokenizer_kwargs", value={"trust_remote_code": True})
    for load in (families.load, Guide, convert._tokenizer):
        for place in (folder, guide):
            with pytest.raises(ModelError):
                load(place)
    for name in ("RagRetriever", "AutoModel"):
        put(guide / "tokenizer_config.json", "tokenizer_class", value=name)
        put(guide / "tokenizer_config.json", "auto_map", value=None)
        put(guide / "open_clip_config.json", "model_cfg", "text_cfg", "tokenizer_kwargs", value={})
        with pytest.raises(ModelError, match=f"the tokenizer class '{name}'"):
            Guide(guide)
    result = CliRunner().invoke(evaluate, ["-m", str(guide), "--task", "count", "--n", "1"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ModelError)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["text_cfg", "tokenizer_kwargs"], {"trust_remote_code": True}, "runs no code"),
        (["text_cfg", "tokenizer_kwargs"], {"cache_dir": "/tmp/x"}, "Allowed are"),
        (["text_cfg", "tokenizer_kwargs"], ["a"], "Allowed are"),
        (["text_cfg", "hf_model_name"], "evil/text", "is not fetched"),
        (["text_cfg", "unheard"], 1, "does not know"),
        (["vision_cfg", "timm_model_name"], "hf-hub:evil/encoder", "not one of timm's own"),
        (["vision_cfg", "layers"], 10**8, "layers"),
    ],
)
def test_open_clips_configuration_says_what_is_allowed_alone(guide, path, value, match):
    put(guide / "open_clip_config.json", "model_cfg", *path, value=value)
    with pytest.raises(ModelError, match=match):
        Guide(guide)


def test_a_tokenizer_that_is_elsewhere_is_not_fetched(guide):
    (guide / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer, but names .*Download"):
        Guide(guide)


def test_a_converted_tokenizer_writes_in_its_own_folder(folder, tmp_path):
    put(folder / "tokenizer_config.json", "chat_template", value=[{"name": "../../x", "template": "a"}])
    with pytest.raises(ModelError, match="names a chat template"):
        convert._tokenizer(folder)
    put(folder / "tokenizer_config.json", "chat_template", value=None)
    tokenizer = convert._tokenizer(folder)
    tokenizer.chat_template = {"default": "a", "../../x": "b"}
    with pytest.raises(ModelError, match="names a chat template"):
        convert._tokenizer(tokenizer)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "chat_template.jinja"]
)
def test_a_pointer_of_git_lfs_is_named(folder, name):
    (folder / name).write_text(POINTER)
    with pytest.raises(ModelError, match=rf"{name} of .* is a git-LFS pointer.*git lfs pull"):
        families.load(folder)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("config.json", r"readable config\.json"),
        ("model.safetensors", "it has no weights"),
        ("tokenizer.json", "it has no tokenizer"),
        ("preprocessor_config.json", r"it has no preprocessor_config\.json"),
    ],
)
def test_a_file_that_is_not_there_is_named(folder, name, match):
    for file in folder.glob("vocab.*"):
        file.unlink()
    (folder / name).unlink()
    with pytest.raises(ModelError, match=match):
        families.load(folder)


def test_a_folder_inside_a_checkpoint_is_looked_at_too(tmp_path):
    folder = save_tiny("instructblip", tmp_path / "model")
    put(folder / "qformer_tokenizer" / "tokenizer_config.json", "auto_map", value={"AutoTokenizer": ["evil.T", None]})
    with pytest.raises(ModelError, match="runs no code"):
        families.load(folder)
    for file in (folder / "qformer_tokenizer").iterdir():
        file.unlink()
    with pytest.raises(ModelError, match=r"qformer_tokenizer' is incomplete: it has no tokenizer"):
        families.load(folder)
    (folder / "qformer_tokenizer").rmdir()
    with pytest.raises(ModelError, match="it has no folder qformer_tokenizer"):
        families.load(folder)


@pytest.mark.parametrize("depth", [40, 900, 200_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_deep_json_is_named(folder, depth, name):
    text = (folder / name).read_text().rstrip().removesuffix("}")
    (folder / name).write_text(text + ', "deep": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(ModelError, match=rf"{name} of .* is nested too deeply"):
        families.load(folder)


@pytest.mark.parametrize("text", ["[]", "3", '{"a": 1', "\x00", '"\ud83d"'])
@pytest.mark.parametrize("name", ["config.json", "special_tokens_map.json", "generation_config.json"])
def test_what_is_no_table_is_named(folder, name, text):
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match=name):
        families.load(folder)


def test_what_is_no_file_is_not_read(folder):
    """A named pipe would be waited for."""
    (folder / "chat_template.jinja").write_text(" " * 2**20 + "a")
    with pytest.raises(ModelError, match=r"chat_template\.jinja of .* at most 1 MiB"):
        families.load(folder)
    (folder / "chat_template.jinja").unlink()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ModelError):
            families.load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(whole)
    families.load(folder)


def test_weights_of_eight_bits_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    save_file({**weights, name: weights[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"type F8_E4M3.*before it was quantised"):
        families.load(folder)


def test_shards_are_files_of_their_folder(folder, tmp_path):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    for shard, match in (
        ("../model-1.safetensors", "outside of its folder"),
        ("model-2.safetensors", "it lacks model-2"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
        with pytest.raises(ModelError, match=match):
            families.load(folder)
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(ModelError, match="has no weight_map"):
        families.load(folder)


def test_what_a_training_run_leaves_beside_the_weights_is_no_hindrance(folder):
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        torch.save({"arguments": Path("/tmp")}, folder / name)
    families.load(folder)


def test_weights_that_inflate_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "whole.bin")
    with (
        zipfile.ZipFile(folder / "whole.bin") as plain,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
    with pytest.raises(ModelError, match="is packed"):
        families.load(folder)
    (folder / "whole.bin").rename(folder / "pytorch_model.bin")
    families.load(folder)


def test_a_conversion_looks_at_the_files_of_its_parts_too(tmp_path):
    """Weights that inflate or have eight bits, an adapter, code, and positions in the words of transformers 5."""
    for suffix, store in ((".pth", torch.save), (".safetensors", save_file)):
        store({"a": torch.ones(2, 2).to(torch.float8_e4m3fn)}, tmp_path / f"eight{suffix}")
        with pytest.raises(ModelError, match=r"float8_e4m3fn.*before it was quantised"):
            convert._read(tmp_path / f"eight{suffix}")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", b"0" * 10**6)
    with pytest.raises(ModelError, match="is packed"):
        convert._read(tmp_path / "packed.pth")
    plan, file = KINDS["minigpt4"], tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}))
    assert convert._text_config(plan, tmp_path).rope_theta == 5e5
    for wrong, match in (
        ({"auto_map": {"AutoConfig": "a.B"}}, "runs no code"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"_attn_implementation_internal": "evil/kernel"}, "code of a hub"),
    ):
        file.write_text(json.dumps({"model_type": "llama", **wrong}))
        with pytest.raises(ModelError, match=match):
            convert._text_config(plan, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        convert._read_folder(tmp_path)


def test_half_a_character_in_a_label_is_refused(guide):
    with pytest.raises(RequestError, match="half a character"):
        Guide(guide).text_features(["a \ud800"])


def test_a_tokenizer_that_multiplies_a_text_is_refused(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}
    hostile = {"normalizer": {"type": "Sequence", "normalizers": [replace] * 12}}
    (folder / "tokenizer.json").write_text(json.dumps(content | hostile))
    with pytest.raises(ModelError, match="times as long"):
        families.load(folder)
