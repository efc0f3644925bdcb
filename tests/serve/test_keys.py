"""Who may ask: keys from a file, compared in constant time."""

from __future__ import annotations

import hmac
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serve.running import LLAVA, SCENE, T5, running
from tvp.sdk.errors import RequestError
from tvp.sdk.formats.archive import unpack
from tvp.sdk.formats.manifest import read_task_manifest, write_manifest
from tvp.sdk.serve.keys import Caller, Keys

ONE, TWO, BOSS = (f"{name}-{name * 4}" for name in ("first", "second", "chief"))  # every process has the same


def write(file, text):
    file.touch(0o600)
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory):
    text = f"# the cameras\ncamera-1 {ONE}\ncamera-2 {TWO}  # the yard\n\nboss {BOSS} admin\n"
    return write(tmp_path_factory.mktemp("keys") / "keys", text)


@pytest.fixture(scope="module")
def server(keys_file):
    with running(keys=keys_file, bundles={"llava": LLAVA}) as server:
        yield server


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_all_but_health_needs_a_key(server):
    for method, path in (
        ("GET", "/v1/tasks"), ("GET", "/v1/models"), ("POST", "/v1/ask"), ("POST", "/v1/chat/completions"),
        ("GET", "/metrics"), ("GET", "/openapi.json"), ("DELETE", "/v1/tasks/llava"), ("GET", "/nothing"),
    ):  # fmt: skip
        for headers in (
            {}, bearer(ONE[:-1]), bearer(ONE + "a"), bearer("camera-1"), {"authorization": ONE},
            {"authorization": f"Basic {ONE}"}, {"authorization": "Bearer"}, bearer("x" * 5000),
        ):  # fmt: skip
            reply = server.client.request(method, path, headers=headers)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), (path, headers)
            assert ONE not in reply.text
    for path in ("/healthz", "/readyz"):
        assert server.client.get(path).status_code == 200


def test_a_key_may_ask_and_an_admin_may_load(server):
    for key in (ONE, TWO, BOSS):
        reply = server.client.post("/v1/ask", files={"image": SCENE}, data={"max_new_tokens": "1"}, headers=bearer(key))
        assert reply.status_code == 200
    for key, status in ((ONE, 403), (BOSS, 404)):
        assert server.client.delete("/v1/tasks/other", headers=bearer(key)).status_code == status
        assert (
            server.client.post("/v1/tasks", json={"task": "none-of-these"}, headers=bearer(key)).status_code == status
        )


def test_without_keys_nobody_is_an_admin(run):
    assert run.client.delete("/v1/tasks/llava").status_code == 403
    assert run.client.post("/v1/tasks", json={"task": "llava"}).status_code == 403


def test_with_keys_any_name_of_the_host_is_right(server):
    assert server.client.get("/v1/tasks", headers={**bearer(ONE), "host": "cameras.example"}).status_code == 200


def test_every_key_is_compared_whole_whichever_is_sent(keys_file, monkeypatch):
    """The work is the same for the first, the last, a wrong and a nearly right key: as many digests of one length."""
    keys, compared = Keys(keys_file), []
    real = hmac.compare_digest
    monkeypatch.setattr(
        "tvp.sdk.serve.keys.hmac.compare_digest", lambda a, b: (compared.append((len(a), len(b))), real(a, b))[1]
    )
    for key in (ONE, TWO, BOSS, "wrong", ONE[:-1] + "?", ONE * 1000, ""):
        compared.clear()
        found = keys.find(f"Bearer {key}")
        assert compared == [(32, 32)] * 3
        assert (found is not None) == (key in (ONE, TWO, BOSS))
    assert keys.find(f"bearer {BOSS}") == Caller("boss", True)


def test_keys_are_not_kept(keys_file):
    keys = Keys(keys_file)
    assert ONE not in repr(vars(keys)) + repr(keys._known)
    assert keys.names == ["camera-1", "camera-2", "boss"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no keys"),
        ("# none\n", "has no keys"),
        ("alone\n", "line 1: a line has a name and a key"),
        (f"a {ONE}\nb {TWO} root\n", "line 2: a line has a name and a key"),
        ("a short\n", "has 5 characters; at least 16"),
        (f"a {ONE}\na {TWO}\n", "the name 'a' comes twice"),
    ],
)
def test_a_file_of_keys_is_checked(tmp_path, text, says):
    with pytest.raises(RequestError, match=says):
        Keys(write(tmp_path / "keys", text))


def test_a_file_that_others_may_read_is_refused(tmp_path):
    file = write(tmp_path / "keys", f"a {ONE}\n")
    file.chmod(0o640)
    with pytest.raises(RequestError, match="chmod 600"):
        Keys(file)
    with pytest.raises(RequestError, match="cannot be read"):
        Keys(tmp_path / "none")


def test_keys_that_are_wrong_when_they_are_read_again_stay(tmp_path):
    file = write(tmp_path / "keys", f"a {ONE}\n")
    keys = Keys(file)
    file.write_text("nonsense\n")
    with pytest.raises(RequestError):
        keys.read()
    assert keys.find(f"Bearer {ONE}") == Caller("a")
    file.write_text(f"b {TWO}\n")
    keys.read()
    assert (keys.find(f"Bearer {ONE}"), keys.find(f"Bearer {TWO}")) == (None, Caller("b"))


# What an admin may do.


def test_an_admin_loads_swaps_and_drops(server, tmp_path, monkeypatch, tasks):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    (tmp_path / "tasks").mkdir()
    unpack(Path(T5), tmp_path / "tasks" / "fruit")
    boss = bearer(BOSS)
    loaded = server.client.post("/v1/tasks", json={"task": "fruit", "name": "fresh"}, headers=boss)
    assert (loaded.status_code, loaded.json()["kind"]) == (201, "seq2seq"), loaded.text

    def ask():
        return server.client.post("/v1/ask", files={"image": SCENE}, data={"task": "fresh"}, headers=bearer(ONE)).json()

    assert tuple(ask()["tokens"]) == tasks["t5"].ask(SCENE).tokens
    file = tmp_path / "tasks" / "fruit" / "manifest.json"
    write_manifest(replace(read_task_manifest(file), max_new_tokens=3), file)
    assert server.client.post("/v1/tasks", json={"task": "fruit", "name": "fresh"}, headers=boss).status_code == 201
    assert tuple(ask()["tokens"]) == tasks["t5"].ask(SCENE, max_new_tokens=3).tokens
    assert server.client.delete("/v1/tasks/fresh", headers=boss).status_code == 204
    assert ask()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "task", ["../fruit", "/etc", "a/b", "", ".", "..", "fruit.tvp", "~", None, 3, ["fruit"], "fru\x00it", "x" * 65]
)
def test_an_admin_of_the_service_cannot_name_a_path(server, tmp_path, monkeypatch, task):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    (tmp_path / "tasks").mkdir()
    unpack(Path(T5), tmp_path / "fruit")
    reply = server.client.post("/v1/tasks", json={"task": task}, headers=bearer(BOSS))
    assert reply.status_code in (400, 404)
    assert [one["name"] for one in server.client.get("/v1/tasks", headers=bearer(ONE)).json()["tasks"]] == ["llava"]


def test_a_bundle_that_is_damaged_changes_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    (tmp_path / "tasks").mkdir()
    unpack(Path(T5), tmp_path / "tasks" / "llava")
    (tmp_path / "tasks" / "llava" / "preprocess.onnx").write_bytes(b"no graph")
    reply = server.client.post("/v1/tasks", json={"task": "llava"}, headers=bearer(BOSS))
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_bundle")
    found = server.client.get("/v1/tasks", headers=bearer(ONE)).json()["tasks"]
    assert [one["kind"] for one in found] == ["causal"]
