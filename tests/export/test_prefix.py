"""Prompts that see all of themselves: PaliGemma's, and VisualGLM's but for its last token."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from tests.bundles import make_bundle, seal
from tests.tiny import save_tiny
from tvp import sdk
from tvp.export import graphs
from tvp.export.bundle import export
from tvp.export.kinds import causal
from tvp.export.plan import plan
from tvp.export.precision import reduce_precision
from tvp.export.tokenizer import write_tokenizer
from tvp.sdk._models.kv_cache import KeyValues
from tvp.sdk._models.positions import positions_of
from tvp.sdk.errors import BundleError, ModelError, ProviderError
from tvp.sdk.formats.layout import PromptTokenizer
from tvp.sdk.formats.manifest import read_base_manifest
from tvp.trainer import families, tasks

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
QUESTIONS = "How many objects are there?", "Is there a red star or not?"
N_CAUSAL = {"paligemma": 0, "visualglm": 1}


@pytest.fixture(scope="module", params=N_CAUSAL)
def exported(request, tmp_path_factory):
    return request.param, make_bundle(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def runs(monkeypatch):
    """How many tokens each run of a decoder has taken."""
    lengths: list[int] = []
    run = KeyValues.run

    def noted(cache, embeddings, n_logits):
        lengths.append(embeddings.shape[1])
        return run(cache, embeddings, n_logits)

    monkeypatch.setattr(KeyValues, "run", noted)
    return lengths


def test_the_picture_sees_the_end_of_the_question(exported):
    """The last layer's keys of every token depend on the last that the others see, and none on <sop>."""
    name, folder = exported
    with sdk.load(folder) as task:
        base, n_causal = task.model, N_CAUSAL[name]
        assert base.manifest.n_causal == n_causal
        question = base.parse(QUESTIONS[0])
        prompt = base.join(task.see(PICTURE)._seen, question, question.after)
        n_first = prompt.shape[1] - n_causal

        def keys(changed):
            other, cache = prompt.copy(), KeyValues(base.decoder)
            other[:, changed] *= -1  # not another constant, which a norm takes away
            cache.run(other[:, :n_first], 1)
            if n_causal:
                cache.run(other[:, n_first:], 1)
            return cache._tensors[-2].numpy()[0, :, : prompt.shape[1]].copy()

        plain, end = keys([]), keys([n_first - 1])
        assert (np.abs(end - plain).max((0, 2)) > 1e-5).all()
        if n_causal:
            differs = np.abs(keys([n_first]) - plain).max((0, 2)) > 1e-5
            assert differs.tolist() == [False] * n_first + [True]


def test_only_another_question_reads_the_picture_again(exported, runs):
    name, folder = exported
    with sdk.load(folder) as task:
        n_picture = task.model.n_before + task.model.manifest.n_image_tokens
        view = task.see(PICTURE)
        for question, again in [(0, False), (0, True), (1, False), (1, True), (0, False)]:
            n_all = n_picture + len(task.model.parse(QUESTIONS[question]).after)
            runs.clear()
            answer = view.ask(QUESTIONS[question], max_new_tokens=3)
            whole = [n_all - 1, 1] if name == "visualglm" else [n_all]
            assert runs == ([] if again else whole) + [1] * (len(answer.tokens) - 1)
            assert answer.tokens == task.ask(PICTURE, QUESTIONS[question], max_new_tokens=3).tokens


def test_a_question_that_failed_is_not_taken_for_read(exported, monkeypatch):
    """Of VisualGLM's prompt one part may have run, and the other not."""
    name, folder = exported
    with sdk.load(folder) as task:
        view = task.see(PICTURE)
        expected = view.rank(QUESTIONS[0], labels=["a", "b c"])
        run, calls = KeyValues.run, []

        def failing(cache, embeddings, n_logits):
            calls.append(embeddings.shape[1])
            if len(calls) > N_CAUSAL[name]:
                raise ProviderError("no memory")
            return run(cache, embeddings, n_logits)

        with monkeypatch.context() as patch:
            patch.setattr(KeyValues, "run", failing)
            with pytest.raises(ProviderError, match="no memory"):
                view.ask(f"{QUESTIONS[1]} {QUESTIONS[1]}")
        assert view.rank(QUESTIONS[0], labels=["a", "b c"]) == expected


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("name", N_CAUSAL)
def test_every_way_of_asking_is_the_same_in_fewer_bits(name, precision, tmp_path):
    model, task = save_tiny(name, tmp_path / "model"), tasks.get("scenes")
    planned = {row[0] for row in plan(model, task, tmp_path / "out", precision=precision)}
    report = export(model, task, tmp_path / "out", precision=precision, n_cases=4, max_loss=1)
    assert report.loss == 0 or precision != "fp16"
    with sdk.load(tmp_path / "out") as loaded:
        assert {f"base/{file}" for file in loaded.model.manifest.needs} <= planned
        view = loaded.see(PICTURE)
        for question in (*QUESTIONS, QUESTIONS[0]):
            alone = loaded.ask(PICTURE, question)
            assert view.ask(question).text == alone.text == "".join(loaded.stream(PICTURE, question))
            assert loaded.ask_many([(PICTURE, question)] * 2)[1].tokens == alone.tokens
        assert {t.numpy().dtype for t in view._seen.cache._tensors} == {np.dtype(loaded.model.decoder.cache_type)}
        assert loaded.model.decoder.cache_type == (np.float16 if precision == "fp16" else np.float32)


def test_positions_are_those_of_the_family(tmp_path):
    """VisualGLM's: of two prompts of different lengths with answers behind them, in one batch."""
    family = families.load(save_tiny("visualglm", tmp_path / "model"))
    n_contexts, n_new = torch.tensor([9, 12]), 4
    length = int(n_contexts.max()) + n_new
    expected = family.positions(torch.ones(2, length, dtype=torch.int64), n_contexts, 1, 8)
    order = np.arange(length)[None].repeat(2, 0)
    found = positions_of(2, 0, 8, order, n_contexts.numpy() - 1)  # what sees itself ends before <sop>
    assert found.tolist() == expected.tolist()
    step = family.advance(expected[..., -1:], 1)
    assert positions_of(2, 0, 8, order[:, -1:] + 1, n_contexts.numpy() - 1).tolist() == step.tolist()


@pytest.mark.parametrize("name", N_CAUSAL)
def test_the_exported_tokenizer_writes_the_marks(name, tmp_path):
    """PaliGemma's begin token, and [gMASK] and <sop>, also where the checkpoint's own tokenizer writes none."""
    family = families.load(save_tiny(name, tmp_path / "model"))
    backend = family.tokenizer.backend_tokenizer
    for own in (True, False):
        if not own:
            backend.post_processor = None
        write_tokenizer(family.tokenizer, tmp_path / "tokenizer.json", family)
        written = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        words = PromptTokenizer(
            family.layout,
            lambda text, special, written=written: written.encode(text, add_special_tokens=special).ids,
            frozenset(),
        )
        for question in ("a", *QUESTIONS):
            same = words.prompt_ids(question) == family._prompt_tokenizer.prompt_ids(question)
            assert same or not own or name == "paligemma"
            assert words.prompt_ids(question) == family.prompt_ids(question)
        assert words.answer_ids("a red star") == family.answer_ids("a red star")


def test_a_prompt_that_no_tokenizer_writes_is_refused(tmp_path, monkeypatch):
    family = families.load(save_tiny("paligemma", tmp_path / "model"))
    monkeypatch.setattr(family, "prompt_ids", lambda question: ([], [5, 6, 7]))
    with pytest.raises(ModelError, match="its tokenizer gives other tokens for"):
        write_tokenizer(family.tokenizer, tmp_path / "tokenizer.json", family)


def test_a_manifest_says_one_of_what_there_is(exported, tmp_path):
    _, folder = exported
    content = json.loads((folder / "base" / "manifest.json").read_text())
    for wrong in (2, -2, True, "0", None):
        (tmp_path / "manifest.json").write_bytes(seal(content | {"n_causal": wrong}))
        with pytest.raises(BundleError, match="n_causal"):
            read_base_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("name", N_CAUSAL)
def test_in_fp16_far_places_are_as_exact_as_near_ones(name, tmp_path):
    """An angle at place 1,500 is half a radian off in fp16; logits would be far off, not by its rounding."""
    family = families.load(save_tiny(name, tmp_path / "model"))
    n_kv_heads, head = graphs.cache_shape(family)
    logits, shape = {}, (1, 6) if family.position_axes == 1 else (family.position_axes, 1, 6)
    for precision in ("fp32", "fp16"):
        folder = tmp_path / precision
        folder.mkdir()
        causal.export_decoder(family, folder / "decoder_model_merged.onnx")
        reduce_precision(folder, precision)
        session = onnxruntime.InferenceSession(folder / "decoder_model_merged.onnx", providers=["CPUExecutionProvider"])
        past = np.zeros((1, n_kv_heads, 8, head), np.float32 if precision == "fp32" else np.float16)
        inputs = {f"past_key_values.{i}.{part}": past for i in range(2) for part in ("key", "value")}
        inputs |= {
            "inputs_embeds": np.random.default_rng(1).normal(size=(1, 6, 32)).astype(np.float32),
            "seqlens_k": np.array([5], np.int32),
            "total_sequence_length": np.array(6, np.int32),
            "num_logits_to_keep": np.array(6),
        }
        for start in (0, 1500):
            places = np.broadcast_to(np.arange(start, start + 6), shape)
            logits[precision, start] = session.run(["logits"], inputs | {"position_ids": places})[0]
    near, far = (np.abs(logits["fp16", start] - logits["fp32", start]).max() for start in (0, 1500))
    assert far < 2 * near
