"""Ten thousand questions from eight threads: each answer is the one of a single thread, and memory does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUNDLE = HERE.parent / "goldens" / "format-1" / "llava_next.tvp"
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc"
)


def run(*command):
    # glibc may have eight heaps a core. Each keeps the most that it ever held, and threads may come to a heap late: up
    # to 1.7 % more memory on two cores. `Task` tells services to have two heaps.
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
def test_the_memory_of_a_large_picture_is_given_back():
    """The picture has 12 megapixels; its floats alone are 137 MiB. A small picture warms up first."""
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
