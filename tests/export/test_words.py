"""Golden words: planted faults that golden cases do not see, and bundles of before, which have none."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from tests.tiny import save_tiny
from tvp import sdk
from tvp.export.bundle import export
from tvp.export.words import labels_of, odd
from tvp.sdk.errors import BundleError, CheckError, RequestError
from tvp.sdk.formats.golden import read_cases
from tvp.sdk.formats.golden_words import FILE, PICTURE, read_golden_words
from tvp.trainer import tasks


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A model in fp32 and in int8."""
    folder = tmp_path_factory.mktemp("words")
    model = save_tiny("smolvlm", folder / "model")
    for precision in ("fp32", "int8"):
        export(model, tasks.get("scenes"), folder / precision, precision=precision, n_cases=4, max_loss=1.0)
    return folder


@pytest.fixture
def copy(bundles, tmp_path):
    """Returns a copy of a bundle, which may be broken."""
    return lambda precision: shutil.copytree(bundles / precision, tmp_path / precision)


def check(folder):
    with sdk.load(folder, providers="cpu", verify_files=False) as task:
        return task.check()


def words_in(folder):
    """Ids that the golden words feed, and those that the golden cases ask and answer with."""
    words = read_golden_words(folder)
    with sdk.load(folder, providers="cpu", verify_files=False) as task:
        tokenizer = task.model.tokenizer
        fed = {i for label in words.labels for i in tokenizer.encode(label, add_special_tokens=False).ids}
        cases = read_cases(folder)
        asked = {i for case in cases for i in tokenizer.encode(case.question).ids}
    return fed, asked | {i for case in cases for i in case.tokens}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_scores_words_as_at_its_export(bundles, precision):
    words = read_golden_words(bundles / precision)
    assert len(words.labels) == len(words.scores) >= 16
    assert check(bundles / precision)["cases"] == 4
    with Image.open(bundles / precision / "golden" / PICTURE) as picture:
        sides = picture.size
    with sdk.load(bundles / precision) as task:
        side = task.pixel_values(np.zeros((9, 9, 3), np.uint8)).shape[-1]
    assert min(sides) > side
    assert all(length % 2 for length in sides)


def test_a_changed_embedding_that_no_golden_case_uses_is_noticed(copy):
    folder = copy("fp32")
    fed, asked = words_in(folder)
    file = folder / "base" / "embed_tokens.npy"
    table = np.load(file)
    number = sorted(fed - asked)[len(fed - asked) // 2]
    table[number] = table[(number + 1) % len(table)] + 1
    file.unlink()  # it may be a link to another bundle's
    np.save(file, table)
    with pytest.raises(CheckError, match="does not score words here as it did at its export"):
        check(folder)


@pytest.mark.parametrize("name", ["vision_encoder.onnx", "decoder_model_merged.onnx"])
def test_scales_that_are_a_fifth_larger_are_noticed(copy, name):
    folder = copy("int8")
    file = folder / "base" / name
    graph = onnx.load(file)
    n_changed = 0
    for weight in graph.graph.initializer:
        if weight.name.endswith(("_scale", "_scales")):
            values = numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array((values * 1.2).astype(values.dtype), weight.name))
            n_changed += 1
    assert n_changed
    file.unlink()
    onnx.save(graph, file)
    with pytest.raises(CheckError, match="does not score words here as it did at its export"):
        check(folder)


def test_a_bundle_of_before_has_none_and_a_damaged_file_is_told(copy):
    folder = copy("fp32")
    (folder / FILE).write_text("[]")
    with pytest.raises(BundleError, match=r"words\.json"):
        check(folder)
    content = {"format": 2, "question": "?", "labels": ["a", "a"], "scores": [1, 2], "within": 1}
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="one twice"):
        check(folder)
    (folder / FILE).unlink()
    assert check(folder)["cases"] == 4


def test_labels_have_words_from_the_whole_vocabulary_and_no_special_token(bundles):
    with sdk.load(bundles / "fp32") as task:
        tokenizer = task.model.tokenizer
    labels = labels_of(tokenizer, 8)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    assert len(set(labels)) == len(labels) == 32
    assert not special & {word for label in labels for word in label.split()}
    assert odd(np.zeros((10, 20, 3), np.uint8), 64).shape == (101, 87, 3)


def test_a_model_that_can_score_no_words_is_exported_without_them(tmp_path, monkeypatch):
    model = save_tiny("llava", tmp_path / "model")

    def refuse(*arguments, **options):
        raise RequestError("too long")

    monkeypatch.setattr(sdk.Task, "rank", refuse)
    export(model, tasks.get("scenes"), tmp_path / "out", n_cases=1)
    assert read_golden_words(tmp_path / "out") is None
    assert check(tmp_path / "out")["cases"] == 1
