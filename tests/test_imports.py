"""How the three packages import each other and themselves: one way, without circles, through public modules only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A package -> the other packages whose public modules it may import.
ALLOWED = {"sdk": set(), "trainer": {"sdk"}, "export": {"sdk", "trainer"}}
# Of the sdk, the trainer may import these alone.
SDK_FOR_TRAINER = ("tvp.sdk.errors", "tvp.sdk.formats", "tvp.sdk.cli", "tvp.sdk.read_image", "tvp.sdk.ImageLike")


def read_modules(roots: dict[str, Path]) -> dict[str, set[str]]:
    """Every module of the packages with all that it imports: anywhere in it, for type checkers alone too."""
    files = {}
    for package, root in roots.items():
        for file in root.rglob("*.py"):
            parts = ["tvp", package, *file.relative_to(root).with_suffix("").parts]
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {name: set(imports_of(name, file)) for name, file in files.items()}


def imports_of(name: str, file: Path):
    """Yield the full names of modules, and of what is taken from them."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def circles(modules: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other (Tarjan's strongly connected components)."""
    graph = {name: sorted((found & modules.keys()) - {name}) for name, found in modules.items()}
    # A package's __init__ is imported before its modules, but that is no import of its own.
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        for name in graph:
            if name not in order:
                visit(name)
    finally:
        sys.setrecursionlimit(limit)
    return found


def crossings(modules: dict[str, set[str]]) -> list[str]:
    """Imports from another package that are private, against the direction, or of what a package may not have."""
    wrong = []
    for name, found in modules.items():
        package = name.split(".")[1]
        for other in sorted(found):
            parts = other.split(".")
            if parts[0] != "tvp" or len(parts) < 2 or parts[1] == package:
                continue
            if parts[1] not in ALLOWED:
                continue
            if parts[1] not in ALLOWED[package]:
                wrong.append(f"{name} imports {other}, against the direction")
            elif any(part.startswith("_") for part in parts):
                wrong.append(f"{name} imports {other}, which is private")
            elif package == "trainer" and len(parts) > 2 and not other.startswith(SDK_FOR_TRAINER):
                wrong.append(f"{name} imports {other}; the trainer has the sdk's errors and formats only")
    return wrong


@pytest.fixture(scope="module")
def modules():
    return read_modules({package: ROOT / package / "tvp" / package for package in ALLOWED})


def test_no_circles(modules):
    assert len(modules) > 100
    assert circles(modules) == []


def test_packages_import_each_other_one_way_and_in_public(modules):
    assert any(name.startswith("tvp.export") and "tvp.trainer.prompt" in found for name, found in modules.items())
    assert crossings(modules) == []


def test_a_circle_and_a_crossing_would_be_seen(tmp_path):
    """Planted: a circle through a function and one for type checkers, a private import, one against the direction."""
    texts = {
        "sdk/a.py": "def f():\n    from . import b\n",
        "sdk/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import f\n",
        "sdk/c.py": "import tvp.trainer.t\n",
        "trainer/t.py": "from tvp.sdk import _hidden\nfrom tvp.sdk.errors import TvpError\nfrom tvp.sdk import load\n",
        "export/e.py": "from tvp.sdk import load\nfrom tvp.trainer._private.x import y\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    planted = read_modules({package: tmp_path / package for package in ALLOWED})
    assert circles(planted) == [["tvp.sdk.a", "tvp.sdk.b"]]
    said = "\n".join(crossings(planted))
    assert "tvp.sdk.c imports tvp.trainer.t, against the direction" in said
    assert "tvp.trainer.t imports tvp.sdk._hidden, which is private" in said
    assert "tvp.trainer.t imports tvp.sdk.load; the trainer has" in said
    assert "tvp.export.e imports tvp.trainer._private.x, which is private" in said
    assert "TvpError" not in said
