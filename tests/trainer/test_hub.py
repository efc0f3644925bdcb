"""What may be fetched from a hub: what its user typed, and nothing offline."""

from __future__ import annotations

import json
from functools import partial

import pytest
from click.testing import CliRunner

from tests.tiny import amend, save_tiny, save_tiny_guide
from tvp.sdk.errors import ModelError
from tvp.trainer import families, hub
from tvp.trainer.cli import train as train_command
from tvp.trainer.config import TrainConfig
from tvp.trainer.eval_cli import evaluate
from tvp.trainer.losses import Guide

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub's cache that holds two models, `us/model` and `us/guide`."""
    made = {"model": partial(save_tiny, "llava_onevision"), "guide": save_tiny_guide}
    for name, make in made.items():
        home = tmp_path / "hub" / f"models--us--{name}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("0" * 40)
        make(home / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_offline_a_model_is_in_the_cache_or_refused(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert families.load("us/model").name == "llava"
    Guide("hf-hub:us/guide")
    for load in (families.load, families.refuse_unknown, lambda name: Guide(f"hf-hub:{name}")):
        with pytest.raises(ModelError, match=r"nothing is fetched \(--offline.*hf download us/other"):
            load("us/other")
    for name in ("ViT-B-32@openai", "roberta-ViT-B-32@laion2b_s12b_b32k"):
        with pytest.raises(ModelError, match="nothing is fetched"):
            Guide(name)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    result = CliRunner().invoke(evaluate, ["-m", "us/other", "--task", "count", "--offline"])
    assert "nothing is fetched" in str(result.exception)
    assert not hub.offline()


def test_what_is_typed_is_fetched_and_looked_at_before_its_weights(tmp_path, monkeypatch):
    """A hub that sends what a pattern asks for; the files are looked at where they arrive."""
    made, home, asked = save_tiny("llava_onevision", tmp_path / "made"), tmp_path / "arrived", []
    home.mkdir()

    def snapshot_download(name, *, allow_patterns, local_files_only):
        asked.append((name, local_files_only, sorted(allow_patterns)))
        for file in made.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns) and not (home / file.name).exists():
                (home / file.name).write_bytes(file.read_bytes())
        return str(home)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert families.load("us/model").layout == families.load(made).layout
    assert [(name, local) for name, local, _ in asked] == [("us/model", False)] * 2
    assert "model.safetensors" in asked[1][2]
    amend(home, auto_map={"AutoConfig": "evil.Config"})
    asked.clear()
    with pytest.raises(ModelError, match="runs no code"):
        families.load("us/model")
    assert len(asked) == 1, "no weights of a refused model are fetched"
    with pytest.raises(ModelError, match="no such folder, and no hub id"):
        families.load("../us/model/x")


@pytest.mark.parametrize("field", ["models", "guide"])
def test_a_name_in_somebodys_toml_is_not_fetched(cache, tmp_path, field):
    names = {"models": ["zoo:llava"], "guide": "zoo:guide"} | {
        field: ["us/other"] if field == "models" else "hf-hub:us/other"
    }
    own = tmp_path / "own.toml"
    own.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in {"task": "count", **names}.items()))
    result = CliRunner().invoke(train_command, ["-c", str(own), "-o", str(tmp_path / "run")])
    assert isinstance(result.exception, ModelError), result.output
    assert "a name in a file is not fetched" in str(result.exception)


def test_a_configuration_made_in_code_may_name_a_hub():
    assert hub.is_fetched(TrainConfig(models=("us/model",)).models[0], None)
