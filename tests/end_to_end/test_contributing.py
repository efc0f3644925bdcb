"""CONTRIBUTING.md leads to files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGES = ("trainer", "export", "sdk")


def mapped(package):
    """What the first column of a package's table in the code map names."""
    table = re.search(rf"\*\*{package}\*\* \(`{package}/tvp/{package}/`\).*?\n\n((?:\|.*\n)+)", TEXT)[1]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_code_map_names_files_that_are_there(package):
    names = mapped(package)
    assert len(names) >= 10
    assert not [name for name in names if not (ROOT / package / "tvp" / package / name).exists()]


def test_paths_in_the_text_lead_somewhere():
    named = re.findall(r"`((?:sdk|export|trainer|tests|samples|benchmarks|\.ci)/[\w./-]+)`", TEXT)
    assert len(named) >= 12
    assert not [name for name in named if not (ROOT / name).exists()]


def test_its_make_targets_are_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)[`\s]", TEXT))
    assert len(named) >= 5
    assert named <= targets
