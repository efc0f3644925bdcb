"""The server answers as the sdk does, through every endpoint of its own."""

from __future__ import annotations

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.serve.running import LLAVA, PICTURES, QUESTION, SCENE, events_of, running, standing_still, until
from tvp.sdk.serve import engine
from tvp.sdk.serve.app import ROUTES
from tvp.sdk.serve.settings import Settings

DATA_URL = "data:image/png;base64," + base64.b64encode(SCENE).decode()


@pytest.mark.parametrize("name", ["llava", "t5"])
def test_an_answer_is_the_sdks_however_it_is_asked(run, tasks, name):
    expected = tasks[name].ask(SCENE, "What?", max_new_tokens=9)
    fields = {"task": name, "question": "What?", "max_new_tokens": 9}
    pictures = (DATA_URL, DATA_URL.partition(",")[2], DATA_URL.replace("data:image/png", "DATA:"))
    replies = [run.ask(**fields), *(run.client.post("/v1/ask", json={**fields, "image": text}) for text in pictures)]
    for reply in replies:
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        assert (answer["text"], tuple(answer["tokens"])) == (expected.text, expected.tokens)
        assert answer["log_probabilities"] == pytest.approx(expected.log_probabilities, abs=1e-4)
        assert (answer["finish"], answer["unlikeness"]) == (expected.finish, expected.unlikeness)
        assert set(answer["timing"]) == {"see", "first_token", "total", "wait"}


def test_the_tasks_own_question_and_limit_stand_in(run, tasks):
    expected = tasks["llava"].ask(SCENE)
    assert run.ask(task="llava").json()["text"] == expected.text
    assert tuple(run.ask(task="llava", stream="false").json()["tokens"]) == expected.tokens


def test_options_are_the_sdks(run, tasks):
    options = {"max_new_tokens": 30, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 3}
    expected = tasks["llava"].ask(SCENE, "What?", **options)
    assert tuple(run.ask(task="llava", question="What?", **options).json()["tokens"]) == expected.tokens
    stop = expected.text[3:5]
    cut = run.client.post(
        "/v1/ask", json={"image": DATA_URL, "task": "llava", "question": "What?", **options, "stop": [stop]}
    )
    assert cut.json()["finish"] == "stop"
    assert cut.json()["text"] == tasks["llava"].ask(SCENE, "What?", **options, stop=stop).text


@pytest.mark.parametrize("name", ["llava", "t5"])
def test_answers_have_the_structure_that_is_asked_for(run, tasks, name, monkeypatch):
    """In JSON and in forms, in pieces, and in one batch with answers that are free."""
    pytest.importorskip("llguidance", reason="the extra 'structured' is not installed: pip install '.[dev]'")
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    asked = {"task": name, "question": "What?", "max_new_tokens": 40}
    rows = [
        {"schema": json.dumps(schema)}, {"choices": ["red", "blue"]}, {"choices": "red"}, {"regex": "[0-9]{3}"}, {},
        {"schema": json.dumps(schema), "stream": "true"}, {"regex": "[0-9]{99}"},
    ]  # fmt: skip
    with standing_still(run, monkeypatch) as gate, ThreadPoolExecutor(9) as pool:
        first = gate.occupy(pool, run)
        replies = [pool.submit(run.ask, **asked, **row) for row in rows]
        until(lambda: len(run.service.engine.waiting) == len(rows))
        gate.open()
        found = [reply.result(60) for reply in replies]
        first.result(60)
    *texts, streamed, early = found
    assert json.loads(texts[0].json()["text"]) in [[a, b] for a in (True, False) for b in (True, False)]
    assert [texts[1].json()["text"] in ("red", "blue"), texts[2].json()["text"]] == [True, "red"]
    assert re.fullmatch("[0-9]{3}", texts[3].json()["text"])
    assert texts[4].json()["text"] == tasks[name].ask(SCENE, "What?", max_new_tokens=40).text
    assert events_of(streamed.text)[-1]["answer"]["text"] == texts[0].json()["text"]
    assert (early.status_code, early.json()["error"]["code"]) == (422, "incomplete_answer")
    in_json = run.client.post("/v1/ask", json={**asked, "image": DATA_URL, "schema": schema})
    assert in_json.json()["text"] == texts[0].json()["text"]
    for wrong, told in ({"schema": "[1]"}, "object"), ({"schema": '{"not": {}}'}, "'not'"), ({"regex": "("}, "regex"):
        reply = run.ask(**asked, **wrong)
        assert reply.status_code == 400
        assert told in reply.text


@pytest.mark.parametrize("name", ["llava", "t5"])
def test_many_at_once_get_the_answers_that_one_gets(run, tasks, name, monkeypatch):
    """Also where their options differ, and their pictures; some are asked in pieces."""
    rows = [(PICTURES[i % 4], ["What?", QUESTION, "Is it red?"][i % 3], 1 + 5 * (i % 4)) for i in range(24)]
    expected = [tasks[name].ask(picture, text, max_new_tokens=n) for picture, text, n in rows]

    def ask(number):
        picture, text, n = rows[number]
        streams = {"stream": "true"} if number % 5 == 0 else {}
        reply = run.ask(picture, task=name, question=text, max_new_tokens=n, **streams)
        if not streams:
            return reply.json()
        *pieces, last = events_of(reply.text)
        assert "".join(piece["text"] for piece in pieces) == last["answer"]["text"]
        return last["answer"]

    batches, real = [], engine.answer_together
    monkeypatch.setattr(
        engine, "answer_together", lambda views, asked: (batches.append(len(views)), real(views, asked))[1]
    )
    with standing_still(run, monkeypatch) as gate, ThreadPoolExecutor(25) as pool:
        gate.occupy(pool, run)
        asked = [pool.submit(ask, number) for number in range(24)]
        until(lambda: len(run.service.engine.waiting) == 24)
        gate.open()
        answers = [one.result() for one in asked]
    assert batches == [1, 8, 8, 8]
    assert [tuple(answer["tokens"]) for answer in answers] == [answer.tokens for answer in expected]
    assert [answer["text"] for answer in answers] == [answer.text for answer in expected]


def test_labels_are_ranked_as_the_sdk_does(run, tasks):
    own = run.ask(path="/v1/rank", task="t5").json()["ranked"]
    assert [row["label"] for row in own] == [row.label for row in tasks["t5"].rank(SCENE)]
    labels = ["red", "blue & <green>", "1"]
    expected = tasks["llava"].rank(SCENE, "Which?", labels=labels)
    for reply in (
        run.ask(path="/v1/rank", task="llava", question="Which?", labels=labels),
        run.client.post("/v1/rank", json={"task": "llava", "question": "Which?", "labels": labels, "image": DATA_URL}),
    ):
        ranked = reply.json()["ranked"]
        assert [row["label"] for row in ranked] == [row.label for row in expected]
        assert [row["score"] for row in ranked] == pytest.approx([row.score for row in expected], abs=1e-4)


def test_a_preview_is_what_the_model_is_shown(run, tasks, monkeypatch):
    refused = run.ask(path="/v1/tasks/llava/preview")
    assert (refused.status_code, "Export it again" in refused.json()["error"]["message"]) == (400, True)
    shown = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    (served,) = (one for one in run.service.tasks if one.name == "llava")
    monkeypatch.setattr(served.task, "prompted", lambda picture: shown if picture == SCENE else None)
    reply = run.ask(path="/v1/tasks/llava/preview")
    assert reply.headers["content-type"] == "image/png"
    assert (np.asarray(Image.open(io.BytesIO(reply.content))) == shown).all()


def test_a_picture_is_paid_for_once(run, tasks, monkeypatch):
    (served,) = (one for one in run.service.tasks if one.name == "llava")
    seen, real = [], served.task._see
    monkeypatch.setattr(served.task, "_see", lambda pictures: (seen.append(len(pictures)), real(pictures))[1])
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (40, 40, 3), np.uint8)).save(stream, "PNG")
    for question in ("What?", "Which?", "What?"):
        expected = tasks["llava"].ask(stream.getvalue(), question, max_new_tokens=4)
        answer = run.ask(stream.getvalue(), task="llava", question=question, max_new_tokens=4).json()
        assert tuple(answer["tokens"]) == expected.tokens
    assert run.ask(stream.getvalue(), path="/v1/rank", task="llava").status_code == 200
    assert seen == [1]


def test_what_is_remembered_is_bounded_in_bytes(tasks):
    view = tasks["llava"].see(SCENE)
    view.ask("What?", max_new_tokens=1)
    size = view.n_bytes
    with running(Settings(max_view_bytes=2 * size + size // 2), bundles={"llava": LLAVA}) as small:
        views = small.service.engine.views
        for picture in (*PICTURES, *PICTURES[2:]):
            assert small.ask(picture, question="What?", max_new_tokens=1).status_code == 200
            small.service.engine._thread.submit(lambda: None).result()
            assert len(views) <= 2
            assert views.n_bytes <= views.max_bytes
        assert (views.n_hits, views.n_misses) == (2, 4)


def test_tasks_models_and_their_description(run):
    told = {task["name"]: task for task in run.client.get("/v1/tasks").json()["tasks"]}
    assert (told["llava"]["kind"], told["t5"]["kind"]) == ("causal", "seq2seq")
    assert told["t5"]["labels"] == ["1", "2", "3", "4"]
    assert [model["id"] for model in run.client.get("/v1/models").json()["data"]] == ["llava", "t5"]
    assert run.client.get("/v1/models/t5").json()["id"] == "t5"


def test_the_document_describes_every_endpoint_and_no_other(run):
    document = run.client.get("/openapi.json").json()
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert told == {(method, path) for method, path, _ in ROUTES}
    answer = run.ask(task="llava").json()
    schema = document["paths"]["/v1/ask"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(answer)
    task = run.client.get("/v1/tasks").json()["tasks"][0]
    listed = document["paths"]["/v1/tasks"]["post"]["responses"]["201"]["content"]["application/json"]["schema"]
    assert set(listed["properties"]) == set(task)


def test_it_is_healthy_and_counts(run):
    assert run.client.get("/healthz").json() == {"status": "ok"}
    assert run.client.get("/readyz").json() == {"status": "ready"}
    run.ask(task="llava")
    numbers = run.client.get("/metrics")
    assert numbers.headers["content-type"].startswith("text/plain; version=")
    for name in ("tvp_requests_total{", "tvp_step_seconds_bucket{", "tvp_tokens_total{", "tvp_queue_questions 0.0",
                 "tvp_view_bytes ", "tvp_view_hits ", "tvp_tasks 2.0", "process_resident_memory_bytes "):  # fmt: skip
        assert f"\n{name}" in numbers.text, name
    run.in_loop(lambda: setattr(run.service.engine, "is_draining", True))
    try:
        assert run.client.get("/readyz").status_code == 503
        assert run.client.get("/healthz").status_code == 200
    finally:
        run.service.engine.is_draining = False


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"task": "lava"}, 404, "Did you mean llava?"),
        ({}, 400, "Name the task. This server has: llava, t5"),
        ({"task": "llava", "question": " "}, 400, "The question is empty"),
        ({"task": "llava", "qestion": "a"}, 400, "Did you mean question"),
        ({"task": "llava", "question": "a" * 2001}, 400, "at most 2,000"),
        ({"task": "llava", "question": "word " * 390}, 400, "Ask a shorter question"),
        ({"task": "llava", "max_new_tokens": "5000"}, 400, "at most 1024"),
        ({"task": "llava", "max_new_tokens": "many"}, 400, "must be a whole number of at least 1"),
        ({"task": "llava", "temperature": "nan"}, 400, "temperature is nan"),
        ({"task": "llava", "seed": "-1"}, 400, "seed is -1"),
        ({"task": "llava", "stream": "perhaps"}, 400, "'stream' must be true or false"),
        ({"task": "llava", "stop": ""}, 400, "none empty"),
        ({"task": "llava", "image": DATA_URL}, 400, "2 pictures; give one"),
    ],
)
def test_a_wrong_request_is_told_so(run, fields, status, says):
    reply = run.ask(**fields)
    assert reply.status_code == status
    assert says in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (b"no picture", "not a picture in a known format"),
        (SCENE[:900], "damaged or cut off"),
        (b"", "empty"),
    ],
)
def test_a_bad_picture_is_told_so(run, picture, says):
    for path in ("/v1/ask", "/v1/rank"):
        reply = run.ask(picture, path=path, task="llava")
        assert reply.status_code == 400
        assert says in reply.json()["error"]["message"]
        assert reply.json()["error"]["code"] == "invalid_image"
    streamed = run.ask(picture, task="llava", stream="true")
    assert (streamed.status_code, says in streamed.json()["error"]["message"]) == (400, True)
