"""Processes that are forked after a task was loaded: they leave what they inherited alone, load their own, and end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked on this system")

BEFORE = """
import gc, multiprocessing, os, signal, socket, sys, threading, time, warnings
import numpy as np
from tvp import sdk
from tvp.sdk.errors import RequestError
from tvp.sdk._runtime import providers, sharing, stopping

warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of forks with threads
folder, picture = sys.argv[1], np.zeros((10, 10, 3), np.uint8)

def wait(pid, seconds=30):
    for _ in range(seconds * 20):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"

def fork(work):
    \"\"\"Do work in a fork that ends as a whole interpreter does.\"\"\"
    pid = os.fork()
    if pid:
        return wait(pid)
    work()
    raise SystemExit

task = sdk.load(folder)
view = task.see(picture)
expected = view.ask("What?").tokens
begun, running = task.stream(picture, "What?"), task.stream(picture, "What?")
next(running)
"""


def run(code, bundle, seconds=100):
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + textwrap.dedent(code), str(bundle)],
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ENDS = {
    "exits": "pass",
    "closes": "task.close()",
    "drops everything": "del globals()['task'], globals()['view']; gc.collect()",
    "asks": """
        for call in (
            lambda: task.ask(picture, "What?"),
            lambda: task.see(picture),
            lambda: task.rank(picture, "What?", labels=["a"]),
            lambda: task.ask_many([(picture, "What?")]),
            lambda: next(task.stream(picture, "What?")),
            lambda: task.check(),
            lambda: task.pixel_values(picture),
            lambda: task.model,
            lambda: view.ask("What?"),
            lambda: next(view.stream("What?")),
            lambda: view.rank("What?", labels=["a"]),
            lambda: next(view.decode("What?", 3)),
            lambda: next(begun),
            lambda: next(running),
        ):
            try:
                call()
            except RequestError as error:
                assert "Load it again in this process" in str(error)
            else:
                raise AssertionError("it was asked")
""",
    "loads its own": """
        with sdk.load(folder) as own:
            assert own.model is not task._model
            assert own.ask(picture, "What?").tokens == expected
            with sdk.load(folder) as again:
                assert again.model is own.model
        task.close()
""",
    "forks again": """
        own = sdk.load(folder)
        def grandchild():
            try:
                own.ask(picture, "What?")
            except RequestError:
                own.close()
                assert sdk.load(folder).ask(picture, "What?").tokens == expected
        assert fork(grandchild) == 0
        assert own.ask(picture, "What?").tokens == expected
""",
}


@pytest.mark.parametrize("what", ENDS)
def test_a_fork(what, one_bundle):
    work = textwrap.indent(textwrap.dedent(ENDS[what]), "    ")
    said = run(
        f"def work():\n{work}\n"
        "print(fork(work))\n"
        "assert view.ask('What?').tokens == task.ask(picture, 'What?').tokens == expected\n"
        "task.close()\n",
        one_bundle,
    )
    assert said == "0\n"


def test_a_fork_while_threads_of_the_parent_hold_every_lock(one_bundle):
    said = run(
        """
        held, done = threading.Barrier(2), threading.Event()
        def hold():
            with sharing._locks_lock, sharing._locks.setdefault(task.manifest.base, sharing._Lock()).lock:
                with providers._preloading, view._lock, stopping._changed:
                    held.wait()
                    done.wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        def work():
            try:
                view.ask("What?")
            except RequestError:
                assert sdk.load(folder).ask(picture, "What?", time_limit=60).tokens == expected
        print(fork(work))
        done.set()
        """,
        one_bundle,
    )
    assert said == "0\n"


def test_a_signal_of_a_fork_stops_no_run_of_its_parent(one_bundle):
    said = run(
        """
        stopping.stop_on_signals()
        def work():
            signal.signal(signal.SIGTERM, lambda *_: None)
            os.kill(os.getpid(), signal.SIGTERM)
            assert sdk.load(folder).ask(picture, "What?", time_limit=60).tokens == expected
        print(fork(work))
        time.sleep(0.2)  # ten times as long as the parent's thread would need
        assert task.ask(picture, "What?").tokens == expected
        """,
        one_bundle,
    )
    assert said == "0\n"


def test_multiprocessing(one_bundle):
    said = run(
        """
        def work(number):
            with sdk.load(folder) as own:
                return own.ask(picture, "What?").tokens
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            assert pool.map_async(work, range(4)).get(60) == [expected] * 4
            pool.close()
            pool.join()
        child = context.Process(target=task.close)
        child.start()
        child.join(30)
        print(child.exitcode)
        """,
        one_bundle,
    )
    assert said == "0\n"


def test_a_preforking_server_answers_and_stops(one_bundle):
    """As gunicorn with --preload: the parent loads and forks, children accept on one socket, SIGTERM ends them all."""
    said = run(
        """
        listening = socket.create_server(("127.0.0.1", 0))

        def serve():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            own = sdk.load(folder)
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.sendall(f"{os.getpid()} {own.ask(picture, 'What?').tokens}".encode())

        workers = []
        for _ in range(2):
            if not (pid := os.fork()):
                serve()
            workers.append(pid)
        for _ in range(4):
            with socket.create_connection(listening.getsockname(), timeout=60) as client:
                pid, _, tokens = client.recv(9999).decode().partition(" ")
                assert int(pid) in workers
                assert tokens == str(expected)
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        print(*[wait(pid) for pid in workers])
        """,
        one_bundle,
    )
    assert said == "0 0\n"
