"""The page's files: who gets them, with which policy, and what is not in them. tests/browser drives the page."""

from __future__ import annotations

import re

import pytest

from tests.serve.running import LLAVA, running
from tvp.sdk.serve.page import FILES, PATHS, POLICY

NO_HTML = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "setHTML")


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server with a key."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.touch(0o600)
    file.write_text("one first-key-of-all\n")
    with running(keys=file, bundles={"llava": LLAVA}) as server:
        yield server


def test_the_page_needs_no_key_and_what_it_asks_for_does(locked):
    for path in PATHS:
        assert locked.client.get(path).status_code == locked.client.head(path).status_code == 200
    for path in ("/v1/tasks", "/web", "/web/", "/web/none.js", "/index.html", "/openapi.json"):
        assert locked.client.get(path).status_code == 401, path


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_sent_as_it_is_with_a_strict_policy(run, name):
    reply = run.client.get("/" if name == "index.html" else f"/web/{name}")
    assert reply.content == FILES[name]
    assert reply.headers["content-type"].split(";")[0] in ("text/html", "text/css", "text/javascript", "image/svg+xml")
    assert reply.headers["content-security-policy"] == POLICY
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["permissions-policy"].startswith("camera=(self), microphone=()")


def test_the_policy_allows_this_servers_files_alone():
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules.pop("img-src") == "'self' blob:"
    assert {rules.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'none'"}
    assert {"default-src", "frame-ancestors", "base-uri", "form-action", "trusted-types"} == set(rules)


@pytest.mark.parametrize(
    "path", ["/web/page.py", "/web/..%2fkeys.py", "/web/%2e%2e/keys.py", "/web/../keys.py", "/web/", "/web/x%00.js"]
)
def test_no_other_file_is_sent(run, path):
    reply = run.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 404"), reply[:200]
    assert b"import" not in reply


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    page = FILES["index.html"].decode()
    assert re.findall(r"<script[^>]*>([^<]+)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    linked = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    assert linked
    assert linked <= {f"web/{name}" for name in FILES}
    for name, file in FILES.items():
        text = file.decode().replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?://|//\w+\.\w|@import|\burl\(", text) == [], name
        assert [word for word in NO_HTML if word in text] == [], name
    imported = re.findall(r'from "\./([^"]+)"', "".join(file.decode() for file in FILES.values()))
    assert set(imported) | {"page.js", "page.css", "icon.svg", "index.html"} == set(FILES)
