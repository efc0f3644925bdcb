"""The documentation tells the truth: what it shows runs, and prints what is shown."""

from __future__ import annotations

import re
import tomllib
from collections import Counter

import pytest

from tests.docs.pages import DOCS, NOT_RUN, ROOT, blocks, name, pages, run_page

# Blocks that this machine cannot run, by page. Each says so in its title, with the reason.
LEFT_OUT = {
    "how-to/batch.md": 1,
    "how-to/cuda-tensorrt.md": 3,
    "how-to/paper.md": 2,
    "how-to/serve.md": 5,
    "how-to/your-data.md": 1,
    "how-to/your-model.md": 2,
}
NEEDS = {
    "how-to/serve.md": ("starlette", "uvicorn", "python_multipart", "prometheus_client", "openai"),
    "how-to/structured.md": ("llguidance",),
    "how-to/batch.md": ("pyarrow",),
}
RUNS = [page for page in pages() if any(block.language in ("sh", "python") for block in blocks(page))]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder like a checkout's, in which the README's commands have been run; other pages go on from there."""
    folder = tmp_path_factory.mktemp("workshop")
    for part in ("samples", "docs", "benchmarks"):
        (folder / part).symlink_to(ROOT / part)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TVP_HOME", str(folder / "home"))
        assert run_page(ROOT / "README.md", folder) >= 3
        yield folder


def test_the_readme_runs_and_prints_what_it_shows(workshop):
    assert (workshop / "runs" / "camera" / "manifest.json").is_file()


@pytest.mark.parametrize("page", [page for page in RUNS if page.is_relative_to(DOCS)], ids=name)
def test_a_page_runs_and_prints_what_it_shows(page, workshop):
    for package in NEEDS.get(name(page), ()):
        pytest.importorskip(package, reason=f"the page needs {package}: pip install '.[dev]'")
    run_page(page, workshop)


def test_what_is_not_run_says_so_and_is_listed_here():
    found = Counter(name(page) for page in pages() for block in blocks(page) if block.title.startswith(NOT_RUN))
    assert dict(found) == LEFT_OUT
    for page in pages():
        for block in blocks(page):
            if block.title.startswith(NOT_RUN):
                assert re.fullmatch(rf"{NOT_RUN}: .{{8,}}", block.title), (name(page), block.line)


def test_every_block_names_its_language():
    for page in pages():
        for block in blocks(page):
            assert block.language in ("sh", "python", "text", "toml", "json", ""), (name(page), block.line)


def test_every_pip_line_names_extras_that_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    n_lines = 0
    for page in pages():
        for extras in re.findall(r"pip install '(?:\.|tvp-edge)\[([\w,]+)\]'", page.read_text(encoding="utf-8")):
            assert set(extras.split(",")) <= set(known), (name(page), extras)
            n_lines += 1
    assert n_lines
