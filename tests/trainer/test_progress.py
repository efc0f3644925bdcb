"""What a terminal shows: a line that moves and goes, how a stopped run goes on, warnings in lines of their own."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tvp.trainer import progress
from tvp.trainer.progress import Work


class Terminal:
    """A stream that says that it is a terminal, and keeps what is written."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True

    @property
    def lines(self):
        """What a reader sees at the end: carriage returns overwrite."""
        shown = []
        for line in self.text.split("\n"):
            seen = ""
            for part in line.split("\r"):
                seen = part + seen[len(part) :]
            shown.append(seen.rstrip())
        return shown


@pytest.fixture
def terminal(monkeypatch):
    made = Terminal()
    # pytest puts its own stream into sys.stderr between a fixture and its test.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=made, modules=sys.modules))
    yield made
    logger = logging.getLogger("tvp")
    logger.handlers, logger.propagate = [], True


def test_a_line_is_there_at_once_moves_and_goes(terminal):
    with progress.working("loading zoo:blip2"):
        assert "loading zoo:blip2 … 0 s" in terminal.text
        first = terminal.text
        for _ in range(100):
            time.sleep(0.05)
            if terminal.text != first:
                break
        assert terminal.text != first
    assert terminal.lines == [""]


def test_steps_have_a_bar(terminal):
    with progress.working("exporting", 4):
        for text in ("loading", "writing", "comparing"):
            progress.step(text)
        assert "3/4 [######......] comparing … 0 s" in terminal.text
    assert terminal.lines == [""]
    progress.step("of nothing")
    assert terminal.lines == [""]


def test_work_inside_of_work_is_shown_and_then_the_outer_again():
    outer, inner = Work("a"), Work("b", 2, 1)
    assert outer.line(outer.began + 3).endswith("a … 3 s")
    assert "1/2 [............] b" in inner.line(inner.began)


def test_one_thing_moves_at_a_time(terminal):
    with progress.working("reading"):
        bar = progress.bar(range(3), "looking", quiet=False, mininterval=0, file=terminal)
        before = terminal.text
        for _ in bar:
            progress._line.draw()
        assert "reading" not in terminal.text[len(before) :]
        progress._line.draw()
        assert "reading" in terminal.text[len(before) :]
    assert terminal.lines == [""]  # the bar is gone, too


def test_a_package_that_is_half_imported_stops_no_line(terminal, monkeypatch):
    monkeypatch.setitem(progress.sys.modules, "tqdm", SimpleNamespace())
    with progress.working("loading PyTorch"):
        progress._line.draw()
    assert "loading PyTorch" in terminal.text


def test_warnings_and_news_have_lines_of_their_own(terminal):
    progress.tidy_warnings()
    with progress.working("reading"):
        logging.getLogger("tvp.trainer").warning("left 2 rows out")
        progress.say("goes on after step 5")
    assert terminal.lines == ["left 2 rows out", "goes on after step 5", ""]


def test_nothing_is_shown_elsewhere(capsys):
    with progress.working("reading", 2):
        progress.step("more")
        progress.say("news")
        list(progress.bar(range(3), "looking"))
    assert capsys.readouterr() == ("", "")


SLOW = """
import sys, time, signal
from tvp.trainer import train as module, validation
from tvp.trainer import progress
from tvp.sdk import cli
progress.on_terminal = lambda: True
real = module.Objective.__call__
n = 0
def counted(*arguments):
    global n
    n += 1
    if n == {at}:
        print("now", flush=True)
        time.sleep(60)
    return real(*arguments)
module.Objective.__call__ = counted
cli.main()
"""


def train(tmp_path, zoo, at):
    command = [
        sys.executable, "-c", SLOW.format(at=at), "train", "-m", str(zoo[0]), "--task", "bad-camera", "--method", "evp",
        "--steps", "4", "--checkpoint-every", "2", "--n-train", "8", "--n-validation", "2", "--batch", "2",
        "--keep", "last", "-o", str(tmp_path / "run"),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_a_run_that_is_stopped_says_how_it_goes_on_and_then_from_where(tmp_path, zoo):
    process = train(tmp_path, zoo, at=4)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Stopped after step 3. The same command goes on from the checkpoint of step 2; with --restart" in said
    assert "Traceback" not in said
    process = train(tmp_path, zoo, at=99)
    out, said = process.communicate(timeout=100)
    assert re.search(r"goes on after step 2, from \S+checkpoint\.pt \(--restart starts anew\)", said)
    assert process.returncode == 0, out + said
