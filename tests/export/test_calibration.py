"""Calibrated bundles: they rank as PyTorch does with the same offsets, or nothing is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from tests.bundles import random_prompt, seal
from tests.tiny import save_tiny
from tvp import sdk
from tvp.export import ranking
from tvp.export.bundle import export
from tvp.sdk.cli import cli
from tvp.sdk.errors import CheckError, RequestError
from tvp.sdk.formats.golden import RankingCase, read_cases
from tvp.sdk.formats.manifest import read_task_manifest
from tvp.trainer import families, tasks
from tvp.trainer.calibration import Calibration, learn
from tvp.trainer.data import Scenes
from tvp.trainer.metrics import Gain
from tvp.trainer.prompt import Geometry

TASK = tasks.get("count")


@pytest.fixture(scope="module", params=["llava", "blip2-t5", "clip"])
def made(request, tmp_path_factory):
    """A random model of each kind with a prompt, calibrated on scenes, and its bundle."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_tiny(request.param, folder / "model")
    family, prompt = families.load(model), random_prompt()
    data = Scenes(16, 3, n_questions=1, topics=TASK.topics)
    calibration = learn(family, data, prompt.geometry, prompt, TASK, model=model)
    report = export(model, TASK, folder / "bundle", prompt=prompt, n_cases=6, family=family, calibration=calibration)
    return SimpleNamespace(
        model=model, family=family, prompt=prompt, calibration=calibration, report=report, folder=folder
    )


def test_a_calibrated_bundle_ranks_as_pytorch_does(made):
    (known,) = made.calibration.offsets
    assert (known.question, known.labels, known.n_pictures) == (TASK.question, TASK.labels, 16)
    manifest = read_task_manifest(made.folder / "bundle" / "manifest.json")
    assert (manifest.calibration, manifest.requires) == (made.calibration.offsets, ("calibration",))
    n_rankings = 0 if made.family.kind == "contrastive" else 6  # which ranks already
    assert made.report.n_cases == made.report.tokens_equal == 6 + n_rankings
    picture = Scenes(1, 99)[0].picture
    with sdk.load(made.folder / "bundle", providers="cpu") as task:
        ranked = {row.label: row.score for row in task.rank(picture)}
        pixels = torch.from_numpy(task.pixel_values(picture))
        best = task.rank(picture)[0].label
        chosen = str(task.ask(picture)) if task.kind == "contrastive" else best
        assert task.check()["different"] == 0
    scores = made.family.answer_scores(made.family.see(pixels, [TASK.question]), [TASK.question], TASK.labels)[0]
    expected = {
        label: score - offset for label, score, offset in zip(TASK.labels, scores.tolist(), known.offsets, strict=True)
    }
    assert ranked == pytest.approx(expected, abs=1e-3)
    assert best == chosen == max(expected, key=expected.get)


def test_golden_cases_replay_with_the_calibration(made):
    cases = read_cases(made.folder / "bundle")
    rankings = [case for case in cases if isinstance(case, RankingCase)]
    assert len(rankings) == 4
    assert len(cases) == (4 if made.family.kind == "contrastive" else 8)
    # Without its calibration the bundle ranks in another way, and its golden cases say so.
    plain = made.folder / "plain"
    shutil.copytree(made.folder / "bundle", plain)
    content = json.loads((plain / "manifest.json").read_bytes())
    (plain / "manifest.json").write_bytes(seal({**content, "calibration": []}))
    with sdk.load(plain, providers="cpu") as task, pytest.raises(CheckError, match=r"\(4 differences\)"):
        task.check()


def test_where_a_calibrated_ranking_differs_nothing_is_written(made, monkeypatch):
    real = ranking.offsets_for
    monkeypatch.setattr(ranking, "offsets_for", lambda *arguments: real(*arguments) * 1.01)
    place = made.folder / "other"
    with pytest.raises(CheckError) as error:
        export(made.model, TASK, place, prompt=made.prompt, n_cases=2, family=made.family, calibration=made.calibration)
    assert any("ranked" in line or "scores differ" in line for line in error.value.differences)
    assert not place.exists()


def test_a_calibration_is_refused_with_another_model_or_prompt(made, tmp_path):
    other = random_prompt()
    other.frame = other.frame + other.geometry.mask() * 0.01
    calibration = made.calibration
    for arguments, what in (
        ({"prompt": other}, "prompt: "),
        ({"prompt": None, "geometry": made.prompt.geometry}, "prompt: .*, not none"),
        ({"prompt": made.prompt, "calibration": replace(calibration, weights="0" * 64)}, "model: model, not model"),
        ({"prompt": made.prompt, "calibration": replace(calibration, geometry=Geometry(64, 32))}, "place of the"),
    ):
        with pytest.raises(RequestError, match=f"learned with another {what}"):
            export(made.model, TASK, tmp_path / "x", family=made.family, **{"calibration": calibration, **arguments})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("made", ["llava"], indirect=True)
def test_what_does_not_help_is_told(made, tmp_path, caplog):
    unsure = replace(made.calibration, gain=Gain(0.01, -0.01, 0.03), n_questions=100)
    unsure = replace(unsure, offsets=(replace(unsure.offsets[0], question="Another question?"),))
    export(made.model, TASK, tmp_path / "x", prompt=made.prompt, n_cases=2, family=made.family, calibration=unsure)
    assert "did not help where it was measured: +1.0 points (-1.0 to +3.0)" in caplog.text
    assert "does not know the question of the task 'count'" in caplog.text


@pytest.mark.parametrize("made", ["llava"], indirect=True)
def test_the_command_takes_a_file(made, tmp_path):
    file, prompt = tmp_path / "calibration.json", tmp_path / "prompt.safetensors"
    made.calibration.save(file)
    made.prompt.save(prompt)
    assert Calibration.load(file) == made.calibration
    command = ["export", "-m", str(made.model), "-t", "count", "-p", str(prompt), "--cases", "2"]
    result = CliRunner().invoke(cli, [*command, "--calibration", str(file), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    assert "parity: 4 of 4 answers equal" in result.output
    content = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())
    assert content["calibration"][0]["offsets"] == list(made.calibration.offsets[0].offsets)
