"""Bundles of contrastive models: questions that may be asked, that are refused, and texts that are remembered."""

from __future__ import annotations

import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from tests.bundles import flip_bytes, make_bundle, seal
from tvp import sdk
from tvp.sdk import Ranked
from tvp.sdk._bench import bench
from tvp.sdk._check import compare
from tvp.sdk._models import contrastive as contrastive_module
from tvp.sdk._models.contrastive import ContrastiveModel
from tvp.sdk.cli import cli
from tvp.sdk.errors import BundleError, CheckError, RequestError
from tvp.sdk.formats.golden import RankingCase, falls
from tvp.sdk.formats.layout import CaptionTemplates
from tvp.sdk.formats.manifest import ContrastiveManifest, FileEntry, read_base_manifest

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def contrastive(tmp_path_factory):
    return make_bundle("clip", tmp_path_factory.mktemp("contrastive"))


@pytest.fixture
def copy(contrastive, tmp_path):
    return shutil.copytree(contrastive, tmp_path / "copy")


def without_labels(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["labels"] = []
    (folder / "manifest.json").write_bytes(seal(content))


def test_a_question_and_a_label_become_a_text():
    captions = CaptionTemplates()
    for question in ("Is it?", "  Is it?  ", "", "  "):
        assert captions.texts(question, ["dog", "cat"]) == ["a photo of a dog", "a photo of a cat"]
    assert captions.texts(" This is a photo of the digit ", ["7"]) == ["This is a photo of the digit 7"]
    # what they hold is not read again
    assert captions.texts("a {answer}", ["{question}", "x"]) == ["a {answer} {question}", "a {answer} x"]
    assert CaptionTemplates("{answer}: {question}", "it is {answer}").texts("so", ["x"]) == ["x: so"]


def test_it_writes_nothing_that_could_have_a_structure(contrastive):
    with sdk.load(contrastive) as task:
        for options in ({"choices": ["a"]}, {"regex": "a"}, {"schema": {"type": "string"}}):
            with pytest.raises(RequestError, match=f"{next(iter(options))} has no meaning.*choices to rank"):
                task.ask(PICTURE, "What?", **options)


def test_what_cannot_be_asked_is_refused(contrastive):
    with sdk.load(contrastive) as task:
        before = task.ask(PICTURE).log_probabilities
        for question, says in (
            ("x" * 100_000, "100,000 characters"),
            ("", "empty"),
            (7, "must be a text"),
            ("what is </S>?", "The question contains a special token"),
            ("a <|endoftext|>", "The question contains a special token"),
        ):
            for way in (task.ask, task.rank, task.stream, task.see(PICTURE).ask):
                with pytest.raises(RequestError, match=says):
                    way(*(() if way.__self__ is not task else (PICTURE,)), question)
            with pytest.raises(RequestError, match=says):
                task.ask_many([(PICTURE, "What?"), (PICTURE, question)])
        for labels, says in (
            ([], "no labels to rank"),
            ([""], "not empty"),
            ([3], "not empty"),
            ("yes", "is the text"),
            (["a", "<s>"], "The label contains a special token"),
            (["x" * 9000], "The label has 9,000 characters"),
        ):
            with pytest.raises(RequestError, match=says):
                task.rank(PICTURE, "What?", labels=labels)
        with pytest.raises(RequestError, match="no tokens to decode"):
            task.see(PICTURE).decode("What?", 3)
        assert task.ask(PICTURE).log_probabilities == before


def test_options_of_free_answers(contrastive):
    """Checked as always; what would change an answer's text is refused, and what only bounds it is not needed."""
    with sdk.load(contrastive) as task:
        expected = task.ask(PICTURE).text
        view = task.see(PICTURE)
        for options in ({"temperature": 0.5}, {"stop": "x"}, {"temperatur": 1}, {"max_new_tokens": 0}):
            for way in (
                lambda **o: task.ask(PICTURE, **o),
                lambda **o: task.stream(PICTURE, **o),
                lambda **o: task.ask_many([(PICTURE, None)], **o),
                lambda **o: view.ask(**o),
                lambda **o: view.stream(**o),
            ):
                with pytest.raises(RequestError, match=next(iter(options))):
                    way(**options)
        event = threading.Event()
        assert (
            task.ask(PICTURE, max_new_tokens=1, temperature=0, seed=3, time_limit=1e-9, cancel=event).text == expected
        )


def test_without_labels_only_rank_answers(copy, monkeypatch):
    without_labels(copy)
    with sdk.load(copy) as task:
        ranked = task.rank(PICTURE, labels=["1", "2"])
        assert {row.label for row in ranked} == {"1", "2"}
        view = task.see(PICTURE)
        monkeypatch.setattr(task, "see", pytest.fail)  # refused before the picture is encoded
        for way in (
            lambda: task.ask(PICTURE),
            lambda: task.stream(PICTURE),
            lambda: task.ask_many([(PICTURE, None)]),
            view.ask,
            view.stream,
        ):
            with pytest.raises(RequestError, match=r"none of its own. Give them to rank: task\.rank\("):
                way()
        with pytest.raises(RequestError, match="no labels to rank"):
            view.rank()
        assert bench(copy, n_runs=1)["ask"] > 0  # of the golden case's labels


def test_a_score_is_a_log_probability(contrastive, monkeypatch):
    """Among the labels (softmax), or by itself (sigmoid): planted features, sums and signs by hand."""
    manifest = SimpleNamespace(scale=2.0, bias=-1.0, scoring="softmax")
    features = {"a": np.array([1.0, 0], np.float32), "b": np.array([0, 1], np.float32)}
    model = SimpleNamespace(manifest=manifest, _features_of=features.get)
    seen = np.array([0.6, 0.8], np.float32)
    logits = np.array([0.2, 0.6])
    expected = np.log(np.exp(logits) / np.exp(logits).sum())
    np.testing.assert_allclose(ContrastiveModel._scores(model, seen, ["a", "b"]), expected, atol=1e-6)
    manifest.scoring = "sigmoid"
    expected = np.log(1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(ContrastiveModel._scores(model, seen, ["a", "b"]), expected, atol=1e-6)
    manifest.scale = 1000.0  # and nothing overflows
    np.testing.assert_allclose(ContrastiveModel._scores(model, -seen, ["a", "b"]), [-601, -801], atol=1e-3)


def counted(model, monkeypatch):
    """The texts that the text encoder runs for, as they come."""
    runs = []
    real = contrastive_module.run

    def run(session, output, inputs):
        if session is model.text_encoder:
            runs.append(inputs["input_ids"].tolist())
        return real(session, output, inputs)

    monkeypatch.setattr(contrastive_module, "run", run)
    return runs


def test_texts_are_read_once_for_all_tasks_on_a_base(contrastive, copy, monkeypatch):
    with sdk.load(contrastive) as task, sdk.load(copy) as other:
        assert task.model is other.model
        runs = counted(task.model, monkeypatch)
        labels = ["a new one", "another", "a new one"]
        first = task.rank(PICTURE, labels=labels)
        assert len(runs) == 2
        assert other.rank(PICTURE, labels=labels) == first
        assert len(runs) == 2
        assert [row.score for row in first if row.label == "a new one"] == [
            next(row.score for row in first if row.label == "a new one")
        ] * 2


def test_what_is_remembered_is_bounded(contrastive, monkeypatch):
    monkeypatch.setattr(contrastive_module, "N_TEXTS", 3)
    with sdk.load(contrastive) as task:
        task.model._known.clear()
        labels = ["1", "2", "3", "4", "5"]
        ranked = task.rank(PICTURE, labels=labels)  # more at once than are remembered
        assert list(task.model._known) == [f"a photo of a {label}" for label in ("3", "4", "5")]
        runs = counted(task.model, monkeypatch)
        task.rank(PICTURE, labels=["3", "6"])  # the last used stays
        assert "a photo of a 3" in task.model._known
        assert "a photo of a 4" not in task.model._known
        assert len(runs) == 1
        assert task.rank(PICTURE, labels=labels) == ranked


def test_many_threads_get_the_same_answers(contrastive, monkeypatch):
    monkeypatch.setattr(contrastive_module, "N_TEXTS", 5)  # so that texts come and go
    sets = [[f"label {i + j}" for j in range(4)] for i in range(6)]
    with sdk.load(contrastive) as task:
        views = [task.see(PICTURE), task.see(PICTURE[::-1])]
        expected = [[view.rank(labels=labels) for labels in sets] for view in views]
        failures = []

        def work(start):
            try:
                for turn in range(30):
                    i, view = (start + turn) % len(sets), turn % 2
                    if views[view].rank(labels=sets[i]) != expected[view][i]:
                        failures.append((view, i))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert failures == []
        assert len(task.model._known) <= 5


def test_a_closed_task_says_so(contrastive):
    task = sdk.load(contrastive)
    view = task.see(PICTURE)
    task.close()
    with pytest.raises(RequestError, match="is closed"):
        task.ask(PICTURE, "What?")
    assert view.rank("What?", labels=["a", "b"])  # a view keeps its base


def test_the_manifest_is_read_strictly(copy):
    file = copy / "base" / "manifest.json"
    whole = json.loads(file.read_text())
    assert isinstance(read_base_manifest(file), ContrastiveManifest)
    for change, says in (
        ({"kind": "open"}, "kind is 'open'"),
        ({"kind": None}, "kind is None"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"scale": "1"}, "scale is 1; it must be a finite number"),
        ({"bias": True}, "bias is True; it must be a finite number"),
        ({"scoring": "argmax"}, "scoring is 'argmax'"),
        ({"n_positions": 0}, "n_positions is 0"),
        ({"n_features": -1}, "n_features is -1"),
        ({"pad_token": -2}, "pad_token is -2"),
        ({"captions": {"begun": "x"}}, "asked must be of type str"),
        ({"captions": []}, "captions must be of type dict"),
        ({"made_from": 3}, "made_from"),
        ({"files": {"../x": {"size": 1, "sha256": "0"}}}, "outside of the bundle"),
    ):
        file.write_bytes(seal(whole | change))
        with pytest.raises(BundleError, match=says):
            read_base_manifest(file)


@pytest.mark.parametrize("name", ["vision_encoder.onnx", "text_encoder.onnx", "tokenizer.json"])
def test_a_missing_part_is_named(copy, name):
    file = copy / "base" / "manifest.json"
    base = json.loads(file.read_text())
    del base["files"][name]
    resealed(copy, base)
    with pytest.raises(BundleError, match=f"does not list {name}"):
        sdk.load(copy)


def resealed(copy, base):
    (copy / "base" / "manifest.json").write_bytes(seal(base))
    task = json.loads((copy / "manifest.json").read_text())
    task["base"] = read_base_manifest(copy / "base" / "manifest.json").digest
    (copy / "manifest.json").write_bytes(seal(task))


def test_a_manifest_that_is_not_its_graphs_is_named(copy):
    base = json.loads((copy / "base" / "manifest.json").read_text())
    resealed(copy, base | {"n_features": 7})
    with pytest.raises(BundleError, match=r"'image_embeds' has the shape .*24.*manifest says .*7"):
        sdk.load(copy)
    for change in ({"n_positions": 1}, {"n_positions": 2**16 - 1, "pad_token": 0}):
        resealed(copy, base | change)
        with pytest.raises(BundleError, match=r"cannot cut a text to 1 tokens|text_encoder\.onnx"):  # noqa: SIM117
            with sdk.load(copy) as task:
                task.rank(PICTURE)


def test_half_a_character_is_refused(contrastive):
    with sdk.load(contrastive) as task:
        for arguments in ({"question": "a \ud800"}, {"labels": ["a dog", "\udcff"]}):
            with pytest.raises(RequestError, match="half a character"):
                task.rank(PICTURE, **arguments)


def test_check_replays_the_golden_cases_and_lists_differences(copy):
    with sdk.load(copy) as task:
        report = task.check()
        assert report["cases"] == 4
        assert report["largest_difference"] < 1e-4
    file = copy / "golden" / "cases.json"
    content = json.loads(file.read_text())
    cases = content["cases"]
    cases[0]["scores"] = cases[0]["scores"][::-1]  # another order
    cases[1]["scores"][2] -= 2e-3  # and another score, in the same order or not
    file.write_text(json.dumps(content))
    with sdk.load(copy, verify_files=False) as task, pytest.raises(CheckError) as caught:
        task.check()
    assert len(caught.value.differences) == 2
    assert "ranked" in caught.value.differences[0]


def test_an_order_is_one_but_for_ties():
    assert falls([])
    assert falls([-1.0, -1.0, -2.0])
    assert falls([-1.00005, -1.0, -2.0])
    assert not falls([-1.0002, -1.0, -2.0])
    assert not falls([-2.0, -3.0, -1.0])
    # many small steps up are a large one
    assert not falls([-1.0 + i * 9e-5 for i in range(5)])


def test_the_commands(contrastive, tmp_path):
    picture = str(contrastive / "golden" / "0.png")

    def run(*arguments):
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    case = json.loads((contrastive / "golden" / "cases.json").read_text())["cases"][0]
    assert run("ask", contrastive, picture).strip() == case["text"]
    assert run("ask", contrastive, picture, "--stream").strip() == case["text"]
    said = json.loads(run("ask", contrastive, picture, "--json"))
    assert (said["finish"], said["tokens"]) == ("label", [])
    assert run("ask", contrastive, picture, "--rank").split()[1] == case["text"]
    labelled = run("ask", contrastive, picture, "--label", "x", "--label", "y").splitlines()
    assert {line.split()[1] for line in labelled} == {"x", "y"}
    assert "4 of 4 golden cases equal" in run("check", contrastive)
    shown = run("inspect", contrastive)
    assert "labels only, by softmax" in shown
    assert "40 tokens at most" in shown
    assert "tokens a second" not in run("bench", contrastive, "--runs", "1")
    facts = json.loads(run("bench", contrastive, "--runs", "1", "--json"))
    assert facts["n_new_tokens"] == 0
    assert facts["token"] is None
    run("pack", contrastive, tmp_path / "one.tvp")
    assert run("ask", tmp_path / "one.tvp", picture).strip() == case["text"]
    run("unpack", tmp_path / "one.tvp", tmp_path / "folder")
    assert run("check", tmp_path / "folder")
    files = read_base_manifest(tmp_path / "folder" / "base" / "manifest.json").files
    assert all(isinstance(entry, FileEntry) for entry in files.values())
    assert len(files) == 3


def test_one_flipped_byte_in_any_file_is_named(copy):
    assert flip_bytes(copy, 200) > 8


def test_a_score_that_is_no_number_is_a_difference():
    """Python's max leaves out what compares with nothing."""
    ranked = [Ranked("a", -0.5), Ranked("b", float("nan"))]
    view = SimpleNamespace(rank=lambda *_, **__: ranked)
    case = RankingCase("0.png", "What?", ("a", "b"), (-0.5, -2.0))
    for tolerance in (1e-3, float("inf")):
        assert "scores differ by nan" in compare(view, case, tolerance)[0]
