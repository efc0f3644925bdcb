"""Writes into the documentation's pages what their snippets print now: `python -m tests.docs.renew PAGE …`.

Read the difference before you commit it. The README is run first, as in the tests.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.docs.pages import ROOT, follow, run_page


def renew(page: Path, folder: Path) -> None:
    """Run a page and put in each output that is shown the one that came."""
    text = page.read_text(encoding="utf-8")
    printed: list[str] = []
    run_page(page, folder, judge=lambda block, output, where: printed.append(output))
    outputs = iter(printed)
    parts: list[str] = []
    end = 0
    for match, is_output in follow(text):
        if is_output:
            parts += [text[end : match.start(3)], next(outputs).rstrip() + "\n"]
            end = match.end(3)
    page.write_text("".join([*parts, text[end:]]), encoding="utf-8")


def main() -> None:
    asked = [Path(name).resolve() for name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("samples", "docs", "benchmarks"):
            (folder / part).symlink_to(ROOT / part)
        os.chdir(folder)
        os.environ["TVP_HOME"] = str(folder / "home")
        for page in dict.fromkeys([ROOT / "README.md", *asked]):
            renew(page, folder) if page in asked else run_page(page, folder)


if __name__ == "__main__":
    main()
