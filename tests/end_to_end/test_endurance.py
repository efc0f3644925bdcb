"""Ten thousand questions from eight threads: every answer as one thread gives it, and no more memory than at first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUNDLE = HERE.parent / "goldens" / "format-1" / "llava_next.tvp"
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells resident memory so")


def run(*command):
    # Of glibc's heaps there may be eight a core, each of which keeps the most that it ever held, and threads come to
    # them late: up to 1.7 % more on two cores. `Task` tells services to have two.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300, env=environment, cwd=HERE
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@needs_proc
def test_ten_thousand_asks_are_right_and_take_no_more_memory():
    facts = run(str(HERE / "endurance.py"), str(BUNDLE))
    assert facts["asks"] == facts["right"] == 10_000
    assert len(facts["kib"]) == 10
    assert facts["growth"] < 0.02, facts


@needs_proc
def test_what_a_large_picture_took_is_given_back():
    """Of 12 megapixels, whose floats alone are 137 MiB; once as a warm-up of all that a first question loads."""
    code = f"""
import json
import numpy as np
from endurance import resident
from tvp import sdk
with sdk.load({str(BUNDLE)!r}, providers="cpu") as task:
    task.ask(np.zeros((300, 400, 3), np.uint8), "What?")
    before = resident()
    task.ask(np.zeros((3000, 4000, 3), np.uint8), "What?")
    print(json.dumps((resident() - before) / 1024))
"""
    assert run("-c", code) < 10  # MiB
