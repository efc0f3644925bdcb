"""Editing a bundle's question and labels: everything but them stays, and what no longer fits is asked anew."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import make_bundle, seal
from tvp import sdk
from tvp.sdk import _edit
from tvp.sdk._edit import edit
from tvp.sdk.errors import BundleError, CheckError, RequestError
from tvp.sdk.formats import archive
from tvp.sdk.formats.golden import read_cases

GOLDENS = Path(__file__).parents[1] / "goldens"
PICTURE = np.full((20, 30, 3), 90, np.uint8)
NEW = "Which number is it?"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle of a model that ranks; golden ones of it there are not."""
    return make_bundle("clip", tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clip(made, tmp_path):
    shutil.copytree(made, tmp_path / "here" / "count")
    return tmp_path / "here" / "count"


@pytest.fixture(params=["format-1/llava_next", "format-2/instructblip-t5", "clip"])
def bundle(request, tmp_path):
    """A bundle of each kind, one of format 1."""
    if request.param == "clip":
        return request.getfixturevalue("clip")
    return unpacked(request.param, tmp_path / "here" / "count")


def unpacked(name, folder):
    zipfile.ZipFile(GOLDENS / f"{name}.tvp").extractall(folder)
    return folder


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def resealed(folder, **changed):
    file = folder / "manifest.json"
    file.write_bytes(seal({**json.loads(file.read_bytes()), **changed}))


def test_question_and_labels_change_and_nothing_else(bundle):
    """The answers to what was asked before are the same bits; the new question is asked by default."""
    before, question = files_of(bundle), json.loads((bundle / "manifest.json").read_bytes()).get("question")
    with sdk.load(bundle) as loaded:
        labels = loaded.labels
        old = loaded.rank(PICTURE, "How many objects are there?", labels=labels)
    done = edit(bundle, question=NEW, labels=["one", "two"])
    assert done.before.labels == labels
    assert (done.after.question, done.after.labels) == (NEW, ("one", "two"))
    assert done.n_asked == done.n_cases > 0
    with sdk.load(bundle) as loaded:
        assert loaded.rank(PICTURE, "How many objects are there?", labels=labels) == old
        assert {row.label for row in loaded.rank(PICTURE)} == {"one", "two"}
        assert str(loaded.ask(PICTURE)) == str(loaded.ask(PICTURE, NEW))
        assert loaded.check()["cases"] == done.n_cases
    after = files_of(bundle)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"manifest.json", "golden/cases.json"}
    assert all(case.anew and case.question == NEW for case in read_cases(bundle))
    assert [path.name for path in bundle.parent.iterdir()] == ["count"], "nothing is left beside it"
    again = edit(bundle, name="numbers")
    assert (again.after.name, again.after.question, again.n_asked) == ("numbers", NEW, 0)
    assert question != NEW


def test_labels_alone_leave_written_answers_as_they_are(tmp_path):
    folder = unpacked("format-2/instructblip-t5", tmp_path / "count")
    before = read_cases(folder)
    done = edit(folder, labels=["one", "two"])
    assert (done.n_asked, read_cases(folder)) == (0, before)


def test_a_linked_file_is_not_written_into(clip, tmp_path):
    """Bundles share files by hard links: another bundle of the same files stays as it is."""
    twin = tmp_path / "twin"
    shutil.copytree(clip, twin, copy_function=os.link)
    before = files_of(twin)
    edit(clip, question=NEW)
    assert files_of(twin) == before
    assert (clip / "base" / "manifest.json").stat().st_ino == (twin / "base" / "manifest.json").stat().st_ino


def test_a_packed_bundle_is_edited_too(clip, tmp_path):
    file = tmp_path / "count.tvp"
    archive.pack(clip, file)
    edit(file, question=NEW)
    edit(clip, question=NEW)
    archive.pack(clip, tmp_path / "folder.tvp")
    assert file.read_bytes() == (tmp_path / "folder.tvp").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count.tvp", "folder.tvp", "here"]


def test_fields_of_a_later_version_stay(clip):
    resealed(clip, invented={"by": "tomorrow"})
    edit(clip, question=NEW)
    assert json.loads((clip / "manifest.json").read_bytes())["invented"] == {"by": "tomorrow"}


def test_a_bundle_that_answers_otherwise_here_gets_no_new_cases(clip):
    """Planted: a golden case that this machine does not reproduce."""
    file = clip / "golden" / "cases.json"
    content = json.loads(file.read_bytes())
    content["cases"][0]["scores"][0] += 1
    file.write_text(json.dumps(content))
    listed = json.loads((clip / "manifest.json").read_bytes())["files"]
    digest = sdk.formats.integrity.sha256_of(file)
    resealed(clip, files=listed | {"golden/cases.json": {"size": file.stat().st_size, "sha256": digest}})
    before = files_of(clip)
    with pytest.raises(CheckError, match="does not answer here"):
        edit(clip, question=NEW)
    assert files_of(clip) == before


def test_an_edit_that_fails_changes_nothing(clip, monkeypatch):
    before = files_of(clip)
    monkeypatch.setattr(_edit, "sealed", lambda content: b"{}")
    with pytest.raises(BundleError, match="damaged"):
        edit(clip, question=NEW)
    assert files_of(clip) == before
    assert [path.name for path in clip.parent.iterdir()] == ["count"]


def test_a_calibration_must_know_the_labels(clip):
    known = {"question": "Which?", "labels": ["a", "b"], "offsets": [0.5, -0.5], "n_pictures": 64}
    resealed(clip, calibration=[known], requires=["calibration"])
    with pytest.raises(RequestError, match=r"does not know the question .* knows 'Which\?' with a, b"):
        edit(clip, question=NEW, labels=["a", "b"])
    assert edit(clip, name="other").n_asked == 0
    assert edit(clip, question="Which?", labels=["b", "a"]).after.labels == ("b", "a")


def test_what_cannot_be_edited_is_told(clip, tmp_path):
    (tmp_path / "link").symlink_to(clip)
    for task, given, error, says in (
        (clip, {}, RequestError, "Nothing is to be changed"),
        (clip, {"name": " "}, RequestError, "name is empty"),
        (clip, {"labels": ["a", ""]}, RequestError, "not empty"),
        (clip, {"question": "\ud800?"}, RequestError, "question"),
        (tmp_path / "link", {"name": "x"}, BundleError, "is a link"),
        (tmp_path / "gone", {"name": "x"}, BundleError, "no bundle"),
    ):
        with pytest.raises(error, match=says):
            edit(task, **given)
