"""Pictures that are fetched: from allowed hosts alone, and never from inside a network."""

from __future__ import annotations

import asyncio
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.serve.running import LLAVA, SCENE, running
from tvp.sdk.serve import remote
from tvp.sdk.serve.refusals import Refusal
from tvp.sdk.serve.remote import Fetcher, is_public
from tvp.sdk.serve.settings import Settings


@pytest.fixture(scope="module")
def camera():
    """A host with pictures, at a loopback address; it notes what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        asked: list = []  # noqa: RUF012

        def do_GET(self):
            Handler.asked.append((self.path, dict(self.headers)))
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/").replace("|", "/"))
                self.end_headers()
            elif self.path == "/scene.png":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(SCENE)
            elif self.path == "/large":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"x" * 300_000)
            elif self.path == "/slow":
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b"x")
                    threading.Event().wait(0.1)
            else:
                self.send_error(404)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *arguments: None  # of connections that were cut on purpose
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.asked = Handler.asked
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def known(camera, monkeypatch):
    """The host's name leads to it, and its address counts as one of the internet's."""
    real = socket.getaddrinfo

    def look_up(host, *arguments, **options):
        return real("127.0.0.1" if host == "camera.example" else host, *arguments, **options)

    monkeypatch.setattr(remote.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    camera.asked.clear()
    return f"camera.example:{camera.server_port}"


def fetch(fetcher, url):
    try:
        return asyncio.run(fetcher.fetch(url))
    finally:
        fetcher.close()


def test_an_allowed_host_gives_its_picture(known, camera, tasks):
    assert fetch(Fetcher([known], 10**6), f"http://{known}/scene.png") == SCENE
    assert fetch(Fetcher([known], 10**6), f"http://{known}/to/|scene.png") == SCENE
    ((_, headers), *_) = camera.asked
    assert {name.lower() for name in headers} <= {"host", "accept", "accept-encoding", "connection"}
    assert headers["Host"] == known
    with running(Settings(allowed_hosts=(known,)), bundles={"llava": LLAVA}) as server:
        reply = server.client.post("/v1/ask", json={"image": f"http://{known}/scene.png", "max_new_tokens": 4})
        assert tuple(reply.json()["tokens"]) == tasks["llava"].ask(SCENE, max_new_tokens=4).tokens


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/none", "answered with status 404"),
        ("/large", "holds more than 100,000 bytes"),
        ("/to/http:||127.0.0.1:1|", "not allowed"),
        ("/to/http:||169.254.169.254|latest|meta-data", "not allowed"),
        ("/to/file:|||etc|passwd", "is none of http"),
        ("/to/ftp:||camera.example|x", "is none of http"),
        ("/to/http:||a:b@camera.example|", "is none of http"),
        ("/to/|to/|to/|to/|to/|scene.png", "leads elsewhere more than 3 times"),
    ],
)
def test_what_is_no_picture_or_leads_elsewhere_is_refused(known, path, says):
    with pytest.raises(Refusal, match=says):
        fetch(Fetcher([known], 100_000), f"http://{known}{path}")


def test_a_slow_host_is_cut(known, monkeypatch):
    monkeypatch.setattr(remote, "SECONDS", 0.3)
    with pytest.raises(Refusal, match="did not answer"):
        fetch(Fetcher([known], 10**6), f"http://{known}/slow")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/scene.png", "http://localhost:{port}/scene.png", "http://[::1]:{port}/", "http://0/",
        "http://2130706433:{port}/", "http://0x7f.1/", "http://camera.example/", "http://camera.example.evil:{port}/",
        "http://evil@camera.example:{port}/", "http://camera.example:{port}@evil/", "http://camera.example:99999/",
        "http://camera.example%2eevil:{port}/", "https://camera.example:{port}\\@evil/", "http:///scene.png",
        "http://camera.example:{port}\r\nHost: evil/", "http://[bad/", "HTTP://CAMERA.EXAMPLE:1/",
    ],
)  # fmt: skip
def test_other_hosts_are_refused_before_anything_is_asked(known, camera, url):
    with pytest.raises(Refusal):
        fetch(Fetcher([known], 10**6), url.format(port=camera.server_port))
    assert not camera.asked


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.20", "169.254.169.254", "0.0.0.0", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "2001::1",
    ],
)  # fmt: skip
def test_addresses_inside_a_network_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1", "8.8.8.8"]])
def test_an_allowed_name_that_leads_inside_is_refused(monkeypatch, addresses, camera):
    """Also where only one of its addresses does: which one is taken is a matter of luck."""
    found = [(0, 0, 0, "", (address, 80)) for address in addresses]
    monkeypatch.setattr(remote.socket, "getaddrinfo", lambda *arguments, **options: found)
    camera.asked.clear()
    with pytest.raises(Refusal, match="leads into a private network"):
        fetch(Fetcher(["camera.example"], 10**6), "http://camera.example/")
    assert not camera.asked


def test_the_connection_goes_to_the_address_that_was_looked_at(known, camera, monkeypatch):
    """A name server that answers otherwise the second time changes nothing: nobody asks it a second time."""
    looked, real = [], remote.socket.getaddrinfo
    monkeypatch.setattr(
        remote.socket, "getaddrinfo", lambda host, *a, **o: (looked.append(host), real(host, *a, **o))[1]
    )
    assert fetch(Fetcher([known], 10**6), f"http://{known}/scene.png") == SCENE
    assert looked.count("camera.example") == 1


def test_no_host_is_allowed_by_default(run, camera):
    camera.asked.clear()
    for name in ("image", "messages"):
        url = f"http://127.0.0.1:{camera.server_port}/scene.png"
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        body = (
            {"task": "llava", "image": url}
            if name == "image"
            else {"model": "llava", "messages": [{"role": "user", "content": parts}]}
        )
        path = "/v1/ask" if name == "image" else "/v1/chat/completions"
        reply = run.client.post(path, json=body)
        assert (reply.status_code, "fetches no pictures" in reply.text) == (400, True)
    assert not camera.asked
