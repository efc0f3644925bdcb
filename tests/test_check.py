"""The code is formatted, lint-free and strictly typed: the checks of `make check`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        ("mypy", "-p", "tvp.sdk", "-p", "tvp.trainer", "-p", "tvp.export"),
    ],
    ids=["format", "lint", "types"],
)
def test_check(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
