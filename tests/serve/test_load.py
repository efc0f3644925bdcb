"""Under load: refused at once or answered, cancelled when nobody waits, and one's trouble is not another's."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.extra import httpx
from tests.serve.running import LLAVA, PICTURES, SCENE, T5, running, standing_still, until
from tvp.sdk.errors import ProviderError
from tvp.sdk.serve import engine as engine_module
from tvp.sdk.serve.jobs import Job
from tvp.sdk.serve.settings import Settings


@pytest.fixture(scope="module")
def small():
    """A server with three places."""
    with running(Settings(n_waiting=3, batch=2)) as server:
        yield server


def test_a_full_queue_refuses_before_the_body_is_read(small, monkeypatch):
    engine = small.service.engine
    with standing_still(small, monkeypatch) as gate, ThreadPoolExecutor(8) as pool:
        first = gate.occupy(pool, small)
        others = [pool.submit(small.ask, task="llava", max_new_tokens=2) for _ in range(3)]
        until(lambda: len(engine.waiting) == 3)
        with socket.create_connection(("127.0.0.1", small.port), 20) as connection:
            head = b"POST /v1/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 5000000\r\n\r\n")  # and nothing of the body
            refused = connection.recv(65536)
        assert refused.startswith(b"HTTP/1.1 429")
        assert b"retry-after: " in refused
        reply = small.ask(task="t5")
        assert (reply.status_code, reply.json()["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        gate.open()
        assert [done.result().status_code for done in (first, *others)] == [200] * 4


def test_the_shared_connection_goes_on_behind_a_refusal(small, monkeypatch):
    """A body that was not read must not be taken for the next request."""
    with httpx.Client(base_url=small.client.base_url, trust_env=False) as client:
        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr(small.service.engine.waiting, "n_most", 0)
                assert client.post("/v1/ask", files={"image": SCENE}, data={"task": "t5"}).status_code == 429
            assert client.post("/v1/ask", files={"image": SCENE}, data={"task": "t5"}).status_code == 200


@pytest.mark.parametrize("stream", ["false", "true"])
def test_who_goes_is_forgotten(small, tasks, monkeypatch, stream):
    engine = small.service.engine
    with standing_still(small, monkeypatch) as gate, ThreadPoolExecutor(4) as pool:
        first = gate.occupy(pool, small)
        request = httpx.Request(
            "POST",
            f"http://127.0.0.1:{small.port}/v1/ask",
            files={"image": SCENE},
            data={"task": "llava", "stream": stream},
        )
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        with socket.create_connection(("127.0.0.1", small.port), 20) as connection:
            connection.sendall(f"POST /v1/ask HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            until(lambda: len(engine.waiting) == 1)
        until(lambda: len(engine.waiting) == 0)
        gate.open()
        assert first.result().status_code == 200
    until(lambda: not any(served._n_questions for served in small.service.tasks))


@pytest.fixture
def slow(monkeypatch):
    """Each token takes 20 ms, and LONG has more than two hundred."""
    real = Job.tell
    monkeypatch.setattr(Job, "tell", lambda job, answering: (threading.Event().wait(0.02), real(job, answering)))


LONG = {"task": "llava", "question": "Is it red?", "max_new_tokens": 1000}


def test_a_running_answer_ends_when_its_client_goes(small, slow, monkeypatch):
    """A long answer is cut at its next token: the engine is free again."""
    job_seen, real = [], small.service.engine._compute
    monkeypatch.setattr(small.service.engine, "_compute", lambda jobs: (job_seen.extend(jobs), real(jobs)))
    with small.client.stream("POST", "/v1/ask", files={"image": SCENE}, data={**LONG, "stream": "true"}) as reply:
        next(reply.iter_bytes())
    until(lambda: job_seen[0].cancel.is_set() and job_seen[0].done.done())
    assert job_seen[0].done.result().finish == "cancelled"
    assert len(job_seen[0].done.result().tokens) < 200


def test_a_stream_says_that_it_lives(small, monkeypatch, tasks):
    object.__setattr__(small.service.settings, "ping_seconds", 0.05)
    try:
        with standing_still(small, monkeypatch) as gate:
            with small.client.stream(
                "POST", "/v1/ask", files={"image": SCENE}, data={"task": "t5", "stream": "true"}
            ) as reply:
                assert reply.status_code == 200
                assert reply.headers["content-type"].startswith("text/event-stream")
                lines = reply.iter_lines()
                assert next(lines) == ": ping"
                gate.open()
                answer = [json.loads(line[6:]) for line in lines if line.startswith("data: ")][-1]["answer"]
            assert tuple(answer["tokens"]) == tasks["t5"].ask(SCENE).tokens
    finally:
        object.__setattr__(small.service.settings, "ping_seconds", 15.0)


def test_an_error_behind_a_sign_of_life_is_an_event(small, monkeypatch):
    object.__setattr__(small.service.settings, "ping_seconds", 0.05)
    try:
        with standing_still(small, monkeypatch) as gate:
            data = {"task": "t5", "stream": "true"}
            with small.client.stream("POST", "/v1/ask", files={"image": b"no picture"}, data=data) as reply:
                lines = reply.iter_lines()
                assert next(lines) == ": ping"
                gate.open()
                (error,) = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
            assert error["error"]["code"] == "invalid_image"
    finally:
        object.__setattr__(small.service.settings, "ping_seconds", 15.0)


def test_time_includes_the_wait(small, monkeypatch):
    with standing_still(small, monkeypatch) as gate, ThreadPoolExecutor(2) as pool:
        late = pool.submit(small.ask, task="llava", time_limit=0.05)
        threading.Event().wait(0.2)
        gate.open()
        reply = late.result()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "out_of_time")
    assert int(reply.headers["retry-after"]) >= 1


def test_time_ends_a_long_answer_where_it_is(small, slow):
    answer = small.ask(**LONG, time_limit=1)
    assert answer.status_code == 200, answer.text
    assert answer.json()["finish"] == "time"
    assert 0 < len(answer.json()["tokens"]) < 200


def test_a_short_answer_does_not_wait_for_a_long_one_of_its_batch(small, monkeypatch):
    told = []
    settle = small.service.engine._settle
    monkeypatch.setattr(
        small.service.engine,
        "_settle",
        lambda job, answer: (told.append((job.settled, len(answer.tokens))), settle(job, answer)),
    )
    with standing_still(small, monkeypatch) as gate, ThreadPoolExecutor(3) as pool:
        first = gate.occupy(pool, small)
        long = pool.submit(small.ask, task="llava", max_new_tokens=50)
        short = pool.submit(small.ask, task="llava", max_new_tokens=2)
        until(lambda: len(small.service.engine.waiting) == 2)
        gate.open()
        assert len(first.result().json()["tokens"]) == 1
        assert [len(done.result().json()["tokens"]) for done in (short, long)] == [2, 50]
    new = [length for settled, length in told if not settled]
    assert new == [1, 2, 50]  # each as soon as it is there


def test_one_bad_picture_costs_its_own_answer_only(small, tasks, monkeypatch):
    with standing_still(small, monkeypatch) as gate, ThreadPoolExecutor(3) as pool:
        gate.occupy(pool, small)
        bad = pool.submit(small.ask, b"no picture", task="llava")
        good = pool.submit(small.ask, PICTURES[1], task="llava", max_new_tokens=4)
        until(lambda: len(small.service.engine.waiting) == 2)
        gate.open()
        assert bad.result().status_code == 400
        assert tuple(good.result().json()["tokens"]) == tasks["llava"].ask(PICTURES[1], max_new_tokens=4).tokens


def test_a_batch_that_fails_is_answered_one_by_one(small, tasks, monkeypatch, caplog):
    real = engine_module.answer_together

    def failing(views, requests):
        if len(views) > 1:
            raise ProviderError("onnxruntime failed while decoding: there is no more memory")
        return real(views, requests)

    monkeypatch.setattr(engine_module, "answer_together", failing)
    with standing_still(small, monkeypatch) as gate, ThreadPoolExecutor(3) as pool:
        gate.occupy(pool, small)
        both = [pool.submit(small.ask, PICTURES[i], task="llava", max_new_tokens=4) for i in (1, 2)]
        until(lambda: len(small.service.engine.waiting) == 2)
        gate.open()
        for done, picture in zip(both, PICTURES[1:3], strict=True):
            assert tuple(done.result().json()["tokens"]) == tasks["llava"].ask(picture, max_new_tokens=4).tokens


def test_tasks_on_one_base_are_answered_together(tasks):
    """Two tasks that share a model share its batches."""
    with running(bundles={"one": LLAVA, "two": LLAVA, "t5": T5}) as server:
        engine, found = server.service.engine, {served.name: served for served in server.service.tasks}
        assert found["one"].task.model is found["two"].task.model
        sizes = engine.metrics.batches._sum
        with (
            pytest.MonkeyPatch.context() as patch,
            standing_still(server, patch) as gate,
            ThreadPoolExecutor(4) as pool,
        ):
            gate.occupy(pool, server)
            batches = []
            real = engine_module.answer_together
            patch.setattr(
                engine_module, "answer_together", lambda views, rows: (batches.append(len(rows)), real(views, rows))[1]
            )
            both = [pool.submit(server.ask, task=name, max_new_tokens=4) for name in ("one", "two")]
            until(lambda: len(engine.waiting) == 2)
            gate.open()
            expected = tasks["llava"].ask(SCENE, max_new_tokens=4).tokens
            assert [tuple(done.result().json()["tokens"]) for done in both] == [expected] * 2
        assert batches[-1] == 2
        assert sizes.get() == 3


def test_good_requests_among_bad_ones_get_their_answers(tasks):
    """Eight clients; some go away, send half a body, rubbish, or a picture that is none. Nothing is left behind."""
    expected = [tasks["llava"].ask(picture, "What?", max_new_tokens=4).tokens for picture in PICTURES]
    with running(Settings(n_waiting=16, silent_seconds=2), bundles={"llava": LLAVA}) as server:

        def act(number):
            kind = number % 6
            if kind == 0:
                head = b"POST /v1/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
                    connection.sendall(head + b"Content-Length: 999\r\n\r\n{")
            elif kind == 1:
                assert server.raw(b"\x16\x03 rubbish\r\n\r\n").startswith(b"HTTP/1.1 400")
            elif kind == 2:
                fields = {"question": "Is it red?", "max_new_tokens": "200", "stream": "true"}
                with server.client.stream("POST", "/v1/ask", files={"image": SCENE}, data=fields) as reply:
                    next(reply.iter_bytes())  # and it goes
            elif kind == 3:
                assert server.ask(b"no picture").status_code == 400
            else:
                reply = server.ask(PICTURES[number % 4], question="What?", max_new_tokens=4)
                assert reply.status_code == 200, reply.text
                assert tuple(reply.json()["tokens"]) == expected[number % 4]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(act, range(96)))
        until(lambda: not any(served._n_questions for served in server.service.tasks))
        assert not len(server.service.engine.waiting)
        until(lambda: len(server.server.server_state.connections) <= 8)
