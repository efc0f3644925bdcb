"""No printed text steers a terminal, whoever prints it, and printed JSON is JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from tvp.sdk._terminal import escaped
from tvp.sdk.formats import strict_json

CLIPBOARD = "\x1b]52;c;ZWNobyBoYWNrZWQ=\x07"


@pytest.mark.parametrize(
    "steering", [CLIPBOARD, "\x9b31m", "\x1b[2K", "a\x08b", "\u202etxt.exe", "\u2066", "\ud800", "\x00", "\x7f", "\rb"]
)
def test_what_steers_a_terminal_is_escaped(steering):
    assert escaped(steering).isascii()
    assert not any(ord(letter) < 32 for letter in escaped(steering))


@pytest.mark.parametrize("plain", ["two\nlines\tand a tab", "größer", "三つ　です", "\N{NO-BREAK SPACE}", "👩‍🚀"])
def test_other_text_stays(plain):
    assert escaped(plain) == plain


def run(code: str, **environment: str) -> bytes:
    """What a terminal gets from a command of TVP that runs this code; stdout and stderr together."""
    command = f"import logging, sys, click, tvp.sdk.cli as c\ndef f(*_, **__):\n {code}\nc._run(f, [])"
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=slave, stderr=slave, env=os.environ | environment
    ) as program:
        os.close(slave)
        got = b""
        try:
            while block := os.read(master, 4096):
                got += block
        except OSError:  # Linux says so when the program has ended
            pass
        program.wait()
    os.close(master)
    return got


@pytest.mark.parametrize(
    "code",
    [
        "click.echo(TEXT)",
        "click.echo(TEXT, err=True)",
        "print(TEXT)",
        "logging.getLogger('tvp.sdk').warning(TEXT)",
        "import warnings; warnings.warn(TEXT)",
        "raise click.ClickException(TEXT)",
        "raise c.TvpError(TEXT)",
        "raise OSError(TEXT)",
        "raise RuntimeError(TEXT)",
    ],
)
def test_every_way_of_printing_escapes(code):
    for encoding in ("utf-8", "ascii"):
        got = run(code.replace("TEXT", repr(CLIPBOARD)), PYTHONIOENCODING=encoding)
        assert b"\x1b" not in got
        assert b"\x07" not in got
        assert b"52;c;" in got


def test_a_progress_bar_may_go_back_to_the_start_of_its_line():
    assert run("sys.stderr.write('\\r50 %'); sys.stderr.write('a\\rb')") == b"\r50 %a\\rb"


def test_json_has_null_for_what_is_no_number():
    written = strict_json.dumps({"a": float("nan"), "b": [1.5, (float("-inf"),)], "c": {"d": float("inf")}, "e": "NaN"})
    assert json.loads(written) == {"a": None, "b": [1.5, [None]], "c": {"d": None}, "e": "NaN"}
    assert "NaN" not in written.replace('"NaN"', "")
