"""The documentation's pages, the blocks in them, and how a block is run."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from docs.reference.generate import cli

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = "Not run here"  # how the title of a block begins that this machine cannot run
FILE = re.compile(r"\w+\.py|\w+\.toml|\w+\.jsonl")  # the title of a block that a reader saves under this name
DIFFERS = "figures differ"  # in the title of an output whose figures depend on the machine
NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*(?:e-?\d+)?")
SHOWN = "127.0.0.1:8000"  # where a page's server listens; here it takes a free port
POINTS = 15  # by which a percentage may differ on another processor


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, title and text, the line it begins at, and the output that is shown behind it."""

    language: str
    title: str
    text: str
    line: int
    output: str | None = None
    differs: bool = False


def pages() -> list[Path]:
    """The README, and every page of the site."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def name(page: Path) -> str:
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).as_posix()


def follow(text: str) -> Iterator[tuple[re.Match[str], bool]]:
    """Every block of a page's text, and whether it is the output of the block that it directly follows."""
    before, end = "", 0
    for match in BLOCK.finditer(text):
        is_output = match[1] == "text" and before in ("sh", "python") and not text[end : match.start()].strip()
        yield match, is_output
        before, end = ("" if (match[2] or "").startswith(NOT_RUN) else match[1]), match.end()


def blocks(page: Path) -> list[Block]:
    """The blocks of a page; an output is part of the block that it directly follows."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for match, is_output in follow(text):
        language, title, content = match[1], match[2] or "", match[3]
        if is_output:
            found[-1] = replace(found[-1], output=content, differs=DIFFERS in title)
        else:
            found.append(Block(language, title, content, text.count("\n", 0, match.start()) + 1))
    return found


def compare(block: Block, printed: str, where: str) -> None:
    """Hold what is shown against what is printed; where figures differ, percentages must be near and words equal."""
    shown = block.output or ""
    if not block.differs:
        assert printed.rstrip() == shown.rstrip(), f"{where}: the output is another"
        return
    words = [re.sub(r"\s+", " ", NUMBER.sub("#", text)).strip() for text in (printed, shown)]
    assert words[0] == words[1], f"{where}: the output is another"
    for a, b in zip(NUMBER.finditer(printed), NUMBER.finditer(shown), strict=True):
        if shown[b.end() :].lstrip(" ").startswith("%"):
            assert abs(float(a[0]) - float(b[0])) <= POINTS, f"{where}: {a[0]} % is shown as {b[0]} %"


def run_page(page: Path, folder: Path, judge: Callable[[Block, str, str], object] = compare) -> int:
    """Run a page's blocks in the order in which they are written, in a folder that is the current one.

    judge: is given each block that shows an output, what the block printed, and where it is.
    Returns how many were run. Raises AssertionError for a block that fails, or whose output is another.
    """
    names: dict[str, Any] = {"__name__": "page"}
    n_run = 0
    with Server() as server:
        for block in blocks(page):
            where = f"{name(page)}, line {block.line}"
            if FILE.fullmatch(block.title):
                (folder / block.title).write_text(block.text, encoding="utf-8")
            elif block.language in ("sh", "python") and not block.title.startswith(NOT_RUN):
                here = replace(block, text=block.text.replace(SHOWN, server.address))
                printed = _python(here, where, names) if block.language == "python" else _shell(here, where, server)
                if block.output is not None:
                    judge(block, printed, where)
                n_run += 1
    return n_run


class Server:
    """The `tvp serve` of a page, which goes on until the page's end.

    Attributes:
        address: where it listens; as the page shows it where there is none.
    """

    def __init__(self) -> None:
        self.address = SHOWN
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=60)
            assert self._process.returncode == 0

    def start(self, arguments: list[str]) -> str:
        """Return what the command prints when it listens."""
        command = [sys.executable, "-m", "tvp.sdk.cli", "serve", "--port", "0", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.address = line.strip().rpartition("://")[2]
        return line.replace(self.address, SHOWN)


def _python(block: Block, where: str, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, where, "exec"), names)
    return printed.getvalue()


def _shell(block: Block, where: str, server: Server) -> str:
    printed = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in ("git", "cd", ".", "mkdir"):
            continue
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), f"{where}: {line}"
        elif words[:2] == ["tvp", "serve"]:
            printed.append(server.start(words[2:]))
        elif words[0] == "curl":
            text = subprocess.run([*words, "--fail"], capture_output=True, text=True, check=True).stdout
            printed.append(text if text.endswith("\n") or not text else f"{text}\n")
        elif words[:2] == ["pip", "install"] or words[:3] == ["python", "-m", "venv"]:
            pass  # test_snippets looks at the first
        elif words[0] == "python" and words[1].endswith(".py"):
            inner = io.StringIO()
            with contextlib.redirect_stdout(inner):
                runpy.run_path(words[1], run_name="__main__")
            printed.append(inner.getvalue())
        else:
            assert words[0] in ("tvp", "tvp-export"), f"{where}: {line}"
            arguments = words[1:] if words[0] == "tvp" else ["export", *words[1:]]
            result = CliRunner().invoke(cli(), arguments, catch_exceptions=False)
            assert result.exit_code == 0, f"{where}: {line}\n{result.output}"
            printed.append(result.stdout)
    return "".join(printed)
