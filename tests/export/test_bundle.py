"""Exporting: equal to PyTorch or nothing at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from tests import tiny
from tests.bundles import random_prompt
from tests.oracles import ABOUT
from tests.tiny import save_tiny
from tests.tokens import marks
from tvp import sdk
from tvp.export import graphs, parity
from tvp.export.bundle import export
from tvp.export.kinds import causal
from tvp.export.operators import group_query_attention
from tvp.export.plan import plan
from tvp.sdk.errors import BundleError, CheckError, DataError, ModelError, RequestError
from tvp.sdk.formats import integrity
from tvp.sdk.formats.integrity import list_files
from tvp.sdk.formats.manifest import read_base_manifest, read_task_manifest, write_manifest
from tvp.trainer import families, tasks
from tvp.trainer.families.llava import Llava

# Of several lengths; that all begin alike, which is read once; one alone.
LABELS = (
    ["yes", "a purple triangle and more", "3", "no way"],
    ["a red star or not", "a red star", "a red circle", "a red star or"],
    ["a blue star"],
)


def test_the_sdk_answers_as_the_unpatched_model(bundle):
    """Tokens, scores and rank order, over questions and answers of every length."""
    family = families.load(bundle.parent / "model")
    rng = np.random.default_rng(2)
    with sdk.load(bundle) as task:
        for question in ("How many objects are there?", "What?", "Is there a red star or a blue one or a green one?"):
            picture = rng.integers(0, 256, (50, 70, 3), np.uint8)
            embeddings = family.see(torch.from_numpy(task.pixel_values(picture)))
            tokens, logits = family.generate_tokens(embeddings, [question], 12)
            answer = task.ask(picture, question, max_new_tokens=12)
            assert list(answer.tokens) == tokens[0]
            expected = logits[0].log_softmax(-1)[range(len(tokens[0])), tokens[0]]
            assert np.allclose(answer.log_probabilities, expected.numpy(), atol=1e-4)
            for labels in LABELS:
                scores = family.answer_scores(embeddings, [question], labels)[0]
                ranked = task.rank(picture, question, labels=labels)
                assert [row.label for row in ranked] == [labels[i] for i in scores.argsort(descending=True)]
                assert np.allclose([row.score for row in ranked], scores.sort(descending=True).values, atol=1e-4)


def test_a_second_question_on_a_view_is_like_a_first(bundle):
    picture = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)
    questions = ["How many objects are there?", "What?", "Is there a red star?", "What?"]
    with sdk.load(bundle) as task:
        view = task.see(picture)
        for question in questions:
            again, fresh = view.ask(question), task.ask(picture, question)
            assert again.tokens == fresh.tokens
            assert np.allclose(again.log_probabilities, fresh.log_probabilities, atol=1e-5)
            view.rank(question, labels=["a", "b c d"])  # and ranking leaves no trace


def test_the_reference_operator_is_causal_attention():
    """Appending token by token equals attending to everything at once."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 6, n * 8, generator=generator) for n in (4, 2, 2))
    empty = torch.zeros(2, 2, 9, 8)

    def run(start, stop, past):
        lengths = torch.full((2,), stop - 1, dtype=torch.int32)
        parts = [t[:, start:stop] for t in (q, k, v)]
        total = torch.tensor(stop, dtype=torch.int32)
        return group_query_attention(*parts, *past, lengths, total, None, None, 4, 2, 8**-0.5)

    whole, *_ = run(0, 6, (empty, empty))
    split = [t.view(2, 6, -1, 8).transpose(1, 2) for t in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*split, is_causal=True, enable_gqa=True)
    assert torch.allclose(whole, expected.transpose(1, 2).reshape(2, 6, -1), atol=1e-6)
    first, *past = run(0, 3, (empty, empty))
    rest = [first]
    for i in range(3, 6):
        one, *past = run(i, i + 1, past)
        rest.append(one)
    assert torch.allclose(torch.cat(rest, 1), whole, atol=1e-6)


def test_the_model_is_left_as_it_was(tmp_path):
    family = families.load(save_tiny("llava", tmp_path / "model"))
    before = json.dumps(family.model.config.to_dict(), default=str)
    implementation = family.decoder.config._attn_implementation
    causal.export_decoder(family, tmp_path / "decoder.onnx")
    assert family.decoder.config._attn_implementation == implementation
    assert json.dumps(family.model.config.to_dict(), default=str) == before


def test_where_the_bundle_differs_nothing_is_written(tmp_path, monkeypatch):
    """The gate must see a decoder that is wrong by one weight."""
    model = save_tiny("llava", tmp_path / "model")
    real = causal.export_decoder

    def slightly_wrong(family, file, *may_rotate):
        if "merged" not in file.name:  # the trial's, before the export
            real(family, file, *may_rotate)
            return
        weight = family.decoder.layers[0].mlp.up_proj.weight
        weight.data[3, 5] += 0.5
        real(family, file, *may_rotate)
        weight.data[3, 5] -= 0.5

    monkeypatch.setattr(causal, "export_decoder", slightly_wrong)
    with pytest.raises(CheckError, match=r"not equal to the PyTorch model.*\n.*logits differ") as caught:
        export(model, tasks.get("count"), tmp_path / "out", prompt=random_prompt(), n_cases=4)
    assert len(caught.value.differences) >= 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_an_export_that_a_service_manager_ends_leaves_nothing_behind(tmp_path):
    command = [sys.executable, "-m", "tvp.sdk.cli", "export", "-m", "zoo:smolvlm", "-t", "scenes"]
    process = subprocess.Popen([*command, "-o", tmp_path / "out"], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*/base/vision_encoder.onnx")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    model = save_tiny("llava", tmp_path / "model")
    monkeypatch.setattr(parity, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(model, tasks.get("count"), tmp_path / "out", prompt=random_prompt())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_what_is_there_is_kept_unless_forced(one_bundle, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for force in (False, True):
        with pytest.raises(BundleError, match=r"exists already|not a bundle"):
            export("never loaded", tasks.get("count"), tmp_path, force=force)
    (tmp_path / "manifest.json").write_text("{}")  # as web applications have one
    with pytest.raises(BundleError, match="not a bundle"):
        export("never loaded", tasks.get("count"), tmp_path, force=True)
    assert (tmp_path / "mine.txt").read_text() == "precious"
    with pytest.raises(BundleError, match="--force"):
        export("never loaded", tasks.get("count"), one_bundle)
    for place in (".", ".."):
        with pytest.raises(BundleError, match="name a folder"):
            export("never loaded", tasks.get("count"), place)


def test_a_second_task_on_a_model_shares_its_base(tmp_path, monkeypatch):
    model = save_tiny("instructblip", tmp_path / "model")
    export(model, tasks.get("count"), tmp_path / "tasks" / "a", n_cases=1)
    with monkeypatch.context() as patch:
        patch.setattr(causal, "export_decoder", pytest.fail)
        patch.setattr(integrity, "SETTLED", -(10**18))  # or the second of two loads hashes files of just now again
        hashed, real = [], integrity.sha256_of
        patch.setattr(integrity, "sha256_of", lambda file: hashed.append(file.name) or real(file))
        export(model, tasks.get("scenes"), tmp_path / "tasks" / "b", n_cases=1, prompt=random_prompt())
    assert hashed.count("decoder_model_merged.onnx") == 2  # where it was found, and in the new bundle
    files = [sorted(p for p in (tmp_path / "tasks" / name / "base").iterdir()) for name in "ab"]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    assert all(a.samefile(b) for a, b in zip(*files, strict=True) if a.name != "manifest.json")
    with sdk.load(tmp_path / "tasks" / "a") as a, sdk.load(tmp_path / "tasks" / "b") as b:
        assert a.model is b.model
    # Other weights by one bit, a damaged base, or none wanted: exported again.
    family = families.load(model)
    family.model.language_model.lm_head.weight.data[3, 3] += 1e-3
    made = []
    monkeypatch.setattr(causal, "export_decoder", lambda *_: made.append(1) or 1 / 0)
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        export(model, tasks.get("count"), tmp_path / "tasks" / "c", n_cases=1, family=family)
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        export(model, tasks.get("count"), tmp_path / "tasks" / "c", n_cases=1, reuse=False)
    (tmp_path / "tasks" / "a" / "base" / "decoder_model_merged.onnx").write_bytes(b"damaged")  # and b's with it
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        export(model, tasks.get("count"), tmp_path / "tasks" / "c", n_cases=1)
    assert len(made) == 3


def test_force_replaces_a_bundle_and_nothing_else_stays(tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    for name in ("count", "scenes"):
        export(model, tasks.get(name), tmp_path / "out", n_cases=1, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
    with sdk.load(tmp_path / "out") as task:
        assert task.name == "scenes"


def test_a_gate_without_cases_is_refused(tmp_path):
    with pytest.raises(RequestError, match="at least 1"):
        export("never loaded", tasks.get("count"), tmp_path / "out", n_cases=0)


def test_a_plain_model_is_exported_without_a_frame(tmp_path):
    model = save_tiny("blip2", tmp_path / "model")
    report = export(model, tasks.get("scenes"), tmp_path / "out", n_cases=4)
    assert report.tokens_equal == report.n_cases == 4
    assert not (tmp_path / "out" / "prompt.safetensors").exists()
    with sdk.load(tmp_path / "out") as task:
        assert task.check()["cases"] == 4


@pytest.mark.parametrize("name", ABOUT)
def test_every_family_exports(name, tmp_path):
    """Line breaks after the patches, grouped key/value heads, marks around the picture, three positions a
    token, a vision encoder that takes one picture, a connector that reads the question, an encoder before the
    decoder, a prompt that sees all of itself; and a view that is asked again."""
    model = save_tiny(name, tmp_path / "model")
    report = export(model, tasks.get("scenes"), tmp_path / "task", n_cases=4)
    assert report.tokens_equal == report.n_cases == 4
    family = families.load(model)
    picture = np.random.default_rng(4).integers(0, 256, (50, 70, 3), np.uint8)
    with sdk.load(tmp_path / "task") as task:
        pixels, view = torch.from_numpy(task.pixel_values(picture)), task.see(picture)
        for question in ("What?", "How many objects are there?", "What?"):
            embeddings = family.see(pixels, [question])
            tokens, _ = family.generate_tokens(embeddings, [question], 12)
            assert list(view.ask(question, max_new_tokens=12).tokens) == tokens[0]
            assert "".join(task.stream(picture, question, max_new_tokens=12)) == family.text(tokens[0])
            for labels in LABELS:
                scores = family.answer_scores(embeddings, [question], labels)[0]
                ranked = view.rank(question, labels=labels)
                assert [row.label for row in ranked] == [labels[i] for i in scores.argsort(descending=True)]
                assert np.allclose([row.score for row in ranked], scores.sort(descending=True).values, atol=1e-4)
        asked = [
            (picture[::step], question) for step in (1, 2) for question in ("What?", "Is there a red star or not?")
        ]
        together = task.ask_many([*asked, (picture, "What?")], batch=4, max_new_tokens=12)
        alone = [task.ask(*request, max_new_tokens=12) for request in [*asked, (picture, "What?")]]
        assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_what_cannot_be_exported_yet_is_said_before_anything_is_written(tmp_path, monkeypatch):
    """A family that has just been added: see CONTRIBUTING.md."""
    model = save_tiny("llava", tmp_path / "model")
    monkeypatch.setattr(Llava, "exports", False)
    with pytest.raises(ModelError, match="cannot be exported yet"):
        export(model, tasks.get("scenes"), tmp_path / "task")
    assert not (tmp_path / "task").exists()


def test_attention_of_another_interface_is_refused(tmp_path, monkeypatch):
    """Falcon's decoder has attention of its own, which never comes to the exporter's."""

    def falcon(tokenizer):
        return hf.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, **marks(tokenizer))

    monkeypatch.setattr(tiny, "llama", falcon)
    model = save_tiny("llava-clip", tmp_path / "model")
    with pytest.raises(ModelError, match="FalconModel does not use"):
        export(model, tasks.get("scenes"), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_a_tokenizer_that_the_sdk_cannot_use_costs_no_graphs(tmp_path, monkeypatch):
    family = families.load(save_tiny("llava", tmp_path / "model"))
    monkeypatch.setattr(type(family.tokenizer), "backend_tokenizer", None)
    monkeypatch.setattr(graphs, "export_vision_encoder", lambda *_: pytest.fail("a graph was made"))
    for make in (export, plan):
        more = {"family": family} if make is export else {}
        with pytest.raises(ModelError, match="no fast version"):
            make(tmp_path / "model", tasks.get("scenes"), output=tmp_path / "out", **more)


def test_what_a_checkpoint_wants_and_does_not_get_is_said(tmp_path, caplog):
    model = save_tiny("llava", tmp_path / "model")
    settings = json.loads((model / "generation_config.json").read_text())
    export(model, tasks.get("scenes"), tmp_path / "out", n_cases=1)
    assert not caplog.records
    (model / "generation_config.json").write_text(json.dumps(settings | {"repetition_penalty": 1.05}))
    export(model, tasks.get("scenes"), tmp_path / "penalised", n_cases=1)
    assert "sets repetition_penalty=1.05. TVP ignores this" in caplog.text


def test_a_model_of_native_resolution_is_shown_a_canvas_at_its_size(tmp_path):
    model = save_tiny("qwen2_5_vl", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    del config["tvp_canvas"]  # as published
    (model / "config.json").write_text(json.dumps(config))
    prompt = random_prompt()
    side = prompt.geometry.canvas
    assert families.load(model).pixel_format.size == 224
    assert families.load(model, canvas=side).pixel_format.size == side
    export(model, tasks.get("scenes"), tmp_path / "out", prompt=prompt, n_cases=1)
    with sdk.load(tmp_path / "out") as task:
        assert task.pixel_values(np.zeros((50, 70, 3), np.uint8)).shape == (1, 3, side, side)
        assert task.check()["cases"] == 1


def test_a_replacement_that_is_cut_off_leaves_the_old_bundle(tmp_path, monkeypatch):
    model = save_tiny("llava", tmp_path / "model")
    export(model, tasks.get("count"), tmp_path / "out", n_cases=1)
    rename = os.rename

    def cut_off(source, target):
        if source.name.endswith(".partial"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", cut_off)
    with pytest.raises(KeyboardInterrupt):
        export(model, tasks.get("scenes"), tmp_path / "out", n_cases=1, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]
    with sdk.load(tmp_path / "out") as task:
        assert task.name == "count"


def test_a_bundle_that_was_left_aside_is_put_back(tmp_path, caplog):
    """An export that was killed between its two renames."""
    model = save_tiny("llava", tmp_path / "model")
    export(model, tasks.get("count"), tmp_path / "out", n_cases=1)
    os.rename(tmp_path / "out", tmp_path / ".out.replaced")
    with pytest.raises(BundleError, match="exists already"):
        export(model, tasks.get("scenes"), tmp_path / "out", n_cases=1)
    assert "is put back" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "out"]


def test_a_base_that_this_user_did_not_make_is_not_shared(tmp_path, monkeypatch):
    """A stranger's bundle names my model and holds other weights; its manifests are whole."""
    monkeypatch.setenv("TVP_HOME", str(tmp_path / "home"))
    model = save_tiny("llava", tmp_path / "model")
    places = tmp_path / "bundles"
    export(model, tasks.get("count"), places / "mine", n_cases=1)
    stranger = places / "before"  # by name the first that is looked at
    shutil.copytree(places / "mine", stranger)
    embeddings = np.load(stranger / "base" / "embed_tokens.npy")
    np.save(stranger / "base" / "embed_tokens.npy", embeddings * -1)
    manifest = read_base_manifest(stranger / "base" / "manifest.json")
    files = list_files(stranger / "base")
    digest = write_manifest(replace(manifest, files=files), stranger / "base" / "manifest.json")
    task = read_task_manifest(stranger / "manifest.json")
    write_manifest(replace(task, base=digest), stranger / "manifest.json")
    sdk.load(stranger).close()  # nothing in it is damaged

    export(model, tasks.get("count"), places / "next", n_cases=1)
    bases = [(places / name / "base" / "embed_tokens.npy") for name in ("mine", "next", "before")]
    assert bases[0].samefile(bases[1])
    assert not bases[1].samefile(bases[2])
    shutil.rmtree(places / "mine")
    shutil.rmtree(places / "next")
    export(model, tasks.get("count"), places / "alone", n_cases=1)
    assert np.array_equal(np.load(places / "alone" / "base" / "embed_tokens.npy"), embeddings)

    (tmp_path / "home" / "exports").chmod(0o777)  # then anybody could have written the record
    export(model, tasks.get("count"), places / "again", n_cases=1)
    assert not (places / "again/base/tokenizer.json").samefile(places / "alone/base/tokenizer.json")


def test_a_row_that_the_model_cannot_read_is_told_with_file_and_line(tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": question, "answer": "1"} for question in ("How many?", "What is <image>?")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.get("custom")
    data = tasks.open_data(str(tmp_path / "rows.jsonl"), task, "test", 2, seed=0)
    with pytest.raises(DataError, match=r"rows\.jsonl.*line 2.*special token|rows\.jsonl:2.*special token"):
        export(model, task, tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()
