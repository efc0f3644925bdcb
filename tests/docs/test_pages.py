"""The documentation holds together: links, anchors, navigation, generated pages, and the README's length."""

from __future__ import annotations

import importlib
import re

import pytest

from docs.images import make as pictures
from docs.reference import generate
from tests.docs.pages import BLOCK, DOCS, ROOT, name, pages


def _prose(page):
    """A page without its blocks and its code."""
    return re.sub(r"`[^`]*`", "", BLOCK.sub("", page.read_text(encoding="utf-8")))


def _anchors(page):
    """The anchors of a page's headings, as mkdocs and GitHub name them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", pages(), ids=name)
def test_its_links_and_anchors_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", _prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if page.is_relative_to(DOCS):
            assert there.is_relative_to(DOCS), f"{target} is not part of the site"
        if anchor:
            assert anchor in _anchors(there), target


def test_the_readme_has_at_most_120_short_lines():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(name(page) for page in pages() if page.is_relative_to(DOCS))


@pytest.mark.parametrize(("page", "text"), generate.pages().items(), ids=lambda value: getattr(value, "name", ""))
def test_a_generated_page_says_what_the_code_says(page, text):
    assert page.read_text(encoding="utf-8") == text, "run: python docs/reference/generate.py"


def test_the_answers_in_the_picture_are_the_models_own():
    """Those that the README's picture shows, and that its description names."""
    said = [(title, [(answer, right) for _, answer, right in answers]) for title, _, answers in pictures.panels()]
    assert said == [
        ("clean scene", [("3", True), ("star", True)]),
        ("through the bad camera", [("2", False), ("triangle", False)]),
        ("behind the lens", [("3", True), ("star", True)]),
    ]


def test_the_study_s_picture_is_the_benchmark_s():
    assert (DOCS / "images" / "study.png").read_bytes() == (ROOT / "benchmarks" / "study.png").read_bytes()


def test_every_name_of_the_python_reference_is_there():
    """`make docs` finds these names too; this is quicker."""
    texts = [page.read_text(encoding="utf-8") for page in pages()]
    found = [line.removeprefix("::: ") for text in texts for line in text.splitlines() if line.startswith("::: ")]
    assert len(found) > 15
    for full in found:
        module, _, attribute = full.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), full
