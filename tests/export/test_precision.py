"""Fewer bits: smaller bases, what is lost is measured and bounded, and every way of asking gives the same."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnxruntime.transformers import float16

from tests.bundles import random_prompt
from tests.export.test_fused import operators
from tests.tiny import save_tiny
from tvp import sdk
from tvp.export import bundle as bundle_module
from tvp.export import fuse, parity
from tvp.export.bundle import IMAGE_ENCODER, export
from tvp.export.cli import export as command
from tvp.export.parity import Parity
from tvp.export.plan import plan
from tvp.sdk.errors import BundleError, CheckError, RequestError
from tvp.trainer import families, tasks

QUESTION = "How many objects are there?"
LABELS = ["1", "2", "3"]


@pytest.fixture(scope="module")
def smolvlm():
    return families.load("zoo:smolvlm")


@pytest.fixture(scope="module")
def exported(smolvlm, tmp_path_factory):
    """The zoo's SmolVLM in each precision: bundle and report."""
    folder = tmp_path_factory.mktemp("precisions")
    return {
        precision: (
            folder / precision,
            export(
                "zoo:smolvlm", tasks.get("scenes"), folder / precision, family=smolvlm, precision=precision, n_cases=16
            ),
        )
        for precision in ("fp32", "fp16", "int8", "int4")
    }


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_little_is_lost_and_the_base_is_smaller(exported, precision):
    folder, report = exported[precision]
    assert report.loss <= 0.1  # the default, which the export itself holds
    assert report.logits > 1e-4  # it is another precision
    sizes = {
        name: sum(p.stat().st_size for p in (exported[name][0] / "base").glob("*.onnx")) for name in ("fp32", precision)
    }
    most = {"fp16": 0.6, "int8": 0.45, "int4": 0.4}  # graphs of a tiny model are not only weights
    assert sizes[precision] < most[precision] * sizes["fp32"]
    manifest = json.loads((folder / "base" / "manifest.json").read_text())
    assert manifest["precision"] == precision
    with sdk.load(folder) as task:
        checked = task.check()
        assert checked["cases"] == report.n_cases
        assert checked["different"] == report.n_cases - report.tokens_equal


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_every_way_of_asking_gives_the_same(exported, precision):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(3)]
    questions = [QUESTION, "Is there a red star?"]
    with sdk.load(exported[precision][0]) as task:
        for picture in pictures:
            view = task.see(picture)
            for question in questions:
                alone = task.ask(picture, question)
                assert view.ask(question).text == alone.text == "".join(task.stream(picture, question))
                again = view.rank(question, labels=LABELS)
                ranked = task.rank(picture, question, labels=LABELS)
                assert [row.label for row in again] == [row.label for row in ranked]
                # With AVX-512 VNNI, MatMulNBits rounds a row by how many there are, in the last bit.
                assert [row.score for row in again] == pytest.approx([row.score for row in ranked], abs=1e-5)
        together = task.ask_many([(picture, question) for question in questions for picture in pictures])
        alone = [task.ask(picture, question) for question in questions for picture in pictures]
        # A batch's scale is not a picture's: each is encoded by itself.
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


@pytest.mark.parametrize(("different", "n", "allowed"), [(1, 20, 0.05), (1, 100, 0.01), (3, 20, 0.15), (3, 10, 0.3)])
def test_exactly_what_is_allowed_is_allowed(different, n, allowed):
    Parity(n_cases=n, tokens_equal=n - different, n_within=1, n_values=1).check("a task", "int8", allowed)
    with pytest.raises(CheckError, match="--max-loss"):
        Parity(n_cases=n, tokens_equal=n - different - 1, n_within=1, n_values=1).check("a task", "int8", allowed)


def test_over_max_loss_nothing_is_written(tmp_path, monkeypatch):
    model = save_tiny("llava", tmp_path / "model")
    real = parity.measure

    def other_answers(*arguments, **options):
        report = real(*arguments, **options)
        report.tokens_equal = report.n_cases - 2
        return report

    monkeypatch.setattr(parity, "measure", other_answers)
    with pytest.raises(CheckError, match=r"another answer than PyTorch in 2 of 8 cases \(25.0%\).*allows 10.0%"):
        export(model, tasks.get("count"), tmp_path / "out", precision="int8", n_cases=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    export(model, tasks.get("count"), tmp_path / "out", precision="int8", n_cases=8, max_loss=1)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_damaged_int8_bundle_fails_its_check(exported, monkeypatch):
    """The share that may differ is the manifest's, and not everything."""
    with sdk.load(exported["int8"][0]) as task:
        rows, n = task.model.embeddings.rows, task.model.manifest.n_vocab
        monkeypatch.setattr(task.model.embeddings, "rows", lambda ids: rows([(token - 7) % n for token in ids]))
        with pytest.raises(CheckError, match="does not answer here as it did"):
            task.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "int3"}, "int3"), ({"device": "tpu"}, "tpu"), ({"max_loss": 1.5}, "max_loss is 1.5")],
)
def test_an_option_that_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(RequestError, match=message):
        export("never loaded", tasks.get("count"), tmp_path / "out", **options)


def test_precisions_do_not_share_a_base(tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    for precision in ("fp32", "int8"):
        export(model, tasks.get("count"), tmp_path / "tasks" / precision, precision=precision, n_cases=2, max_loss=1)
    bases = [json.loads((tmp_path / "tasks" / p / "base" / "manifest.json").read_text()) for p in ("fp32", "int8")]
    assert bases[0]["sha256"] != bases[1]["sha256"]


def test_one_file_from_picture_to_embeddings(tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    export(model, tasks.get("count"), tmp_path / "out", prompt=random_prompt(), n_cases=1, single_file=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / IMAGE_ENCODER, providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    with sdk.load(tmp_path / "out") as task:
        expected = task.model.encode(task.pixel_values(picture))
    np.testing.assert_allclose(session.run(None, {"image": picture})[0], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("name", ["zoo:smolvlm", "zoo:blip2-t5"])
def test_a_plan_says_what_an_export_writes(exported, tmp_path, precision, name):
    rows = plan(name, tasks.get("scenes"), tmp_path / "out", precision=precision, single_file=True)
    assert not (tmp_path / "out").exists()
    planned = {row[0]: row[1] for row in rows}
    assert planned[IMAGE_ENCODER] == planned["base/vision_encoder.onnx"] + planned["preprocess.onnx"]
    if name == "zoo:blip2-t5":
        assert planned["base/decoder_model_merged.onnx"] > planned["base/embed_tokens.npy"] > 100_000
        return
    folder = exported[precision][0]
    for part in ("base/vision_encoder.onnx", "base/decoder_model_merged.onnx", "base/embed_tokens.npy"):
        real = (folder / part).stat().st_size
        structure = 60_000 if part.endswith(".onnx") else 1000  # a graph is more than its weights
        assert abs(real - planned[part]) < 0.1 * real + structure, (part, real, planned[part])


def test_a_plan_finds_the_base_that_would_be_shared(exported):
    folder = exported["int8"][0]
    rows = plan("zoo:smolvlm", tasks.get("count"), folder.with_name("another"), precision="int8")
    shared = [row for row in rows if row[0].startswith("base/")]
    assert shared
    assert all(size == 0 and str(folder / "base") in note for _, size, note in shared)
    with pytest.raises(BundleError, match="exists already"):
        plan("zoo:smolvlm", tasks.get("count"), folder, precision="int8")


def test_the_command_plans_and_says_what_was_lost(tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    arguments = ["-m", str(model), "-t", "count", "-o", str(tmp_path / "out"), "--precision", "int8", "--cases", "2"]
    planned = CliRunner().invoke(command, [*arguments, "--dry-run"])
    assert planned.exit_code == 0
    assert "decoder_model_merged.onnx" in planned.output
    assert "nothing was written" in planned.output
    assert " 0.0 " not in planned.output  # small files too have a size
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(command, [*arguments, "--max-loss", "1"])
    assert done.exit_code == 0, done.output
    assert "of the answers are not PyTorch's (allowed 100.0%)" in done.output


def test_a_picture_that_is_shown_otherwise_is_refused_in_every_precision(tmp_path, monkeypatch):
    """Both sides answer to the bundle's pixel values, so a wrong preprocessing costs no answers."""
    model = save_tiny("llava", tmp_path / "model")
    real = bundle_module.preprocess_graph

    def brighter(geometry, pixel_format, prompt):
        return real(geometry, replace(pixel_format, mean=tuple(m - 0.1 for m in pixel_format.mean)), prompt)

    monkeypatch.setattr(bundle_module, "preprocess_graph", brighter)
    for precision in ("fp32", "int8"):
        with pytest.raises(CheckError, match="pixel values are within one level"):
            export(model, tasks.get("count"), tmp_path / "out", precision=precision, n_cases=2, max_loss=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_weights_too_large_for_one_file_lie_beside_it(tmp_path, monkeypatch, precision):
    model = save_tiny("llava", tmp_path / "model")
    monkeypatch.setattr(fuse, "MAX_PROTOBUF", 1000)

    def takes_2_gib_at_most(*arguments, **options):
        raise ValueError("the message is too large to be serialised")

    monkeypatch.setattr(float16, "infer_shapes", takes_2_gib_at_most)
    monkeypatch.setattr(onnx.compose, "checker", SimpleNamespace(check_model=takes_2_gib_at_most))
    export(model, tasks.get("count"), tmp_path / "out", precision=precision, n_cases=2, max_loss=1, single_file=True)
    assert (tmp_path / "out" / f"{IMAGE_ENCODER}_data").exists()
    names = {path.name for path in (tmp_path / "out" / "base").iterdir()}
    assert {"decoder_model_merged.onnx_data", "vision_encoder.onnx_data"} <= names
    assert not [name for name in names if name.endswith((".int8", ".int8_data"))]
    with sdk.load(tmp_path / "out") as task:
        assert task.check()["cases"] == 2
    data = [*(tmp_path / "out").rglob("*_data")]
    assert {path.stat().st_mode for path in data} == {(tmp_path / "out" / IMAGE_ENCODER).stat().st_mode}
    # Of a base that is shared the weights have several links, which onnx refuses to read.
    options = {"precision": precision, "n_cases": 2, "max_loss": 1, "single_file": True}
    export(model, tasks.get("scenes"), tmp_path / "again", **options)
    assert (tmp_path / "again/base/vision_encoder.onnx_data").stat().st_nlink == 2
    picture = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    merged = [
        onnxruntime.InferenceSession(tmp_path / name / IMAGE_ENCODER, providers=["CPUExecutionProvider"]).run(
            ["image_embeds"], {"image": picture}
        )[0]
        for name in ("out", "again")
    ]
    np.testing.assert_array_equal(*merged)


def test_a_text_ends_where_a_window_would_begin_to_slide(tmp_path):
    family = families.load(save_tiny("llava", tmp_path / "model"))
    assert family.n_positions > 90
    family.text_config.sliding_window = 90
    export(tmp_path / "model", tasks.get("count"), tmp_path / "out", family=family, n_cases=1)
    with sdk.load(tmp_path / "out") as task:
        assert task.model.manifest.n_positions == 90
        with pytest.raises(RequestError, match="at most 90"):
            task.ask(np.zeros((64, 64, 3), np.uint8), "What? " * 30)


def test_a_half_precision_cache_takes_half_the_memory(exported):
    with sdk.load(exported["fp16"][0]) as task:
        view = task.see(np.zeros((64, 64, 3), np.uint8))
        view.ask(QUESTION)
        assert {tensor.numpy().dtype for tensor in view._seen.cache._tensors} == {np.dtype(np.float16)}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("tensorrt", False)])
def test_fewer_bits_for_a_gpu_are_what_a_gpu_has(smolvlm, tmp_path, device, fused):
    """Which has no dynamic int8, and its attention in half precision only."""
    options = {"precision": "int4", "device": device}
    rows = plan("zoo:smolvlm", tasks.get("scenes"), tmp_path / "out", **options)
    export("zoo:smolvlm", tasks.get("scenes"), tmp_path / "out", family=smolvlm, n_cases=4, max_loss=1, **options)
    base = tmp_path / "out" / "base"
    encoder, decoder = operators(base / "vision_encoder.onnx"), operators(base / "decoder_model_merged.onnx")
    assert not {"MatMulInteger", "DynamicQuantizeLinear"} & {*encoder, *decoder}
    assert bool(encoder["MultiHeadAttention"]) == fused
    assert decoder["MatMulNBits"] > 4
    session = onnxruntime.InferenceSession(base / "decoder_model_merged.onnx", providers=["CPUExecutionProvider"])
    assert {v.type for v in session.get_inputs() if v.name.startswith("past")} == {"tensor(float16)"}
    for name, size, _ in rows:
        if name in ("base/vision_encoder.onnx", "base/decoder_model_merged.onnx"):
            real = (tmp_path / "out" / name).stat().st_size
            assert abs(real - size) < 0.1 * real + 60_000, (name, real, size)
    with sdk.load(tmp_path / "out") as task:
        assert task.model.manifest.device == device
        assert task.check()["cases"] == 4


def test_devices_of_equal_graphs_share_a_base(tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    for device in ("cpu", "cuda", "tensorrt"):
        export(
            model,
            tasks.get("count"),
            tmp_path / "tasks" / device,
            precision="fp16",
            device=device,
            n_cases=1,
            max_loss=1,
        )
    files = {d: tmp_path / "tasks" / d / "base" / "decoder_model_merged.onnx" for d in ("cpu", "cuda", "tensorrt")}
    assert files["cpu"].samefile(files["cuda"])
    assert not files["cpu"].samefile(files["tensorrt"])


def test_logits_that_are_no_numbers_are_refused_in_every_precision():
    for precision in ("fp32", "int8"):
        with pytest.raises(CheckError, match="not finite"):
            Parity(n_cases=4, tokens_equal=4, logits=float("nan")).check("count", precision, 1.0)
