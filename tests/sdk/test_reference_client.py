"""The bundle page is enough to write a client, and that client and the sdk answer alike."""

from __future__ import annotations

import ast
import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.bundles import make_bundle, seal
from tests.sdk import reference_client
from tests.sdk.reference_client import Client, is_intact
from tvp import sdk
from tvp.sdk.errors import BundleError, RequestError

PACKED = sorted((Path(__file__).parents[1] / "goldens" / "format-2").glob("*.tvp"))
MADE = ["clip", "siglip", "paligemma", "visualglm", "qwen2vl"]
TOLERANCE = 1e-3  # of a log-probability
QUESTIONS = ["How many objects are there?", " this is a photo of", "Is {image} or {answer} a question"]
LABELS = ["3", "a red cup on the table", "two", "{question}"]


@pytest.fixture(scope="module", params=[*PACKED, *MADE], ids=lambda param: getattr(param, "stem", param))
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("bundle")
    if request.param in MADE:
        return make_bundle(request.param, place)
    zipfile.ZipFile(request.param).extractall(place)
    return place


@pytest.fixture(scope="module")
def client(folder):
    return Client(folder)


@pytest.fixture(scope="module")
def task(folder):
    with sdk.load(folder, providers="cpu") as task:
        yield task


@pytest.fixture
def copy(tmp_path):
    """A causal bundle to be broken."""
    zipfile.ZipFile(next(file for file in PACKED if file.stem == "llava_next")).extractall(tmp_path / "copy")
    return tmp_path / "copy"


def cases(folder):
    return json.loads((folder / "golden" / "cases.json").read_bytes())["cases"]


def test_the_client_knows_nothing_of_tvp():
    imports = [
        node
        for node in ast.walk(ast.parse(Path(reference_client.__file__).read_bytes()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(imports) > 5
    assert not [ast.unparse(node) for node in imports if re.search(r"\b(tvp|tests)\b|from \.", ast.unparse(node))]


def test_golden_cases(folder, client):
    assert cases(folder)
    for case in cases(folder):
        found = client.replay(case)
        scores = "scores" if case["kind"] == "ranking" else "log_probabilities"
        assert {**found, scores: 0} == {name: 0 if name == scores else case[name] for name in found}
        assert found[scores] == pytest.approx(case[scores], rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("question", QUESTIONS)
def test_labels_are_ranked_as_by_the_sdk(folder, client, task, question):
    picture = folder / "golden" / "1.png"
    mine, theirs = client.rank(picture, question, LABELS), task.rank(picture, question, labels=LABELS)
    assert [label for label, _ in mine] == [row.label for row in theirs]
    assert [score for _, score in mine] == pytest.approx([row.score for row in theirs], rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_those_of_the_sdk(folder, client, task, question):
    picture, theirs = folder / "golden" / "1.png", task.ask(folder / "golden" / "1.png", question, max_new_tokens=6)
    if task.kind == "contrastive":
        assert client.rank(picture, question, task.labels)[0][0] == theirs.text
        return
    tokens, scores, text = client.ask(picture, question, 6)
    assert (tokens, text) == (list(theirs.tokens), theirs.text)
    assert scores == pytest.approx(theirs.log_probabilities, rel=0, abs=TOLERANCE)


def test_a_special_token_is_refused_as_by_the_sdk(folder, client, task):
    picture = folder / "golden" / "0.png"
    special = {token.content for token in client.tokenizer.get_added_tokens_decoder().values() if token.special}
    assert {"<s>", "<unk>"} <= special
    for token in special:
        for question, label in ((f"a {token}?", "b"), ("a?", f"b{token}")):
            if token == "<unk>" and task.kind != "contrastive":
                client.rank(picture, question, [label])
                task.rank(picture, question, labels=[label])
                continue
            with pytest.raises(ValueError, match="special token"):
                client.rank(picture, question, [label])
            with pytest.raises(RequestError, match="special token"):
                task.rank(picture, question, labels=[label])


def test_an_answer_ends_where_the_model_reads_no_further(copy):
    picture, question = copy / "golden" / "0.png", QUESTIONS[0]
    client = Client(copy)
    n_prompt = client.begin(picture, question)[1][0]
    for n_more in (-1, 0, 2):
        base = {**json.loads((copy / "base" / "manifest.json").read_bytes()), "n_positions": n_prompt + n_more}
        (copy / "base" / "manifest.json").write_bytes(seal(base))
        digest = json.loads((copy / "base" / "manifest.json").read_bytes())["sha256"]
        task = {**json.loads((copy / "manifest.json").read_bytes()), "base": digest}
        (copy / "manifest.json").write_bytes(seal(task))
        with sdk.load(copy, providers="cpu") as opened:
            if n_more < 0:
                with pytest.raises(RequestError, match="reads at most"):
                    opened.ask(picture, question)
                with pytest.raises(ValueError, match="more tokens than"):
                    Client(copy).ask(picture, question, 16)
            else:
                tokens = Client(copy).ask(picture, question, 16)[0]
                assert tokens == list(opened.ask(picture, question, max_new_tokens=16).tokens)
                assert len(tokens) == n_more + 1


def test_the_digest_accepts_bundles(folder):
    for manifest in (folder / "manifest.json", folder / "base" / "manifest.json"):
        assert is_intact(manifest.read_bytes())


def accepts(data):
    try:
        return is_intact(data)
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON any more, or no digest in it
        return False


@pytest.mark.parametrize("manifest", ["manifest.json", "base/manifest.json"])
def test_the_digest_refuses_a_manifest_with_any_one_byte_changed(copy, manifest):
    whole = (copy / manifest).read_bytes()
    for i in range(len(whole)):
        assert not accepts(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]), f"byte {i}"


def test_the_digest_refuses_a_manifest_that_holds_it_twice(copy):
    twice = seal({**json.loads((copy / "manifest.json").read_bytes()), "again": "0" * 64})
    assert twice.count(json.loads(twice)["sha256"].encode()) == 2
    assert not is_intact(twice)
    (copy / "manifest.json").write_bytes(twice)
    with pytest.raises(BundleError, match="sha256"):
        sdk.load(copy)


def test_a_copy_with_one_changed_byte_is_refused(copy, tmp_path):
    files = [file.relative_to(copy) for file in copy.rglob("*") if file.is_file()]
    assert len(files) > 10
    for name in files:
        broken = shutil.copytree(copy, tmp_path / "broken", dirs_exist_ok=True)
        whole = bytearray((broken / name).read_bytes())
        whole[len(whole) // 2] ^= 1
        (broken / name).write_bytes(whole)
        with pytest.raises(ValueError):  # noqa: PT011 (a changed manifest may be no JSON any more)
            Client(broken)
        with pytest.raises(BundleError):
            sdk.load(broken)
