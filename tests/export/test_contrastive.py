"""Models that only choose among labels: exported, they answer as `Clip.answer_scores` does, or nothing is written."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import open_clip
import pytest
import sentencepiece
import torch
import transformers as hf
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from tests.bundles import random_prompt
from tests.export.test_fused import operators
from tests.tiny import save_tiny
from tvp import sdk
from tvp.export import graphs
from tvp.export.attention import fused_vision_encoder, plain_vision_encoder
from tvp.export.bundle import IMAGE_ENCODER, export
from tvp.export.contrastive_tokenizers import tokenizer_of
from tvp.export.evaluate import accuracy
from tvp.export.kinds import contrastive
from tvp.export.plan import plan
from tvp.sdk.errors import CheckError, ModelError, RequestError
from tvp.sdk.formats.layout import CaptionTemplates
from tvp.trainer import evaluate, families, tasks
from tvp.trainer.data import Question, Sample, Scenes
from tvp.trainer.prompt import Geometry

NAMES = ("clip", "siglip", "guide")
QUESTIONS = (
    "How many objects are there?",
    "This is a photo of a",
    " Is there a red star? ",
    "of {answer} and {question}",
)
LABELS = ["yes", "a purple triangle and more", "3", "no way", "{question}", "word " * 60]


@pytest.fixture(scope="module", params=NAMES)
def exported(request, tmp_path_factory):
    """Each kind of model with its bundle of the counting task."""
    folder = tmp_path_factory.mktemp(request.param)
    model = "zoo:guide" if request.param == "guide" else save_tiny(request.param, folder / "model")
    family = families.load(model)
    tasks_folder = folder / "tasks"
    report = export(model, tasks.get("count"), tasks_folder / "count", prompt=random_prompt(), n_cases=6)
    return SimpleNamespace(name=request.param, model=model, family=family, folder=tasks_folder, report=report)


def pictures(n, seed=2):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (50 + 7 * i, 70, 3), np.uint8) for i in range(n)]


def pytorch(exported, task, picture, question, labels):
    embeddings = exported.family.see(torch.from_numpy(task.pixel_values(picture)))
    return exported.family.answer_scores(embeddings, [question], labels)[0]


def test_the_sdk_answers_as_the_unpatched_model(exported):
    """Random pictures, questions that end in '?' and that begin a sentence, labels of every length."""
    assert exported.report.tokens_equal == exported.report.end_to_end_equal == exported.report.n_cases == 6
    bests = set()
    with sdk.load(exported.folder / "count") as task:
        for picture in pictures(3):
            for question in QUESTIONS:
                scores = pytorch(exported, task, picture, question, LABELS)
                ranked = task.rank(picture, question, labels=LABELS)
                assert [row.label for row in ranked] == [LABELS[i] for i in scores.argsort(descending=True)]
                theirs = scores.sort(descending=True).values.numpy()
                np.testing.assert_allclose([row.score for row in ranked], theirs, atol=1e-4)
                own = pytorch(exported, task, picture, question, task.labels)
                answer = task.ask(picture, question)
                assert (answer.text, answer.tokens, answer.finish) == (task.labels[int(own.argmax())], (), "label")
                np.testing.assert_allclose(answer.log_probabilities, [float(own.max())], atol=1e-4)
                bests.add((answer.text, ranked[0].label))
    assert len(bests) > 1, "the planted models must not all say the same"


def test_every_way_of_asking_gives_the_same(exported):
    with sdk.load(exported.folder / "count") as task:
        requests = [(picture, question) for picture in pictures(3) for question in (None, *QUESTIONS)]
        together = task.ask_many(requests, batch=4)
        for (picture, question), answer in zip(requests, together, strict=True):
            view = task.see(picture)
            alone = view.ask(question)
            assert alone.text == answer.text == "".join(task.stream(picture, question)) == view.rank(question)[0].label
            np.testing.assert_allclose(answer.log_probabilities, alone.log_probabilities, atol=1e-5)
            assert alone.timing["see"] > 0
            assert view.ask(question).timing["see"] == 0


def test_the_base_is_two_graphs_a_tokenizer_and_what_is_done_with_them(exported):
    base = exported.folder / "count" / "base"
    assert sorted(p.name for p in base.iterdir()) == [
        "manifest.json",
        "text_encoder.onnx",
        "tokenizer.json",
        "vision_encoder.onnx",
    ]
    said = json.loads((base / "manifest.json").read_text())
    family = exported.family
    assert (said["kind"], said["scale"], said["bias"]) == ("contrastive", family.scale, family.bias)
    assert said["scoring"] == ("sigmoid" if exported.name == "siglip" else "softmax")
    assert (said["n_positions"], said["pad_token"] >= 0) == (40, exported.name != "clip")
    n_layers = 3 if exported.name != "clip" else 2  # SigLIP's has two and one that pools
    assert operators(base / "vision_encoder.onnx")["MultiHeadAttention"] == n_layers


def test_each_graph_gives_unit_features_for_any_number_of_rows(exported):
    family = exported.family
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = family.tokenize(["a photo of a dog and a photo of a cat"]).repeat(3, 1)
    ids[1, 1:4], ids[2, 1:4] = ids[0, 2:5], ids[0, 3:6]
    with sdk.load(exported.folder / "count") as task:
        seen = task.model.encode(pixels.numpy())
        np.testing.assert_allclose(seen, family.see(pixels).numpy(), atol=1e-5)
        read = task.model.text_encoder.run(None, {"input_ids": ids.numpy()})[0]
        with torch.no_grad():
            expected = torch.nn.functional.normalize(family.encode_ids(ids), dim=-1)
        np.testing.assert_allclose(read, expected.numpy(), atol=1e-5)
        assert np.abs(read[0] - read[1]).max() > 1e-3
        for rows in (seen[:, 0], read):
            np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)


def test_a_second_task_on_a_model_shares_its_base(exported, monkeypatch):
    monkeypatch.setattr(contrastive, "export_text_encoder", lambda *_: 1 / 0)
    export(exported.model, tasks.get("scenes"), exported.folder / "scenes", n_cases=2)
    rows = plan(exported.model, tasks.get("scenes"), exported.folder / "another")
    assert [size for name, size, _ in rows if name.startswith("base/")] == [0, 0, 0]
    bases = [sorted((exported.folder / name / "base").iterdir()) for name in ("count", "scenes")]
    assert all(a.samefile(b) for a, b in zip(*bases, strict=True) if a.name != "manifest.json")
    with sdk.load(exported.folder / "count") as a, sdk.load(exported.folder / "scenes") as b:
        assert a.model is b.model
        # the task has no labels, and its golden cases have those of its data
        assert b.check()["cases"] == 2
        with pytest.raises(RequestError, match=r"Give them to rank: task\.rank\(image, question, labels="):
            b.ask(pictures(1)[0], "What?")
    family = families.load(exported.model)
    family.scale *= 1.001  # what is made of the same weights in another way is another base
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        export(exported.model, tasks.get("count"), exported.folder / "other", n_cases=1, family=family)


@pytest.mark.parametrize("part", ["vision_encoder", "text_encoder", "scale", "captions"])
def test_where_the_bundle_differs_nothing_is_written(tmp_path, monkeypatch, part):
    """The gate must see one weight of either encoder, and how the two are compared."""
    model = save_tiny("clip", tmp_path / "model")
    family = families.load(model)
    if part == "scale":
        real = contrastive.write
        monkeypatch.setattr(contrastive, "write", lambda *a, **k: replace(real(*a, **k), scale=family.scale * 1.01))
    elif part == "captions":
        other = CaptionTemplates("{question} {answer}", "a photo of the {answer}")
        real = contrastive.write
        monkeypatch.setattr(contrastive, "write", lambda *a, **k: replace(real(*a, **k), captions=other))
    else:
        write = graphs.write_graph
        tower = family.model.vision_model if part == "vision_encoder" else family.model.text_model

        def slightly_wrong(module, config, file):
            weight = tower.encoder.layers[0].mlp.fc1.weight
            off = 2.0 if file.stem == part else 0.0
            weight.data[3, 5] += off
            write(module, config, file)
            weight.data[3, 5] -= off

        monkeypatch.setattr(graphs, "write_graph", slightly_wrong)
        monkeypatch.setattr(contrastive, "write_graph", slightly_wrong)
    with pytest.raises(CheckError, match="not equal to the PyTorch model") as caught:
        export(model, tasks.get("count"), tmp_path / "out", family=family, n_cases=4)
    assert len(caught.value.differences) == 5  # four cases, and the words
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_without_labels_there_is_nothing_to_export(tmp_path):
    """Neither the task's nor its data's."""

    class Free:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Sample(pictures(1)[0], (Question("What?", "a star"),), "a star")

    model = save_tiny("clip", tmp_path / "model")
    with pytest.raises(RequestError, match=r"'custom' has no labels, and neither has its data.*'What\?'"):
        export(model, tasks.get("custom"), tmp_path / "out", data=Free())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    labelled = replace(tasks.get("custom"), labels=("a star", "a disc"))
    assert export(model, labelled, tmp_path / "out", data=Free()).n_cases == 3


def test_the_bundle_is_as_accurate_as_the_model(exported):
    """A task that is asked freely elsewhere: this model chooses."""
    task, data = tasks.get("scenes"), Scenes(12, seed=3)
    expected = evaluate.accuracy(exported.family, data, random_prompt().geometry, random_prompt(), task)
    with sdk.load(exported.folder / "count") as loaded:
        found = accuracy(loaded, data, task)
    assert found.answers == expected.answers
    assert len(set(found.answers)) > 1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_fewer_bits_are_smaller_and_planned(tmp_path, precision):
    most = {"fp32": 1.01, "fp16": 0.55, "int8": 0.5, "int4": 0.5}
    rows = {
        name: size for name, size, _ in plan("zoo:guide", tasks.get("scenes"), tmp_path / "out", precision=precision)
    }
    assert not (tmp_path / "out").exists()
    report = export("zoo:guide", tasks.get("scenes"), tmp_path / "out", precision=precision, n_cases=16)
    assert report.loss <= 0.1
    assert (report.logits > 1e-4) == (precision != "fp32")
    whole = {"vision_encoder": 0, "text_encoder": 0}
    for name, weight in families.load("zoo:guide").model.named_parameters():
        whole["vision_encoder" if name.startswith("visual") else "text_encoder"] += 4 * weight.numel()
    for part, size in whole.items():
        real = (tmp_path / "out" / "base" / f"{part}.onnx").stat().st_size
        assert real < most[precision] * size + 120_000
        assert abs(real - rows[f"base/{part}.onnx"]) < 0.1 * real + 120_000
    with sdk.load(tmp_path / "out") as task:
        checked = task.check()
        assert checked["different"] == report.n_cases - report.tokens_equal
        assert task.manifest.parity.logits == report.logits


def test_no_operator_of_onnxruntimes_own_for_tensorrt_and_one_file_for_the_picture(tmp_path):
    model, more = save_tiny("siglip", tmp_path / "model"), {"device": "tensorrt", "single_file": True}
    export(model, tasks.get("count"), tmp_path / "out", n_cases=2, geometry=Geometry(64, 64), **more)
    for part in ("vision_encoder", "text_encoder"):
        assert not operators(tmp_path / "out" / "base" / f"{part}.onnx")["MultiHeadAttention"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / IMAGE_ENCODER, providers=["CPUExecutionProvider"])
    picture = pictures(1)[0]
    with sdk.load(tmp_path / "out") as task:
        expected = task.model.encode(task.pixel_values(picture))
    np.testing.assert_allclose(session.run(None, {"image": picture})[0], expected, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_attention_is_computed_another_way(batch_first):
    """Itself, with every kind of mask; of lengths that differ; and in the operator where nothing is masked."""
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=batch_first)
    torch.nn.init.normal_(attention.in_proj_bias)
    query, key = torch.randn(4, 4, 8), torch.randn(4, 4, 8)
    causal = torch.full((4, 4), float("-inf")).triu(1)
    masks = [None, causal, causal.bool(), torch.rand(8, 4, 4) < 0.3, torch.randn(8, 4, 4)]
    asked = [((query, key, key), {"attn_mask": mask}) for mask in masks]
    asked += [((query[:, :1] if batch_first else query[:1], key, key), {})]
    asked += [((query, key, key), {"key_padding_mask": torch.eye(4).bool()})]
    with torch.no_grad():
        expected = [attention(*given, **more)[0] for given, more in asked]
        for way in (fused_vision_encoder(attention), plain_vision_encoder()):
            with way:
                found = [attention(*given, **more)[0] for given, more in asked]
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def noise(n):
    rng = random.Random(0)
    alphabets = (
        "abcdefgh ij'klm  ",
        "".join(map(chr, range(32, 127))),
        "éàüßñÅİ ıΣςσΩабв漢字かな한국어\t\n",
        "👍🏽🐶‍❤️ a1",
    )
    return ["a" + "".join(rng.choice(a) for _ in range(rng.randint(0, 90))) + "." for a in alphabets for _ in range(n)]


def differing(family, texts):
    tokenizer, pad = tokenizer_of(family)
    tokenizer.enable_truncation(family.n_positions)
    if pad >= 0:
        tokenizer.enable_padding(length=family.n_positions, pad_id=pad)
    return [text for text in texts if tokenizer.encode(text).ids != family.tokenize([text])[0].tolist()]


def of_open_clip(tokenizer):
    return SimpleNamespace(
        name="clip", tokenizer=tokenizer, tokenize=tokenizer, n_positions=tokenizer.context_length, padded=True
    )


def test_openais_tokenizer_is_rebuilt():
    """The one of most open_clip models, which is written in Python: a thousand class names, and noise."""
    texts = [*contrastive.TEXTS, *(f"a photo of a {name}, “the” one." for name in IMAGENET_CLASSNAMES), *noise(300)]
    entities = [text for text in texts if "&#" in text]  # it reads those as HTML, and the sdk does not
    assert differing(of_open_clip(SimpleTokenizer()), [text for text in texts if text not in entities]) == []
    assert len(entities) < 10


def test_an_open_clip_model_with_openais_tokenizer_is_exported(tmp_path):
    """A folder without tokenizer files."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    report = export(folder, tasks.get("count"), tmp_path / "out", n_cases=3)
    assert report.tokens_equal == 3
    family = families.load(folder)
    with sdk.load(tmp_path / "out") as task:
        labels = ["Émile’s dog", "“two” CATS", "it's 3", "long " * 40]
        picture = pictures(1)[0]
        scores = family.answer_scores(family.see(torch.from_numpy(task.pixel_values(picture))), ["What?"], labels)[0]
        ranked = {row.label: row.score for row in task.rank(picture, "What?", labels=labels)}
        np.testing.assert_allclose([ranked[label] for label in labels], scores.numpy(), atol=1e-4)


@pytest.fixture
def siglip_tokenizer(tmp_path):
    """The class that published SigLIP checkpoints come with, over a small vocabulary."""
    (tmp_path / "corpus.txt").write_text("\n".join([*contrastive.TEXTS, *IMAGENET_CLASSNAMES]).lower())
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=700,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return hf.SiglipTokenizer(str(tmp_path / "spiece.model"))


@pytest.mark.parametrize("lower", [True, False])
def test_siglips_tokenizer_is_rebuilt(siglip_tokenizer, lower):
    siglip_tokenizer.do_lower_case = lower

    def tokenize(texts):
        padding = {"padding": "max_length", "truncation": True, "max_length": 64}
        return siglip_tokenizer(texts, return_tensors="pt", **padding).input_ids

    family = SimpleNamespace(name="clip", tokenizer=siglip_tokenizer, tokenize=tokenize, n_positions=64, padded=True)
    texts = [*contrastive.TEXTS, *(f"A photo of a {name}." for name in IMAGENET_CLASSNAMES), *noise(100)]
    texts += ["a ｐｈｏｔｏ of ﬁsh, ①② and Ⅷ…", "a photo\u00a0of\u3000a ½ ™"]  # SentencePiece maps these to plain ones
    assert differing(family, texts) == []


def test_a_tokenizer_without_an_equal_is_refused(tmp_path, monkeypatch):
    """One that changes ids behind the tokenizer's back, one that cleans in its own way, one without a fast version."""
    family = families.load("zoo:guide")
    own = family.tokenizer
    assert isinstance(own, HFTokenizer)
    for setting, value in (("strip_sep_token", True), ("clean_fn", str.swapcase)):
        monkeypatch.setattr(own, setting, value)
        if setting == "strip_sep_token":
            own.tokenizer.sep_token = own.tokenizer.eos_token
        with pytest.raises(ModelError, match="cannot be exported yet"):
            export("zoo:guide", tasks.get("count"), tmp_path / "out", family=family, n_cases=1)
        monkeypatch.undo()
    monkeypatch.setattr(own, "tokenizer", SimpleNamespace())
    with pytest.raises(ModelError, match="no fast version"):
        export("zoo:guide", tasks.get("count"), tmp_path / "out", family=family, n_cases=1)
    assert list(tmp_path.iterdir()) == []
