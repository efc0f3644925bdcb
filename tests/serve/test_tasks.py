"""Tasks come, change and go while they are asked."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serve.running import LLAVA, PICTURES, SCENE, T5, Gate, running, standing_still, until
from tvp.sdk.errors import BundleError, RequestError
from tvp.sdk.formats.archive import unpack
from tvp.sdk.formats.manifest import read_task_manifest, write_manifest
from tvp.sdk.serve.settings import Settings
from tvp.sdk.serve.tasks import Tasks, read_list, split


def change(folder, **fields):
    file = folder / "manifest.json"
    write_manifest(replace(read_task_manifest(file), **fields), file)


def in_loop(server, coroutine):
    loop = server.service.engine._loop.get_loop()
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)


@pytest.fixture
def bundle(tmp_path):
    unpack(Path(LLAVA), tmp_path / "llava")
    return tmp_path / "llava"


def test_swaps_under_load_fail_no_request(bundle, tasks):
    """Each answer is that of the task before or behind a swap; views of the one before are not used behind it."""
    expected = {
        n: [tasks["llava"].ask(picture, "What?", max_new_tokens=n).tokens for picture in PICTURES] for n in (3, 5)
    }
    change(bundle, max_new_tokens=3)
    with running(bundles={"llava": str(bundle)}) as server:
        ended, wrong, n_asked = threading.Event(), [], [0] * 4

        def ask(number):
            while not ended.is_set():
                reply = server.ask(PICTURES[number], question="What?")
                n_asked[number] += 1
                if reply.status_code != 200 or tuple(reply.json()["tokens"]) not in [
                    e[number] for e in expected.values()
                ]:
                    wrong.append(reply.text)

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask, number) for number in range(4)]
            for turn in range(6):
                change(bundle, max_new_tokens=5 if turn % 2 == 0 else 3)
                in_loop(server, server.service.tasks.load("llava", str(bundle)))
                before = sum(n_asked)
                until(lambda before=before: sum(n_asked) > before + 4)
            ended.set()
            for client in clients:
                client.result()
        assert not wrong
        assert tuple(server.ask(question="What?").json()["tokens"]) == expected[3][0]
        numbers = {key[0] for key in server.service.engine.views._views}
        assert numbers == {served.number for served in server.service.tasks}


def test_a_dropped_task_answers_what_it_accepted_and_is_closed(tasks, monkeypatch):
    with running() as server, ThreadPoolExecutor(3) as pool:
        llava = server.service.tasks.find("llava")
        with standing_still(server, monkeypatch) as gate:
            assert isinstance(gate, Gate)
            gate.occupy(pool, server)
            asked = pool.submit(server.ask, task="llava", max_new_tokens=4)
            until(lambda: len(server.service.engine.waiting) == 1)
            server.in_loop(lambda: server.service.tasks.drop("llava"))
            assert server.ask(task="llava").status_code == 404
            assert llava.task._model is not None
            gate.open()
            assert tuple(asked.result().json()["tokens"]) == tasks["llava"].ask(SCENE, max_new_tokens=4).tokens
        until(lambda: llava.task._model is None)
        assert [one.name for one in server.service.tasks] == ["t5"]


def test_the_memory_of_a_swapped_task_goes(bundle):
    with running(bundles={"llava": str(bundle)}) as server:
        before = weakref.ref(server.service.tasks.find("llava").task._requests)  # which its views hold, too
        server.ask(max_new_tokens=2)
        in_loop(server, server.service.tasks.load("llava", str(bundle)))
        until(lambda: (gc.collect(), before() is None)[1])


def test_a_list_is_followed(tmp_path, bundle, caplog):
    listed = tmp_path / "tasks.txt"
    listed.write_text("llava  # the first\n\nother=llava\n")
    assert read_list(listed) == [(None, str(bundle)), ("other", str(bundle))]
    with running(bundles={"llava": str(bundle), "t5": T5}) as server:
        first = {served.name: served.number for served in server.service.tasks}
        in_loop(
            server,
            server.service.tasks.follow([("llava", str(bundle)), ("other", str(bundle)), (None, str(bundle / "no"))]),
        )
        found = {served.name: served.number for served in server.service.tasks}
        assert set(found) == {"llava", "other"}
        assert found["llava"] == first["llava"], "what has not changed is not loaded again"
        assert "no was not loaded: There is no bundle" in caplog.text
        change(bundle, max_new_tokens=2)
        in_loop(server, server.service.tasks.follow([("llava", str(bundle)), ("other", str(bundle))]))
        again = {served.name: served.number for served in server.service.tasks}
        assert not set(again.values()) & set(found.values())
        assert len(server.ask(task="other").json()["tokens"]) == 2
        (bundle / "manifest.json").write_text("damaged")
        in_loop(server, server.service.tasks.follow([("llava", str(bundle))]))
        assert len(server.ask(task="llava").json()["tokens"]) == 2, "it stays as it was"


def test_names_and_sources():
    assert split("runs/camera") == (None, "runs/camera")
    assert split("door=runs/camera") == ("door", "runs/camera")
    assert split("runs/a=b") == (None, "runs/a=b")
    with pytest.raises(RequestError, match="cannot be served as"):
        split("a b=runs/camera")


def test_a_list_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(RequestError, match="cannot be read"):
        read_list(tmp_path / "none")


def test_a_task_is_asked_before_it_is_served(bundle, monkeypatch):
    """A bundle that loads and cannot answer is not put in the place of one that does."""
    tasks = Tasks(Settings())
    monkeypatch.setattr(
        "tvp.sdk._task.Task.ask", lambda *a, **o: (_ for _ in ()).throw(BundleError("It answers nothing."))
    )
    with pytest.raises(BundleError, match="answers nothing"):
        tasks.open(None, str(bundle))


def test_golden_cases_are_replayed_where_that_is_wanted(bundle, monkeypatch):
    replayed = []
    monkeypatch.setattr("tvp.sdk._task.Task.check", lambda task: replayed.append(task.name))
    Tasks(Settings()).open("a", str(bundle)).task.close()
    Tasks(Settings(), check=True).open("a", str(bundle)).task.close()
    assert replayed == ["count"]
