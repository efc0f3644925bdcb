"""The demo: it runs, its page needs no other file, and the shipped prompt gains as much as it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from samples import quickstart
from tvp import sdk
from tvp.trainer import families, tasks
from tvp.trainer.data import Scenes
from tvp.trainer.evaluate import accuracy
from tvp.trainer.prompt import Geometry, Prompt

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
FULL = Geometry(64, 64)


def test_the_demo_writes_a_page_that_stands_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "-o", str(tmp_path / "demo"), "--steps", "2", "--pictures", "8"])
    quickstart.main()
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\'\"](?!data:)", page), "the page must need no other file"
    assert page.count("data:image/png;base64,") == 3 + 6 * 3 + 1 + 1  # asked; camera, lens and clean; lens; curve
    assert "zoo:qwen2vl" in page
    said = capsys.readouterr().out
    assert said.count("answers equal") == 3
    assert said.count("(right: ") == 3
    assert said.count("without the lens: ") == 3
    assert (tmp_path / "demo" / "run" / "lens.png").stat().st_size > 1000
    for name in ("blip2", "smolvlm", "qwen2vl"):
        with sdk.load(tmp_path / "demo" / "tasks" / f"bad-camera-{name}") as task:
            assert task.check()["cases"] == 4


def test_the_demo_learns_one_lens_and_tries_no_others():
    assert (quickstart.CONFIG.lens, quickstart.CONFIG.lens_start) == ("conv", "identity")


def test_the_bad_camera_costs_15_points_and_the_shipped_prompt_wins_5_back():
    """On 1,024 held-out questions; the prompt is the one that `make demo` trained."""
    prompt = Prompt.load(SAMPLES / "zoo" / "prompts" / "bad-camera.safetensors")
    (source,) = prompt.facts["sources"]
    model = families.load(source)
    clean, bad = (Scenes(256, seed=4711, camera=camera) for camera in (None, tasks.BAD_CAMERA))
    without = accuracy(model, bad, FULL)
    assert without.n >= 1000
    assert accuracy(model, clean, FULL).accuracy - without.accuracy >= 0.15
    prompted = accuracy(model, bad, prompt.geometry, prompt)
    assert prompted.accuracy - without.accuracy >= 0.05


@pytest.mark.parametrize("part", ["sources", "guide", "data", "config", "versions", "validation"])
def test_a_prompt_says_where_it_comes_from(part):
    facts = Prompt.load(SAMPLES / "zoo" / "prompts" / "bad-camera.safetensors").facts
    assert facts[part]
