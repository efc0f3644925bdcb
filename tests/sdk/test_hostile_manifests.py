"""Manifests that say what is not so, sealed as if they were right: a TvpError, or the right answer. Nothing else:
no other exception, no wait, no memory that a number in a file asks for."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bundles import make_bundle, seal
from tvp import sdk
from tvp.sdk.cli import cli
from tvp.sdk.errors import BundleError, RequestError, TvpError
from tvp.sdk.formats.archive import unpack
from tvp.sdk.formats.manifest import ContrastiveManifest, GenerativeManifest

BUNDLES = Path(__file__).parents[1] / "goldens" / "format-2"
NAMES = ("llava_next", "instructblip-t5")
PICTURE = np.full((20, 30, 3), 90, np.uint8)
QUESTION = "What?"
LABELS = ("yes", "a star")
# What decides what is asked and how it is read; all else may be wrong, but never change an answer.
MEANING = {"layout", "kind", "question", "labels", "max_new_tokens", "start_token"}
MEANING |= {"captions", "scale", "bias", "scoring", "pad_token", "n_positions"}  # of a contrastive base
GROWTH = 300 * 2**20  # bytes; a tiny bundle and its answers take some megabytes
QUICK = settings(max_examples=100, deadline=20_000, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module", params=NAMES)
def bundle(request, tmp_path_factory):
    """A bundle, its two manifests as they are, and its answer; tests put both back."""
    folder = tmp_path_factory.mktemp("hostile") / "bundle"
    unpack(BUNDLES / f"{request.param}.tvp", folder)
    yield from _opened(folder)


@pytest.fixture(scope="module", params=[*NAMES, "clip"])
def any_bundle(request, tmp_path_factory):
    """As `bundle`, or one that only ranks labels."""
    folder = tmp_path_factory.mktemp("hostile")
    if request.param == "clip":
        folder = make_bundle("clip", folder)
    else:
        unpack(BUNDLES / f"{request.param}.tvp", folder := folder / "bundle")
    yield from _opened(folder)


def _opened(folder):
    manifests = [json.loads(file.read_bytes()) for file in (folder / "manifest.json", folder / "base/manifest.json")]
    with sdk.load(folder) as task:
        yield folder, *manifests, ask(task)  # the base stays open, so that what shares it loads quickly


@pytest.fixture(autouse=True)
def _bounded():
    """The whole process may not grow by more than GROWTH in one test: beyond it a MemoryError is raised."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def ask(task):
    """All that a task can be asked, with the longest answer that it may give: tokens and the order of labels."""
    view = task.see(PICTURE)
    ranked = [row.label for row in view.rank(QUESTION, labels=LABELS)]
    if isinstance(task.model.manifest, ContrastiveManifest):
        return view.ask(QUESTION).text, ranked
    answer = view.ask(QUESTION, max_new_tokens=6)
    "".join(task.stream(PICTURE, QUESTION, time_limit=0.01))  # the bundle's own limit of tokens
    task.ask_many([(PICTURE, QUESTION)] * 2, time_limit=0.01)
    return answer.tokens, ranked


def write(folder, task, base):
    """Seal both; a task that is as it was, but for its other fields, names the base as it is now."""
    (folder / "base" / "manifest.json").write_bytes(sealed := seal(base))
    if task.get("base") == base.get("sha256"):
        task = {**task, "base": json.loads(sealed)["sha256"]}
    (folder / "manifest.json").write_bytes(seal(task))


NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf")])
TEXTS = st.text(max_size=20) | st.sampled_from(["", "x" * 70_000, "{image}", "<image>{question}", "../x", "a\0b", "{"])
ODD = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed(draw, content):
    """A manifest with one or two places changed, and the names of the top-level keys that were."""
    content, touched = copy.deepcopy(content), set()
    for _ in range(draw(st.integers(1, 2))):
        node, top = content, None
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            top = key if top is None else top
            if isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            how = draw(st.sampled_from(["set", "set", "near", "delete", "add"]))
            if how == "delete":
                del node[key]
            elif how == "add" and isinstance(node, dict):
                node[draw(TEXTS)] = copy.deepcopy(node[key])
            elif how == "near" and type(node[key]) is int:
                node[key] += draw(st.sampled_from([-1, 1, 64]))
            else:
                node[key] = draw(ODD)
            touched.add(top)
            break
    return content, touched


def survive(folder, expected, touched):
    """Load and ask: a TvpError, or an answer, which is the right one where no meaning was changed."""
    try:
        with sdk.load(folder) as task:
            found = ask(task)
            if isinstance(task.model.manifest, GenerativeManifest):
                assert all(0 <= token < task.model.manifest.n_vocab for token in found[0])
    except TvpError:
        return False
    if not touched & MEANING:
        assert found == expected
    return True


@pytest.mark.parametrize("which", ["task", "base"])
def test_a_changed_manifest_is_an_error_or_answers_right(any_bundle, which):
    folder, task, base, expected = any_bundle
    outcomes = []

    @settings(QUICK, max_examples=80 if which == "task" else 160)  # most of a base's are refused, which is quick
    @given(st.data())
    def run(data):
        odd, touched = data.draw(changed(task if which == "task" else base))
        try:
            write(folder, *((odd, base) if which == "task" else (task, odd)))
        except UnicodeEncodeError:  # no bytes for half a character: no such file
            return
        outcomes.append(survive(folder, expected, touched))

    run()
    assert outcomes.count(False) > 30
    assert outcomes.count(True) > 5


def test_random_bytes_are_a_bundle_error(any_bundle):
    folder, task, base, _ = any_bundle

    @QUICK
    @given(st.binary(max_size=200) | ODD.map(lambda value: json.dumps(value).encode()), st.booleans(), st.booleans())
    def run(data, of_base, inside):
        write(folder, task, base)
        file = folder / ("base/manifest.json" if of_base else "manifest.json")
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] + data + whole[len(whole) // 2 :] if inside and data else data)
        with pytest.raises(BundleError, match=r"manifest\.json|was exported with the base"):
            sdk.load(folder)

    run()


SIZES = ("n_layers", "n_kv_heads", "head_size", "n_text", "n_vocab", "n_image_tokens", "position_axes", "start_token")


@pytest.mark.parametrize("value", [1, 2, 3, 5, 1000, 4095])
def test_a_base_that_its_graphs_contradict_is_refused(bundle, value):
    """At load, all but the number of image tokens where the graph leaves that open: then at the first question."""
    folder, task, base, _ = bundle
    keys = [key for key in SIZES if key in base]  # start_token is seq2seq's, position_axes causal's
    assert len(keys) == len(SIZES) - 1
    for key in keys:
        _contradict(folder, task, base, key, value)


def _contradict(folder, task, base, key, value):
    if value == base[key]:
        value += 1
    write(folder, task, {**base, key: value})
    if key == "n_image_tokens":
        with pytest.raises(BundleError, match=f"{base[key]}.*manifest says.*{value}"), sdk.load(folder) as loaded:
            loaded.ask(PICTURE, QUESTION)
        return
    if key == "start_token" and value < base["n_vocab"] and base[key] >= 0:
        return  # another token, which no graph knows of
    with pytest.raises(BundleError, match=r"manifest|position_axes|does not list") as caught:
        sdk.load(folder)
    assert len(str(caught.value)) > 60
    del caught  # it holds this frame, which holds it: the graphs that were opened would stay


@pytest.mark.parametrize("end", [[10**6], [2**31 - 1], [2**40], [-1], [True], ["2"], []])
def test_end_tokens_are_in_the_vocabulary(bundle, end):
    folder, task, base, _ = bundle
    write(folder, task, {**base, "layout": {**base["layout"], "end": end}})
    with pytest.raises(BundleError, match=r"names the token|end must list"):
        sdk.load(folder)


@pytest.mark.parametrize(
    "prompt", ["{question} {image} a:", "{image}{image}{question}", "{image} a:", "{image}" + "{question}" * 9]
)
def test_no_question_is_kept_for_the_next(bundle, prompt):
    """What is before the question stays in the cache."""
    folder, task, base, _ = bundle
    write(folder, task, {**base, "layout": {**base["layout"], "prompt": prompt}})
    with pytest.raises(BundleError, match=r"layout\.prompt must hold"):
        sdk.load(folder)


def test_inspecting_a_strangers_bundle_shows_one_line_a_fact(bundle):
    folder, task, base, _ = bundle
    write(folder, {**task, "name": "a\nbase          trusted\x1b[2J"}, base)
    shown = CliRunner().invoke(cli, ["inspect", str(folder)]).output
    assert "a\\nbase          trusted\\x1b[2J" in shown
    assert "\x1b" not in shown


def test_a_graph_of_another_shape_is_named(bundle):
    """Each graph in the place of each other one."""
    folder, task, base, expected = bundle
    graphs = [name for name in base["files"] if name.endswith(".onnx")]
    for name in graphs:
        for other in {*graphs} - {name}:
            files = {**base["files"], name: base["files"][other]}
            kept = (folder / "base" / name).read_bytes()
            shutil.copyfile(folder / "base" / other, folder / "base" / name)
            write(folder, task, {**base, "files": files})
            with pytest.raises(BundleError, match=rf"{name}.*(has|lacks)"):
                sdk.load(folder)
            (folder / "base" / name).write_bytes(kept)
    kept = (folder / "preprocess.onnx").read_bytes()
    shutil.copyfile(folder / "base" / "vision_encoder.onnx", folder / "preprocess.onnx")
    write(folder, {**task, "files": {**task["files"], "preprocess.onnx": base["files"]["vision_encoder.onnx"]}}, base)
    with pytest.raises(BundleError, match=r"preprocess\.onnx (has|lacks) the input"):
        sdk.load(folder)
    (folder / "preprocess.onnx").write_bytes(kept)
    write(folder, task, base)
    with sdk.load(folder) as loaded:
        assert ask(loaded) == expected


def test_no_number_of_tokens_and_no_number_of_labels_takes_memory_by_itself(bundle):
    """Limits are limits, not lengths; the memory bound of this file would end what reserves room for them."""
    folder, task, base, expected = bundle
    many = {**task, "max_new_tokens": 2**16 - 1, "labels": [f"{i}" for i in range(3000)]}
    write(folder, many, {**base, "n_positions": 2**24 - 1})
    with sdk.load(folder) as loaded:
        assert ask(loaded) == expected
        assert len(loaded.rank(PICTURE, QUESTION)) == 3000
        "".join(loaded.stream(PICTURE, QUESTION, max_new_tokens=10**12, time_limit=0.1))
        loaded.ask_many([(PICTURE, QUESTION)] * 3, max_new_tokens=10**12, time_limit=0.03)


def test_ranking_many_labels_scores_each_as_alone(bundle):
    folder, task, base, _ = bundle
    write(folder, task, base)
    labels = [f"a {i} star" if i % 3 else f"{i}" for i in range(40)]
    with sdk.load(folder) as loaded:
        view = loaded.see(PICTURE)
        alone = {label: view.rank(QUESTION, labels=[label])[0].score for label in labels}
        together = {row.label: row.score for row in view.rank(QUESTION, labels=labels)}
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("text", ["\ud800", "What is \udfff?", "a" * 8193])
def test_no_text_that_cannot_be_read_is_asked(bundle, text):
    folder, task, base, expected = bundle
    write(folder, task, base)
    with sdk.load(folder) as loaded:
        for call in (loaded.ask, loaded.stream, loaded.rank):
            with pytest.raises(RequestError, match=r"half a character|characters"):
                call(PICTURE, text)
        with pytest.raises(RequestError, match=r"half a character|characters"):
            loaded.ask_many([(PICTURE, text)])
        if len(text) < 100:
            with pytest.raises(RequestError, match="half a character"):
                loaded.rank(PICTURE, QUESTION, labels=[text])
        assert ask(loaded) == expected


def test_golden_cases_are_read_strictly(bundle, request):
    """Any change to them: a BundleError, a difference, or nothing that matters."""
    folder, task, base, _ = bundle
    write(folder, task, base)
    file = folder / "golden" / "cases.json"
    whole = file.read_bytes()
    content = json.loads(whole)
    cases = content["cases"] = content["cases"][:2]
    outcomes = []
    request.addfinalizer(lambda: file.write_bytes(whole))

    with sdk.load(folder) as loaded:

        @QUICK
        @given(st.data())
        def run(data):
            odd, _ = data.draw(changed(content))
            file.write_text(json.dumps(odd))
            try:
                loaded.check()
                outcomes.append("passed")
            except TvpError as error:
                outcomes.append(type(error).__name__)

        run()
        for data in (b"", b"[]", b"{}", b"null", b"[" * 100_000, b"\xff", b"1" * 5000, b"[[]]", b"[{}]"):
            file.write_bytes(data)
            with pytest.raises(BundleError, match=r"cases\.json"):
                loaded.check()
        for name in ("../cases.json", "/etc/passwd", "..", "", "a\\b", "/dev/zero"):
            file.write_text(json.dumps({**content, "cases": [{**cases[0], "picture": name}]}))
            with pytest.raises(BundleError, match="outside of its folder"):
                loaded.check()
        file.write_bytes(whole)
        assert loaded.check()["cases"] == 4
    assert outcomes.count("BundleError") > 30
    assert outcomes.count("passed") > 5


@pytest.mark.parametrize("name", ["manifest.json", "base/manifest.json", "golden/cases.json", "golden/0.png"])
def test_a_pipe_is_not_waited_for(bundle, name, tmp_path):
    folder, task, base, _ = bundle
    write(folder, task, base)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    os.mkfifo(tmp_path / "copy" / name)
    with pytest.raises(TvpError), sdk.load(tmp_path / "copy", verify_files=False) as loaded:
        loaded.check()
