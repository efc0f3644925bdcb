"""What an attacker tries: each has a test. Keys and fetched pictures have files of their own."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
import zlib

import pytest

from tests.serve.extra import Route, StreamingResponse
from tests.serve.running import LLAVA, T5, read_all, running, until
from tvp.sdk.errors import RequestError
from tvp.sdk.serve.bodies import MOST_PIECES, parse_json
from tvp.sdk.serve.events import event
from tvp.sdk.serve.own import _json
from tvp.sdk.serve.refusals import Refusal
from tvp.sdk.serve.settings import Settings
from tvp.sdk.serve.tasks import Served, check_name

HOST = b"Host: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def strict():
    """A server with short limits."""
    settings = Settings(max_body=100_000, body_seconds=0.5, silent_seconds=1.0, max_connections=12, max_pixels=10**6)
    with running(
        Settings(**{**vars(settings), "hosts": ("127.0.0.1", "localhost")}), bundles={"llava": LLAVA}
    ) as server:
        yield server


@pytest.fixture
def alive(strict):
    """The server answers behind whatever a test did to it."""
    yield strict
    until(lambda: len(strict.server.server_state.connections) <= 2)
    assert strict.ask(max_new_tokens=1).status_code == 200


# Paths.


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd", "/v1/tasks/../../etc/passwd", "/v1/tasks/%2e%2e%2f%2e%2e%2fetc%2fpasswd/preview",
        "/v1/models/..%2f..", "/v1/models/%00", "//v1/tasks", "/v1/tasks/", "/%2e/v1/tasks", "/v1/tasks;a=b",
        "/v1/models/llava%0d%0aSet-Cookie:a", "http://elsewhere/v1/tasks", "/healthz/..", "*",
    ],
)  # fmt: skip
def test_a_path_leads_nowhere_else(alive, path):
    for method in ("GET", "POST", "DELETE"):
        reply = alive.raw(
            f"{method} {path} HTTP/1.1\r\n".encode() + HOST + b"Connection: close\r\nContent-Length: 0\r\n\r\n"
        )
        status = int(reply.split(b" ", 2)[1])
        assert 400 <= status < 500, reply[:200]
        assert b"root:" not in reply
        assert b"set-cookie" not in reply.partition(b"\r\n\r\n")[0].lower()


# Heads.


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 5, 6\r\n",
        b" Content-Length: 5\r\n",
        b"Content-Length : 5\r\n",
        b"X: a\nContent-Length: 5\r\n\x00",
    ],
)
def test_no_second_request_is_smuggled_in_a_body(alive, head):
    """Whatever this server and a proxy before it might read differently is no request."""
    inner = b"GET /v1/tasks HTTP/1.1\r\n" + HOST + b"\r\n"
    start = b"POST /v1/ask HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    reply = alive.raw(start + head + b"\r\n0\r\n\r\n" + inner)
    assert reply.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), reply[:200]
    assert b'"tasks"' not in reply


def test_a_head_without_end_is_refused(alive):
    reply = alive.raw(b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 200_000)
    assert reply[:12] in (b"", b"HTTP/1.1 400")


def test_a_page_elsewhere_cannot_ask(alive):
    """By a name that leads to 127.0.0.1, or from a page of another site: a browser says so."""
    for headers, status in (
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:8000"}, 421),
        ({"host": "evil@127.0.0.1@evil.example"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": f"http://127.0.0.1:{alive.port + 1}"}, 403),
        ({"origin": f"http://127.0.0.1:{alive.port}"}, 200),
        ({"origin": f"https://127.0.0.1:{alive.port}"}, 200),  # this server's own page, behind a proxy with TLS
        ({"host": "localhost"}, 200),
    ):
        reply = alive.client.get("/v1/tasks", headers=headers)
        assert reply.status_code == status, headers
        assert not [name for name in reply.headers if name.startswith("access-control")]
    two = alive.raw(b"GET /v1/tasks HTTP/1.1\r\n" + HOST + HOST + b"Connection: close\r\n\r\n")
    assert two.startswith(b"HTTP/1.1 400")
    preflight = alive.client.options("/v1/ask", headers={"origin": "https://evil.example"})
    assert (preflight.status_code, "access-control-allow-origin" in preflight.headers) == (403, False)


# Bodies.


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" * 40_000 + b"]" * 40_000, "nested too deeply"),
        (b'{"a":' + b"[" * 49_000, "nested too deeply"),
        (b'{"a":[' + b"[]," * 30_000 + b"1]}", "more than 50,000 values"),
        (b'{"a":' + b"9" * 90_000 + b"}", "a number that is none"),
        (b'{"temperature":NaN}', "a number that is none"),
        (b'{"temperature":-Infinity}', "a number that is none"),
        (b"{'a':1}", "no JSON"),
        (b'{"a":1} {"b":2}', "no JSON"),
        (b'"text"', "must be an object"),
        (b"\xff\xfe{}", "not in UTF-8"),
        (b"", "no JSON"),
        (b'{"image":"\\ud800","task":"llava"}', "no base64"),
        (b'{"image":{"a":1},"task":"llava"}', "it must be a data URL"),
        (b'{"image":"aGk=","task":["llava"]}', "'task' must be one text"),
        (b'{"image":"aGk=","question":{"a":1}}', "'question' must be one text"),
        (b'{"image":"data:image/png,aGk="}', "A data URL of a picture begins with"),
        (b'{"image":"file:///etc/passwd"}', "Other addresses are not read"),
        (b'{"image":"/etc/passwd"}', "no base64|known format"),
        (b'{"image":"aGk=","question":"\\ud800"}', "."),
    ],
)
def test_bad_json_is_refused(alive, body, says):
    reply = alive.client.post("/v1/ask", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text
    message = reply.json()["error"]["message"]
    assert any(part in message for part in says.split("|")), message


def test_values_are_counted_before_they_are_made():
    with pytest.raises(Refusal, match="more than"):
        parse_json(b"[" + b"{}," * MOST_PIECES + b"1]")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--b", b"--b--", b"--b\r\n\r\n--b--\r\n",
        b"--c\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--c--",
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\nhalf',
        b"--b\r\nX: " + b"a" * 5000 + b"\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\xfe\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 65 + b"--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="../../x"\r\n\r\nx\r\n' * 2 + b"--b--\r\n",
    ],
)  # fmt: skip
def test_a_bad_form_is_refused(alive, body):
    for kind in (
        "multipart/form-data; boundary=b",
        "multipart/form-data",
        "multipart/form-data; boundary=" + "b" * 300,
    ):
        reply = alive.client.post("/v1/ask", content=body, headers={"content-type": kind})
        assert reply.status_code == 400, reply.text


def test_other_types_are_refused(alive):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json2", ""):
        assert alive.client.post("/v1/ask", content=b"{}", headers={"content-type": kind}).status_code == 415


def test_a_large_body_is_refused_by_its_head_and_by_its_bytes(alive):
    def pieces():
        for _ in range(5):
            yield b" " * 30_000

    headers = {"content-type": "application/json"}
    for content in (b" " * 100_001, pieces()):
        assert alive.client.post("/v1/ask", content=content, headers=headers).status_code == 413
    start = b"POST /v1/ask HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", alive.port), 20) as connection:
        connection.sendall(start + b"Content-Length: " + b"9" * 18 + b"\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_picture_that_unpacks_to_far_more_is_refused(alive):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 5_000_000)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    reply = alive.ask(bomb)
    assert (reply.status_code, "60000 x 60000 pixels" in reply.text) == (400, True)


# Time and connections.


def test_a_slow_body_is_ended(alive):
    start = b"POST /v1/ask HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", alive.port), 20) as connection:
        connection.sendall(start + b"{")
        assert b" 408 " in read_all(connection)  # which ends, though the body never comes


@pytest.mark.parametrize(
    "begin",
    [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\nGET /he"],
)
def test_a_slow_head_is_ended(alive, begin):
    """From the start, and behind a first request; whether or not a byte comes now and then."""
    with socket.create_connection(("127.0.0.1", alive.port), 20) as connection:
        connection.sendall(begin)
        ended = threading.Event()

        def dribble():
            while not ended.wait(0.2):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=dribble)
        if begin:
            thread.start()
        read_all(connection)
        ended.set()
    if begin:
        thread.join()


def test_half_a_body_costs_nothing(alive):
    start = b"POST /v1/ask HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", alive.port), 20) as connection:
            connection.sendall(start)
    until(lambda: not len(alive.service.engine.waiting))


def test_too_many_connections_are_told_so_and_the_others_go_on(alive):
    open_ones = [socket.create_connection(("127.0.0.1", alive.port), 20) for _ in range(20)]
    try:
        told = [connection for connection in open_ones if _has_news(connection)]
        assert len(told) >= 8
        assert told[0].recv(4096).startswith(b"HTTP/1.1 503")
    finally:
        for connection in open_ones:
            connection.close()


def _has_news(connection):
    connection.settimeout(0.3)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False


def test_a_client_that_does_not_read_is_ended(alive):
    """What nobody takes fills the buffers, and then the connection ends."""
    app = alive.server.config.app.app

    async def flood(request):
        return StreamingResponse(iter([b"x" * 1_000_000] * 100))

    app.routes.append(Route("/flood", flood))
    try:
        with socket.create_connection(("127.0.0.1", alive.port), 20) as connection:
            connection.sendall(b"GET /flood HTTP/1.1\r\n" + HOST + b"\r\n")
            connections = alive.server.server_state.connections
            until(lambda: any(one.flow.write_paused for one in [*connections]))
            until(lambda: not any(one.flow.write_paused for one in [*connections]))
    finally:
        app.routes.pop()


# Texts.

SCRIPT = "<script>alert(1)</script>"


def test_texts_of_strangers_are_data_and_never_a_page(alive, monkeypatch):
    """Labels, questions and names come back as JSON, which a browser neither guesses at nor runs."""
    (served,) = alive.service.tasks
    object.__setattr__(served.task.manifest, "labels", (SCRIPT, "</title>"))
    try:
        replies = [
            alive.client.get("/v1/tasks"),
            alive.ask(path="/v1/rank", question=SCRIPT, labels=[SCRIPT, "a"]),
            alive.ask(task=SCRIPT),
            alive.ask(**{SCRIPT: "a"}),
            alive.client.get(f"/v1/models/{SCRIPT}"),
            alive.client.get(f"/{SCRIPT}"),
            alive.ask(question="What?", stream="true"),
            alive.client.get("/openapi.json"),
            alive.client.get("/metrics"),
        ]
        assert SCRIPT in replies[0].text
        assert SCRIPT in replies[1].text
    finally:
        object.__setattr__(served.task.manifest, "labels", ("1", "2", "3", "4"))
    for reply in replies:
        assert reply.headers["content-type"].split(";")[0] in ("application/json", "text/event-stream", "text/plain")
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-store"
        assert "server" not in reply.headers


def test_an_answer_cannot_end_its_event_early():
    assert event({"text": "a\n\ndata: [DONE]\r\n\r\n"}).count(b"\n") == 2
    assert event({"text": "a\u2028\u2029\r"}).splitlines() == [event({"text": "a\u2028\u2029\r"})[:-2], b""]


@pytest.mark.parametrize("name", [SCRIPT, "../up", "a/b", "", "a b", "a\n", "é", ".hidden", "a" * 65, "a\x1b[2J"])
def test_a_task_is_not_served_under_a_name_that_is_more_than_one(name):
    with pytest.raises(RequestError, match="cannot be served as"):
        check_name(name)


def test_a_bundle_with_such_a_name_needs_another(alive, monkeypatch):
    (served,) = alive.service.tasks
    monkeypatch.setattr(type(served.task), "name", property(lambda task: SCRIPT))
    with pytest.raises(RequestError, match="Give it another one: NAME=TASK"):
        alive.service.tasks.open(None, T5)
    other = alive.service.tasks.open("other", T5)
    assert isinstance(other, Served)
    other.task.close()


# What is told, and what is written down.


def test_a_bug_tells_the_client_nothing_and_the_log_no_words(alive, monkeypatch, caplog):
    words = "secret question"

    def bug(jobs):
        raise ZeroDivisionError(words)

    monkeypatch.setattr(alive.service.engine, "_together", bug)
    with caplog.at_level(logging.INFO):
        replies = [alive.ask(question="secret question"), alive.ask(question="secret question", stream="true")]
    monkeypatch.undo()
    for reply in replies:
        assert reply.status_code == 500
        assert reply.json()["error"]["message"] == "The server failed at this request. Its log says why."
    said = caplog.text
    assert "ZeroDivisionError" in said
    assert "engine.py" in said
    assert "secret" not in said


def test_the_access_log_has_neither_questions_nor_pictures_nor_a_clients_lines(alive, caplog):
    with caplog.at_level(logging.INFO):
        alive.ask(question="secret question", max_new_tokens=1)
        alive.client.get("/v1/models/x%0a2026-01-01 forged line")
        alive.client.get("/x?secret=1", headers={"user-agent": "secret"})
        alive.raw(b"SECRET /x HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    lines = [record.getMessage() for record in caplog.records if record.name == "tvp.serve.access"]
    assert len(lines) == 4
    assert lines[0].startswith("127.0.0.1 - POST /v1/ask 200 ")
    assert [line.split()[3] for line in lines] == ["/v1/ask", "/v1/models/{name}", "(none)", "(none)"]
    for word in ("secret", "SECRET", "forged", "\n"):
        assert not [line for line in lines if word in line]


def test_counters_have_no_clients_words(alive):
    alive.client.get("/v1/models/secret")
    alive.client.request("SECRET", "/secret")
    assert "secret" not in alive.client.get("/metrics").text.lower()


def test_json_stays_json():
    """A score that is no number is null: clients in other languages cannot read NaN."""
    assert json.loads(bytes(_json({"score": float("nan")}).body)) == {"score": None}
