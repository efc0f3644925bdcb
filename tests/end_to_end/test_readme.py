"""The README tells the truth: its snippets run, its commands exist, it stays short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from tvp.sdk.cli import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_it_is_under_150_lines():
    assert len(README.splitlines()) < 150
    assert not re.findall(r"\{[A-Z]+\}", README), "a figure was not filled in"


def test_the_shell_commands_and_the_python_snippets_run(tmp_path, monkeypatch):
    """In the order in which they are written, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TVP_HOME", str(tmp_path / "home"))
    n_run = 0
    for language, text in re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL):
        if language == "python":
            exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
            n_run += 1
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] in ("make", "pip", "git", "cd"):
                continue
            assert words[0] in ("tvp", "tvp-export"), line
            arguments = words[1:] if words[0] == "tvp" else ["export", *words[1:]]
            result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
            assert result.exit_code == 0, (line, result.output)
            n_run += 1
    assert n_run >= 5


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_every_command_is_mentioned():
    for name in cli.list_commands(None):
        assert f"tvp {name}" in README, name
