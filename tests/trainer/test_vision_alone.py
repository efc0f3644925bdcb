"""A vision part that is loaded alone is that of the whole model, and takes the memory of a vision part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import MAKERS, save_tiny
from tvp.sdk.errors import ModelError
from tvp.trainer import families
from tvp.trainer.families._vision_alone import is_language

OWN = ["blip2", "blip2-t5", "instructblip", "llava", "smolvlm", "qwen2vl"]
ALONE = [*OWN, *(name for name in MAKERS if name != "open_clip")]


@pytest.fixture(scope="module", params=ALONE)
def folder(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)


def see(family):
    canvas = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    encoded = family.encode(family.to_pixels(canvas))
    return encoded if family.reads_question else family.connect(encoded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_has_the_same_weights_and_sees_the_same(folder, dtype):
    whole, alone = families.load(folder, dtype=dtype), families.load(folder, dtype=dtype, vision_alone=True)
    theirs, mine = ({n: p for n, p in f.model.state_dict().items() if not is_language(n)} for f in (whole, alone))
    assert theirs.keys() == mine.keys()
    for name, value in theirs.items():
        assert mine[name].dtype == value.dtype, name
        assert torch.equal(mine[name], value), name
    assert all(p.is_meta == is_language(n) for n, p in alone.model.named_parameters())
    assert (alone.dtype, alone.device) == (whole.dtype, whole.device)
    assert repr(getattr(alone, "layout", "")) == repr(getattr(whole, "layout", ""))
    with torch.no_grad():
        assert torch.equal(see(alone), see(whole))


def test_it_moves_without_its_language_model_and_cannot_be_asked(folder):
    alone = families.load(folder, vision_alone=True)
    alone.model.to("cpu").to(torch.float64).to(torch.float32)
    features = see(alone)
    assert features.isfinite().all()
    if alone.kind == "contrastive":
        with pytest.raises(ModelError, match="without its language model"):
            alone.text_features(["a cat"])
        return
    embeddings = alone.connect(alone.encode(alone.to_pixels(torch.rand(1, 3, 64, 64))), ["How many?"])
    with pytest.raises(ModelError, match="without its language model"):
        alone.answer_loss(embeddings, ["How many?"], ["2"])


def test_shards_are_read_and_a_missing_tensor_is_told(tmp_path):
    folder = save_tiny("llava", tmp_path / "llava")
    whole = families.load(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with torch.no_grad():
        assert torch.equal(see(families.load(folder, vision_alone=True)), see(whole))
    vision = next(name for name in names[::2] if "vision" in name)
    save_file(
        {key: tensors[key] for key in names[::2] if key != vision}, folder / "model-1.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match="lacks 1 weights"):
        families.load(folder, vision_alone=True)


def test_weights_that_are_no_safetensors_are_loaded_whole(tmp_path, caplog):
    folder = save_tiny("llava", tmp_path / "llava")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with caplog.at_level("INFO", "tvp.trainer"):
        found = families.load(folder, vision_alone=True)
    assert "is loaded whole" in caplog.text
    assert not any(p.is_meta for p in found.model.parameters())


PEAK = """
import sys
import torch
from tvp.trainer import families
# Another type than the file's, so that values are made; those of the file would stay on the disk until they are read.
families.load(sys.argv[1], dtype=torch.bfloat16, vision_alone=sys.argv[2] == "alone")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # KiB
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no such file tells the peak of a process")
def test_a_large_language_model_takes_no_memory(tmp_path):
    """The words of a tiny model are made many: more than 100 MB that only the whole model holds."""
    folder = save_tiny("llava", tmp_path / "llava")
    n_words = 400_000
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for name, value in tensors.items():
        if value.ndim == 2 and len(value) == config["text_config"]["vocab_size"]:
            tensors[name] = torch.rand(n_words, value.shape[1])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config["text_config"]["vocab_size"] = n_words
    (folder / "config.json").write_text(json.dumps(config))
    large = sum(value.nbytes for name, value in tensors.items() if len(value) == n_words)
    assert large > 2e8
    alone, whole = (
        int(subprocess.run([sys.executable, "-c", PEAK, str(folder), how], check=True, capture_output=True).stdout)
        for how in ("alone", "whole")
    )
    assert whole - alone > 0.7 * large / 2 / 1024  # bfloat16, KiB
