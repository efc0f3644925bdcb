"""Loading bundles: whole ones work, anything else is named."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest

from tests.bundles import flip_bytes, listed_anew, reads_weights_from, seal
from tvp import sdk
from tvp.sdk import tasks
from tvp.sdk.errors import BundleError, CheckError, ImageError, ProviderError, RequestError, TvpError
from tvp.sdk.formats._sealed import FORMAT

PICTURE = np.zeros((10, 10, 3), np.uint8)


@pytest.fixture
def copy(one_bundle, tmp_path):
    return shutil.copytree(one_bundle, tmp_path / "copy")


def test_one_flipped_byte_in_any_file_is_named(copy):
    assert flip_bytes(copy, 200) > 10


def test_a_missing_or_shorter_file_is_named(copy):
    file = copy / "base" / "decoder_model_merged.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(BundleError, match=r"decoder_model_merged\.onnx is damaged: it has"):
        sdk.load(copy)
    file.unlink()
    with pytest.raises(BundleError, match=r"decoder_model_merged\.onnx is missing"):
        sdk.load(copy)


def test_a_newer_format_says_update(copy):
    content = json.loads((copy / "manifest.json").read_text())
    content["format"] = FORMAT + 1
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=rf"format {FORMAT + 1}.*Update"):
        sdk.load(copy)


def test_another_base_is_refused(copy):
    other = json.loads((copy / "base" / "manifest.json").read_text())
    other["n_positions"] = 77
    (copy / "base" / "manifest.json").write_bytes(seal(other))
    with pytest.raises(BundleError, match="was exported with the base"):
        sdk.load(copy)


def test_a_manifest_may_not_name_files_elsewhere(copy):
    content = json.loads((copy / "manifest.json").read_text())
    for name in ("../outside", "/etc/passwd", "a/../../b", "C:\\x", "a\\b"):
        content["files"] = {name: {"size": 1, "sha256": "0"}}
        (copy / "manifest.json").write_bytes(seal(content))
        with pytest.raises(BundleError, match="outside of the bundle"):
            sdk.load(copy)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": "1"}'])
def test_nonsense_manifests_are_bundle_errors(copy, data):
    (copy / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        sdk.load(copy)


def test_missing_bundles_are_named_with_neighbours(one_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    with pytest.raises(BundleError, match="no bundle 'count'"):
        sdk.load("count")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "count").symlink_to(one_bundle)
    assert sdk.tasks() == ["count"]
    sdk.load("count").close()
    with pytest.raises(BundleError, match="Did you mean count"):
        sdk.load("counts")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        sdk.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        sdk.load(tmp_path / "file")


def test_unknown_providers_list_what_is_available(one_bundle):
    with pytest.raises(ProviderError, match=r"'cpuu' is not available.*CPUExecutionProvider.*Did you mean cpu"):
        sdk.load(one_bundle, providers="cpuu")
    with pytest.raises(ProviderError, match="not available"):
        sdk.load(one_bundle, providers=[("NoSuchProvider", {})])
    with pytest.raises(ProviderError, match="No provider"):
        sdk.load(one_bundle, providers=[])
    for nonsense in (None, 3, [3], [("cpu",)], [(3, {})]):
        with pytest.raises(ProviderError, match="provider"):
            sdk.load(one_bundle, providers=nonsense)


def test_bad_questions_and_options_are_refused(one_bundle):
    with sdk.load(one_bundle) as task:
        before = task.ask(PICTURE, "What?").tokens
        for question, says in (
            ("x" * 100_000, "100,000 characters"),
            ("", "empty"),
            ("  \n", "empty"),
            (7, "must be a text"),
            ("what is <image>?", "special token"),
            ("word " * 1000, "at most 512"),
        ):
            with pytest.raises(RequestError, match=says):
                task.ask(PICTURE, question)
        for limit in (0, -1, 1.5, True):
            with pytest.raises(RequestError, match="max_new_tokens"):
                task.ask(PICTURE, "What?", max_new_tokens=limit)
        for labels in ([], [""], [3], "yes", ["</s>"]):
            with pytest.raises(RequestError, match=r"label|special"):
                task.rank(PICTURE, "What?", labels=labels)
        with pytest.raises(ImageError):
            task.ask(b"", "What?")
        assert task.ask(PICTURE, "What?").tokens == before  # and it still answers the same


def test_the_tasks_own_question_and_labels_are_the_default(one_bundle):
    with sdk.load(one_bundle) as task:
        assert task.ask(PICTURE).tokens == task.ask(PICTURE, "How many objects are there?").tokens
        assert sorted(row.label for row in task.rank(PICTURE)) == ["1", "2", "3", "4"]


def test_a_closed_task_says_so(one_bundle):
    task = sdk.load(one_bundle)
    task.close()
    with pytest.raises(RequestError, match="is closed"):
        task.ask(PICTURE, "What?")


def test_check_replays_the_golden_cases_and_lists_differences(copy):
    with sdk.load(copy) as task:
        assert task.check()["cases"] == 4
    file = copy / "golden" / "cases.json"
    content = json.loads(file.read_text())
    content["cases"][0]["tokens"][0] += 1
    content["cases"][1]["log_probabilities"][0] -= 0.5
    file.write_text(json.dumps(content))
    with sdk.load(copy, verify_files=False) as task, pytest.raises(CheckError) as caught:
        task.check()
    assert len(caught.value.differences) == 2
    assert isinstance(caught.value, TvpError)


@pytest.mark.parametrize("place", ["../secret.bin", "{folder}/secret.bin", "base/../../secret.bin", "link.bin"])
def test_a_graph_may_not_read_weights_from_elsewhere(copy, place):
    """Whatever onnxruntime would do: before version 1.24 it read any file."""
    np.arange(4, dtype=np.float32).tofile(copy.parent / "secret.bin")
    (copy / "link.bin").symlink_to(copy.parent / "secret.bin")
    model = reads_weights_from(place.format(folder=copy.parent))
    (copy / "preprocess.onnx").write_bytes(model)
    manifest = copy / "manifest.json"
    manifest.write_bytes(listed_anew(manifest.read_bytes(), "preprocess.onnx", model))
    with pytest.raises(BundleError, match=r"reads its weights from '.*\.bin', which is not a file"):
        sdk.load(copy)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", "zip", b"PK\x03\x04 and no more"])
def test_a_table_of_embeddings_that_is_none_is_a_bundle_error(copy, content):
    file = copy / "base" / "embed_tokens.npy"
    if content == "zip":
        np.savez(file.with_suffix(".npz"), words=np.zeros(3))
        file.with_suffix(".npz").rename(file)
    else:
        file.write_bytes(content)
    with pytest.raises(BundleError, match=r"embed_tokens\.npy"):
        sdk.load(copy, verify_files=False)


def test_names_that_no_folder_can_have_are_no_bundles(tmp_path, monkeypatch):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    for name in ("я" * 200, f"{'x' * 300}/count", "x" * 300, "\ud800", "a/" * 2500):
        with pytest.raises(BundleError):
            sdk.load(name)


def test_what_is_being_written_is_no_task(tmp_path, monkeypatch):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    for name in ("count", ".count.xyz.partial"):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        (tmp_path / "tasks" / name / "manifest.json").touch()
    assert tasks() == ["count"]


def test_a_batch_counts_its_picture_once(one_bundle):
    with sdk.load(one_bundle) as task:
        began = time.perf_counter()
        (answer,) = task.ask_many([(np.zeros((2000, 2000, 3), np.uint8), "What?")], max_new_tokens=1)
        passed = time.perf_counter() - began
    assert answer.timing["see"] < answer.timing["total"] < passed
    assert answer.timing["first_token"] < passed - answer.timing["see"]


def test_numpys_numbers_are_numbers(one_bundle):
    with sdk.load(one_bundle) as task:
        options = {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5), "seed": np.int64(1)}
        plain = {"max_new_tokens": 3, "temperature": 0.5, "seed": 1}
        assert task.ask(PICTURE, "What?", **options).tokens == task.ask(PICTURE, "What?", **plain).tokens
        assert len(task.ask_many([(PICTURE, "What?")] * 3, batch=np.int64(2))) == 3
        for bad in ({"max_new_tokens": np.True_}, {"seed": np.float32(1)}, {"temperature": np.float64("nan")}):
            with pytest.raises(RequestError):
                task.ask(PICTURE, "What?", **bad)


def test_a_question_that_is_too_long_is_told_before_any_is_answered(one_bundle, monkeypatch):
    with sdk.load(one_bundle) as task:
        monkeypatch.setattr(task, "pixel_values", lambda image: pytest.fail("a picture was read"))
        with pytest.raises(RequestError, match="this model reads at most"):
            task.ask_many([(PICTURE, "What?")] * 20 + [(PICTURE, "What? " * 400)])
        with pytest.raises(RequestError, match="must be a text"):
            task.ask_many([(PICTURE, 3)])


def test_a_folder_of_ones_own_does_not_hide_a_task(one_bundle, tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "count").symlink_to(one_bundle)
    (tmp_path / "here" / "count").mkdir(parents=True)
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    sdk.load("count").close()
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        sdk.load(tmp_path / "here" / "count")


def test_a_user_without_a_home_loads_a_folder(one_bundle, monkeypatch):
    monkeypatch.delenv("TVP_HOME", raising=False)

    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", none)
    sdk.load(one_bundle).close()
    assert sdk.tasks() == []
    with pytest.raises(BundleError, match="no bundle 'count'"):
        sdk.load("count")


def test_a_task_that_was_loaded_by_a_relative_path_goes_on_elsewhere(one_bundle, monkeypatch, tmp_path):
    monkeypatch.chdir(one_bundle.parent)
    with sdk.load(one_bundle.name) as task:
        monkeypatch.chdir(tmp_path)
        assert task.check()["cases"] == 4
