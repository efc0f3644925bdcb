"""Calibrated bundles: planted offsets are subtracted from the scores of known labels, and from no others."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import make_bundle, seal
from tests.sdk.reference_client import Client
from tvp import sdk
from tvp.sdk.cli import cli
from tvp.sdk.errors import BundleError
from tvp.sdk.formats import _sealed
from tvp.sdk.formats.calibration import LabelOffsets, offsets_for

GOLDENS = Path(__file__).parents[1] / "goldens" / "format-2"
QUESTION, LABELS = "How many objects are there?", ("1", "2", "3", "4", "5")
OFFSETS = [-0.25, 7.0, 0.5, -30.0, 3.0]  # of LABELS; the fourth one becomes the best, whatever the picture


@pytest.fixture(scope="module", params=["llava_next", "instructblip-t5", "clip", "siglip"])
def plain(request, tmp_path_factory):
    """A bundle of each kind: causal, seq2seq, contrastive with softmax, and with sigmoid."""
    folder = tmp_path_factory.mktemp("plain")
    if not (file := GOLDENS / f"{request.param}.tvp").exists():
        return make_bundle(request.param, folder)
    zipfile.ZipFile(file).extractall(folder)
    return folder


def calibrated(bundle, folder, calibration, requires=("calibration",)):
    """A copy whose manifest holds a calibration."""
    shutil.copytree(bundle, folder, copy_function=os.link)
    file = folder / "manifest.json"
    content = json.loads(file.read_bytes())
    file.unlink()  # it is a link
    file.write_bytes(seal({**content, "calibration": calibration, "requires": list(requires)}))
    return folder


def entry(**changed):
    known = {"question": QUESTION, "labels": list(LABELS), "offsets": OFFSETS, "n_pictures": 64}
    return {**known, **changed}


def scores(ranked):
    return {row.label: row.score for row in ranked}


def test_the_offsets_of_known_labels_are_subtracted_and_no_others(plain, tmp_path):
    """The file has the labels in another order; scores go with the label."""
    order = [3, 0, 4, 2, 1]
    known = entry(labels=[LABELS[i] for i in order], offsets=[OFFSETS[i] for i in order])
    other = entry(question="Another one?", offsets=[100.0, 0, 0, 0, 0])
    folder = calibrated(plain, tmp_path / "calibrated", [other, known])
    picture = plain / "golden" / "0.png"
    client = Client(folder)
    with sdk.load(plain) as before, sdk.load(folder) as after:
        assert after.model is before.model  # one base, two tasks: a calibration is the task's
        expected = scores(before.rank(picture, QUESTION, labels=LABELS))
        ranked = after.rank(picture, QUESTION, labels=LABELS)
        assert ranked[0].label == "4"
        assert [row.score for row in ranked] == sorted((row.score for row in ranked), reverse=True)
        for label, offset in zip(LABELS, OFFSETS, strict=True):
            assert scores(ranked)[label] == pytest.approx(expected[label] - offset, abs=1e-6)
        # A client that was written from the page alone has the same.
        assert dict(client.rank(picture, QUESTION, list(LABELS))) == pytest.approx(scores(ranked), abs=1e-3)
        for question, labels in (
            (QUESTION, LABELS[:4]),
            (QUESTION, (*LABELS, "6")),
            (QUESTION, (*LABELS, "5")),
            (QUESTION.lower(), LABELS),
        ):
            assert after.rank(picture, question, labels=labels) == before.rank(picture, question, labels=labels)


def test_a_written_answer_is_as_before_and_a_chosen_one_is_calibrated(plain, tmp_path):
    picture = plain / "golden" / "0.png"
    with sdk.load(plain) as before:
        own, question = before.labels, before.manifest.question
        answered, last = before.ask(picture), before.rank(picture)[-1]
        chooses = before.kind == "contrastive"
    known = entry(question=question, labels=list(own), offsets=[-50.0 * (label == last.label) for label in own])
    with sdk.load(calibrated(plain, tmp_path / "calibrated", [known])) as after:
        found = [after.ask(picture), after.see(picture).ask(), *after.ask_many([(picture, None)])]
        assert after.rank(picture)[0].label == last.label
        assert "".join(after.stream(picture)) == found[0].text
    expected = last.label if chooses else answered.text
    assert {answer.text for answer in found} == {expected}
    if chooses:
        assert found[0].log_probabilities == (pytest.approx(last.score + 50),)


def test_a_client_that_does_not_know_calibrations_refuses_the_bundle(plain, tmp_path, monkeypatch):
    folder = calibrated(plain, tmp_path / "calibrated", [entry()])
    monkeypatch.setattr(_sealed, "KNOWN", ())
    with pytest.raises(BundleError, match=r"needs calibration, which this TVP does not know\. Update TVP"):
        sdk.load(folder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": 1},
        ["a"],
        [entry(labels="abcde")],
        [entry(labels=[])],
        [entry(labels=["1", "2", "3", "4", "4"])],
        [entry(labels=["1", "2", "3", "4", ""])],
        [entry(offsets=OFFSETS[:4])],
        [entry(offsets=[*OFFSETS[:4], "5"])],
        [entry(offsets=[*OFFSETS[:4], 1e999])],
        [entry(offsets=[*OFFSETS[:4], True])],
        [entry(question=7)],
        [entry(n_pictures=0)],
        [{key: value for key, value in entry().items() if key != "n_pictures"}],
        [entry(), entry(labels=list(reversed(LABELS)))],
    ],
)
def test_calibrations_are_read_strictly(one_bundle, tmp_path, wrong):
    folder = calibrated(one_bundle, tmp_path / "calibrated", wrong)
    with pytest.raises(BundleError, match=r"manifest\.json: calibration"):
        sdk.load(folder)


def test_offsets_follow_the_order_that_is_asked():
    known = (LabelOffsets("q", ("b", "a"), (2.0, 1.0), 3),)
    assert offsets_for(known, "q", ("a", "b")).tolist() == [1, 2]
    for question, labels in (("q", ("a",)), ("Q", ("a", "b")), ("q", ("a", "b", "b"))):
        assert not np.any(offsets_for(known, question, labels))


def test_inspecting_says_how_much_is_calibrated(one_bundle, tmp_path, capsys):
    folder = calibrated(one_bundle, tmp_path / "calibrated", [entry()])
    cli(["inspect", str(folder)], standalone_mode=False)
    assert "calibration   of 1 question(s) with labels" in capsys.readouterr().out
