"""The command line: output, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


def tvp(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tvp.sdk.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(file)
    return file


def test_ask_check_inspect_and_doctor(one_bundle, picture):
    answer = json.loads(tvp("ask", one_bundle, picture, "What?", "--json").stdout)
    assert set(answer) == {"text", "tokens", "log_probabilities", "timing", "finish", "unlikeness"}
    ranked = tvp("ask", one_bundle, picture, "--rank").stdout
    assert len(ranked.splitlines()) == 4
    asked = tvp("ask", one_bundle, picture)  # the task has labels, and writes freely
    is_label = asked.stdout.strip() in {row.split(maxsplit=1)[1] for row in ranked.splitlines()}
    assert ("none of the task's labels" in asked.stderr) != is_label
    checked = tvp("check", one_bundle).stdout
    assert "4 of 4 golden cases equal" in checked
    assert "preprocess, vision_encoder, decoder on CPUExecutionProvider" in checked
    by_part = tvp("check", one_bundle, "--providers", "vision_encoder=cpu, decoder=cpu")
    assert "vision_encoder, decoder on CPUExecutionProvider" in by_part.stdout
    assert "llava" in tvp("inspect", one_bundle).stdout
    assert "CPUExecutionProvider" in tvp("doctor").stdout


def test_failures_exit_1_with_one_message_and_usage_exits_2(one_bundle, picture, tmp_path):
    for arguments, says in (
        (("ask", one_bundle, tmp_path / "gone.png", "What?"), "cannot be read"),
        (("ask", tmp_path / "none", picture, "What?"), "no bundle"),
        (("ask", one_bundle, picture, "What?", "--providers", "abacus"), "not available"),
        (("ask", one_bundle, picture, "What?", "--providers", "decoder=cpu,vision_encoder="), "not available"),
        (("check", one_bundle, "--providers", "decoder=cpu,ear=cpu"), "ear"),
        (("check", tmp_path), "manifest.json"),
    ):
        done = tvp(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: ")
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert tvp("ask").returncode == 2
    assert tvp("ask", one_bundle, picture, "What?", "--stream", "--json").returncode == 2
    assert tvp("nonsense").returncode == 2
