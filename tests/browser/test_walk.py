"""A stranger's walk: the commands of docs/how-to/serve.md, then the page on a phone, over plain HTTP and over HTTPS."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from tests.browser.conftest import HOME, SCENE, answered
from tests.browser.driver import Browser
from tests.docs.pages import DOCS, blocks
from tests.serve.test_command import process

PAGE = DOCS / "how-to" / "serve.md"
TASKS = "document.querySelector('#task').options.length"


def commands(word):
    """The commands of the page's block that has a word in it, one a line."""
    (block,) = (block for block in blocks(PAGE) if block.language == "sh" and word in block.text)
    return block.text.replace("\\\n", " ").splitlines()


def started_with(lines, folder, bundle):
    """Run the commands before `tvp serve` in a folder; returns its arguments, with a bundle of this machine."""
    *before, serve = lines
    for line in before:
        if not line.startswith("hostname"):
            subprocess.run(["bash", "-c", line], cwd=folder, check=True, capture_output=True)
    arguments = shlex.split(serve)[2:]
    assert arguments[0] == "runs/camera"
    return [bundle, *(str(folder / word) if (folder / word).is_file() else word for word in arguments[1:])]


def ask_on(page):
    page.fill("#question", "How many objects are there?")
    page.click("#ask")
    return answered(page)


@pytest.fixture
def walked(bundles, tmp_path):
    """A server as the page says, up to the phone; and its key."""
    arguments = started_with(commands("token_hex"), tmp_path, bundles["camera"])
    with process(*arguments, home=tmp_path) as (_, url, _):
        yield int(url.rpartition(":")[2]), (tmp_path / "keys.txt").read_text().split()[1]


def test_a_phone_asks_over_plain_http(walked, browser):
    port, key = walked
    assert len(key) == 16  # short enough to be typed
    page = browser.open(f"http://{HOME}:{port}/", size=(390, 844), touch=True)
    page.until("!document.querySelector('#key-form').hidden")
    page.write(key)  # the cursor is there
    page.click("#key-form button")
    page.until(TASKS)
    page.give(SCENE, lambda: page.click("#camera"))
    page.until("document.querySelector('#shown').naturalWidth")
    assert ask_on(page) == "3"
    page.close()
    page = browser.open(f"http://{HOME}:{port}/#key={key}")
    page.until(TASKS)
    page.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate, and it is not here")
def test_a_phone_has_its_camera_in_the_page_over_https(walked, bundles, tmp_path):
    """Behind the warning: the certificate is nobody's but the server's."""
    _, key = walked
    arguments = started_with(commands("openssl"), tmp_path, bundles["camera"])
    browser = Browser(
        "--use-fake-device-for-media-stream",
        "--ignore-certificate-errors",
        f"--host-resolver-rules=MAP {HOME} 127.0.0.1",
    )
    try:
        with process(*arguments, home=tmp_path) as (_, url, _):
            assert url.startswith("https://")
            page = browser.open(f"https://{HOME}:{url.rpartition(':')[2]}/#key={key}", size=(390, 844), touch=True)
            page.allow("videoCapture")
            page.until(TASKS)
            assert page.js("window.isSecureContext") is True
            page.click("#camera")
            page.until("document.querySelector('#video').videoWidth")
            page.click("#take")
            page.until("document.querySelector('#shown').naturalWidth")
            assert ask_on(page)
            assert page.problems == []
            page.close()
    finally:
        browser.close()
