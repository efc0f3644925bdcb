"""What PyTorch answered once, committed: bundles must say the same where PyTorch cannot be imported.

tests/goldens/make.py writes them. `format-1` are the bundles of the first format, which load for ever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.goldens import make
from tvp.export.bundle import export
from tvp.sdk.formats._sealed import FORMAT
from tvp.trainer import families, tasks

GOLDENS = Path(make.__file__).parent
FORMATS = [f"format-{number}" for number in range(1, FORMAT + 1)]
ZOO = json.loads((GOLDENS / "zoo.json").read_text(encoding="utf-8"))


def replay(cases, tmp_path):
    """Run tests/goldens/replay.py with as many threads as by default; returns what it printed or complained of."""
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    command = [sys.executable, str(GOLDENS / "replay.py"), str(tmp_path / "cases.json")]
    environment = {key: value for key, value in os.environ.items() if key != "TVP_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return done.stdout.strip() or done.stderr


def expected(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("format", FORMATS)
def test_bundles_of_every_format_load_and_answer_as_pytorch_did(format, tmp_path):
    files = sorted((GOLDENS / format).glob("*.tvp"))
    assert len(files) >= 2
    cases = {str(file): expected(file.with_suffix(".json")) for file in files}
    assert replay(cases, tmp_path) == str(sum(map(len, cases.values())))


def test_the_replay_notices_what_differs(tmp_path):
    file = GOLDENS / "format-1" / "llava_next.tvp"
    whole = expected(file.with_suffix(".json"))
    for number, (key, value) in enumerate(
        [("tokens", [1]), ("text", "x"), ("log_probabilities", [-9.0] * 8), ("scores", {"yes": 0.0, "no": -1.0})]
    ):
        said = replay({str(file): [{**whole[0], key: value}, whole[1]]}, tmp_path)
        assert ("PyTorch" if number < 2 else "differ by") in said, said
        assert whole[1]["question"] not in said
    assert "ModuleNotFoundError" in subprocess.run(
        [sys.executable, "-c", "import sys, replay; sys.meta_path.insert(0, replay.Absent()); import torch"],
        capture_output=True, text=True, cwd=GOLDENS,
    ).stderr  # fmt: skip


def test_every_zoo_model_answers_as_the_committed_pytorch_did(tmp_path):
    assert set(ZOO) == set(make.ZOO)
    for name, golden in ZOO.items():
        assert golden["weights"] == families.digest(f"zoo:{name}"), f"{name} was trained again: run tests.goldens.make"
        export(f"zoo:{name}", tasks.get("scenes"), tmp_path / name, n_cases=1, reuse=False)
    cases = {str(tmp_path / name): golden["cases"] for name, golden in ZOO.items()}
    assert replay(cases, tmp_path) == str(sum(map(len, cases.values())))


@pytest.mark.parametrize("name", ["llava", "blip2-t5"])
def test_the_committed_answers_are_what_pytorch_says_today(name):
    """Tokens and texts exactly, numbers up to what another processor or version of PyTorch rounds otherwise."""
    today = make.golden(families.load(f"zoo:{name}"), None, GOLDENS)
    for now, then in zip(today, ZOO[name]["cases"], strict=True):
        assert (now["tokens"], now["text"]) == (then["tokens"], then["text"])
        assert now["log_probabilities"] == pytest.approx(then["log_probabilities"], abs=1e-3)
        assert now["scores"] == pytest.approx(then["scores"], abs=1e-3)
