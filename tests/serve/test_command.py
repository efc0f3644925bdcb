"""The command `tvp serve` as a process: signals, TLS, and what it refuses to start with."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.serve.extra import httpx
from tests.serve.running import LLAVA, QUESTION, SCENE, T5, until
from tvp.sdk.cli import cli
from tvp.sdk.formats.archive import unpack
from tvp.sdk.serve.settings import Settings


@contextmanager
def process(*arguments, home):
    """`tvp serve` on a free port; yields it, its address, and what it writes to stderr."""
    command = [sys.executable, "-m", "tvp.sdk.cli", "serve", "--port", "0", *map(str, arguments)]
    environment = {**os.environ, "TVP_HOME": str(home)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as started:
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(iter(started.stderr.readline, "")))
        reader.start()
        try:
            line = started.stdout.readline()
            assert line.startswith("Serving "), (line, said)
            yield started, line.split()[-1], said
        finally:
            started.kill()
            reader.join()


def test_sigterm_answers_what_was_accepted_and_ends_well(tmp_path):
    with process(LLAVA, home=tmp_path) as (server, url, said), ThreadPoolExecutor(16) as pool:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:

            def ask(n):
                return client.post(
                    "/v1/ask", files={"image": SCENE}, data={"question": "Is it red?", "max_new_tokens": str(n)}
                )

            assert ask(1).status_code == 200
            asked = [pool.submit(ask, 100 + n) for n in range(16)]
            until(lambda: "tvp_queue_questions 0.0" not in client.get("/metrics").text or any(a.done() for a in asked))
            waiting = [line for line in said if " POST /v1/ask " in line]
            server.send_signal(signal.SIGTERM)
            codes = [one.result().status_code for one in asked]
        assert codes == [200] * 16
        assert server.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/healthz", trust_env=False)
    assert len(waiting) < 17, "all were answered before the signal: the test says nothing"
    assert not [line for line in said if "Traceback" in line or "ERROR" in line], said


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_sighup_reads_list_and_keys_again(tmp_path):
    unpack(Path(LLAVA), tmp_path / "llava")
    unpack(Path(T5), tmp_path / "t5")
    listed, keys = tmp_path / "tasks.txt", tmp_path / "keys"
    listed.write_text("one=llava\n")
    keys.touch(0o600)
    keys.write_text("a aaaaaaaaaaaaaaaa\n")
    with process("--list", listed, "--keys", keys, home=tmp_path) as (server, url, said):

        def names(key):
            reply = httpx.get(url + "/v1/models", headers={"authorization": f"Bearer {key}"}, trust_env=False)
            return [model["id"] for model in reply.json()["data"]] if reply.status_code == 200 else reply.status_code

        assert names("a" * 16) == ["one"]
        listed.write_text("two=t5\n")
        keys.write_text("b bbbbbbbbbbbbbbbb\n")
        server.send_signal(signal.SIGHUP)
        until(lambda: names("b" * 16) == ["two"])
        assert names("a" * 16) == 401
        keys.write_text("nonsense\n")
        server.send_signal(signal.SIGHUP)
        until(lambda: any("not all was renewed" in line for line in said))
        assert names("b" * 16) == ["two"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate, and it is not here")
def test_it_speaks_tls(tmp_path):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate], check=True, capture_output=True,
    )  # fmt: skip
    with process(LLAVA, "--certificate", certificate, "--private-key", key, home=tmp_path) as (_, url, _):
        context = ssl.create_default_context(cafile=str(certificate))
        port = url.rpartition(":")[2]
        assert url.startswith("https://")
        with httpx.Client(verify=context, trust_env=False) as client:
            reply = client.post(f"https://localhost:{port}/v1/ask", files={"image": SCENE}, data={"question": QUESTION})
            assert reply.status_code == 200
        old = ssl.create_default_context(cafile=str(certificate))
        old.minimum_version, old.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_2
        with httpx.Client(verify=old, trust_env=False) as client:
            assert client.get(f"https://localhost:{port}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--host", "0.0.0.0", LLAVA], 2, "Give keys: --keys FILE"),
        (["--host", "192.168.1.2", LLAVA], 2, "Give keys: --keys FILE"),
        (["--certificate", "c.pem", LLAVA], 2, "belong together"),
        ([], 2, "Name a task"),
        (["--queue", "0", LLAVA], 2, "not in the range"),
        (["--keys", "none", LLAVA], 1, "cannot be read"),
        (["nothing-here"], 1, "There is no bundle 'nothing-here'"),
        ([LLAVA, T5], 1, "Two tasks are called 'count'. Give one another name: NAME=TASK."),
        (["--certificate", __file__, "--private-key", __file__, LLAVA], 1, "cannot be used"),
    ],
)
def test_what_it_does_not_start_with(arguments, code, says, monkeypatch):
    result = CliRunner().invoke(cli, ["serve", "--port", "0", *arguments])
    error = result.output if result.exit_code == 2 else str(result.exception)
    assert (result.exit_code, says in error) == (code, True), error


def test_a_port_that_is_taken_is_told(run):
    result = CliRunner().invoke(cli, ["serve", "--port", str(run.port), LLAVA])
    assert f"cannot listen at 127.0.0.1, port {run.port}" in str(result.exception)


def test_its_help_needs_no_extra():
    code = """
import sys, importlib.abc
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('starlette', 'uvicorn', 'prometheus_client', 'python_multipart'):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from click.testing import CliRunner
from tvp.sdk.cli import cli
print(CliRunner().invoke(cli, ['serve', '--help']).exit_code)
result = CliRunner().invoke(cli, ['serve', 'task'])
print(result.exit_code, result.output)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("0\n1 ")
    assert "pip install '.[serve]'" in said


def test_limits_are_numbers_above_none():
    for wrong in ({"n_waiting": 0}, {"time_limit": 0}, {"max_view_bytes": -1}, {"batch": float("nan")}):
        with pytest.raises(Exception, match="must be a number of at least"):
            Settings(**wrong)
    assert Settings(max_view_bytes=0).max_view_bytes == 0
