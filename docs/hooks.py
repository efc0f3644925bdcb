"""A check of the built site: it must work without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?![^>]*rel=[\"']?canonical)[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
)
STYLED = re.compile(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)")


def on_post_build(config: Any) -> None:
    """Fail where a page loads a script, a style, a font or a picture from elsewhere."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        for match in LOADED.finditer(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page} loads {match[1] or match[2]}; the site must work without a network.")
    for style in sorted(Path(config.site_dir).rglob("*.css")):
        if match := STYLED.search(style.read_text(encoding="utf-8")):
            raise PluginError(f"{style} loads {match[1]}; the site must work without a network.")
