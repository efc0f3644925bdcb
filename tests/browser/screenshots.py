"""Takes pictures of the page, to be looked at: `python -m tests.browser.screenshots` (`make screenshots`).

They go to build/screenshots; the one of the documentation goes to docs/images/page.png.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import driver
from tests.browser.conftest import ROOT, answered, choose_task, export_bundles, with_scene
from tests.serve.running import running

FOLDER = ROOT / "build" / "screenshots"
SHOWN = ROOT / "docs" / "images" / "page.png"


def opened(browser: driver.Browser, server: Any, **options: Any) -> driver.Page:
    """Open the page."""
    page = browser.open(f"http://127.0.0.1:{server.port}/", **options)
    page.until("document.querySelector('#task').options.length")
    return page


def ask(page: driver.Page, question: str, labels: str = "") -> None:
    """Ask about the scene, with labels where some are given."""
    with_scene(page)
    page.fill("#question", question)
    if labels:
        page.click("#more summary")
        page.fill("#labels", labels)
        page.click("#more summary")
    page.click("#ask")
    answered(page)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)


def take(browser: driver.Browser, server: Any) -> None:
    """Take all of them."""
    phone = {"size": (390, 844), "touch": True}
    opened(browser, server).screenshot(FOLDER / "empty.png")
    opened(browser, server, **phone).screenshot(FOLDER / "phone-empty.png")
    for name, options in (
        ("wide", {}),
        ("dark", {"dark": True}),
        ("phone", phone),
        ("phone-dark", phone | {"dark": True}),
    ):
        page = opened(browser, server, **options)
        ask(page, "How many objects are there?", "1\n2\n3\n4")
        page.screenshot(FOLDER / f"{name}.png")
        if name == "wide":
            page.click("#same summary")
            page.screenshot(FOLDER / "wide-program.png")
    page = opened(browser, server)
    choose_task(page, "llava")
    page.click("#more summary")
    page.fill("#length", "150")
    ask(page, "What is this?")
    page.screenshot(FOLDER / "long.png")
    for name, options in (("error", {}), ("phone-error", phone)):
        page = opened(browser, server, **options)
        page.drop("#empty", ROOT / "LICENSE")
        page.until("!document.querySelector('#shown-note').hidden")
        page.fill("#question", "How many objects are there?")
        page.click("#ask")
        page.until("!document.querySelector('#error').hidden")
        page.screenshot(FOLDER / f"{name}.png", whole=False)
    page = opened(browser, server)
    page.allow("videoCapture")
    page.click("#camera")
    page.until("document.querySelector('#video').videoWidth")
    page.screenshot(FOLDER / "camera.png", whole=False)


def main() -> None:
    if driver.find() is None:
        sys.exit(f"There is none of {', '.join(driver.NAMES)}. On Debian: apt-get install chromium")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = export_bundles(folder)
        keys = folder / "keys"
        keys.touch(0o600)
        keys.write_text("phone first-key-of-a-phone\n")
        browser = driver.Browser(
            "--use-fake-device-for-media-stream", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        )
        try:
            with running(bundles=bundles) as server:
                take(browser, server)
            with running(keys=keys, bundles={"camera": bundles["camera"]}) as server:
                page = browser.open(f"http://127.0.0.1:{server.port}/", size=(390, 844), touch=True)
                page.until("!document.querySelector('#key-form').hidden")
                page.fill("#key", "wrong-key-of-a-phone")
                page.press("Enter")
                page.until("!document.querySelector('#error').hidden")
                page.screenshot(FOLDER / "phone-key.png", whole=False)
        finally:
            browser.close()
    Image.open(FOLDER / "wide.png").convert("RGB").save(SHOWN, optimize=True)
    print(f"Look at {FOLDER.relative_to(ROOT)}/*.png and {SHOWN.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
