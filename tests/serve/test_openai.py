"""OpenAI's own client talks to the server; what this model cannot do is refused in plain words."""

from __future__ import annotations

import base64
import json

import pytest

from tests.serve.extra import REASON
from tests.serve.running import SCENE

openai = pytest.importorskip("openai", reason=REASON)

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(SCENE).decode()}}


def message(text="What?", *others):
    return {"role": "user", "content": [{"type": "text", "text": text}, IMAGE, *others]}


@pytest.fixture(scope="module")
def client(run):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{run.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("name", ["llava", "t5"])
def test_a_completion_is_the_sdks_answer(client, tasks, name):
    expected = tasks[name].ask(SCENE, "What?", max_new_tokens=9)
    done = client.chat.completions.create(model=name, messages=[message()], max_tokens=9)
    (choice,) = done.choices
    assert (choice.message.content, choice.message.role) == (expected.text, "assistant")
    assert choice.finish_reason == {"length": "length", "end": "stop"}[expected.finish]
    assert done.usage.completion_tokens == len(expected.tokens)
    model = tasks[name].model
    question = model.parse("What?")
    assert done.usage.prompt_tokens == len(question.before) + model.manifest.n_image_tokens + len(question.after)
    assert done.model_extra["tvp"]["finish"] == expected.finish


def test_a_stream_is_the_same_in_pieces(client, tasks):
    expected = tasks["llava"].ask(SCENE, "What?", max_new_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model="llava", messages=[message()], max_completion_tokens=40, stream=True, logprobs=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    *pieces, last, usage = chunks
    assert len(pieces) > 5
    assert "".join(chunk.choices[0].delta.content for chunk in pieces) == expected.text
    assert [chunk.choices[0].delta.role for chunk in pieces] == ["assistant"] + [None] * (len(pieces) - 1)
    scores = [row.logprob for chunk in pieces for row in (chunk.choices[0].logprobs or last).content or ()]
    assert scores == pytest.approx(expected.log_probabilities, abs=1e-4)
    assert last.choices[0].finish_reason == "length"
    assert (usage.choices, usage.usage.completion_tokens) == ([], 40)


def test_options_act_as_the_sdks(client, tasks):
    options = {"temperature": 0.8, "top_p": 0.9, "seed": 5}
    whole = tasks["llava"].ask(SCENE, "What?", max_new_tokens=30, **options)
    stop = whole.text[4:6]
    expected = tasks["llava"].ask(SCENE, "What?", max_new_tokens=30, stop=stop, **options)
    done = client.chat.completions.create(
        model="llava", messages=[message()], max_tokens=30, stop=[stop], logprobs=True, user="a", n=1, **options
    )
    assert done.choices[0].message.content == expected.text
    assert done.choices[0].finish_reason == "stop"
    rows = done.choices[0].logprobs.content
    assert [row.logprob for row in rows] == pytest.approx(expected.log_probabilities, abs=1e-4)
    assert all(bytes(row.bytes).decode() == row.token for row in rows)


def test_a_form_brings_the_picture_as_a_file(run, tasks):
    request = {"model": "t5", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 5}
    reply = run.ask(path="/v1/chat/completions", request=json.dumps(request))
    expected = tasks["t5"].ask(SCENE, "What?", max_new_tokens=5)
    assert reply.json()["choices"][0]["message"]["content"] == expected.text
    alone = run.client.post("/v1/chat/completions", files={"image": SCENE}, data={"model": "t5"})
    assert (alone.status_code, "two parts" in alone.text) == (400, True)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["llava", "t5"]
    assert client.models.retrieve("t5").owned_by == "tvp"
    with pytest.raises(openai.NotFoundError, match="There is no task 'gpt-5'"):
        client.models.retrieve("gpt-5")


SYSTEM, ANSWER = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "3"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"messages": [SYSTEM, message()]}, "no conversation and no system message"),
        ({"messages": [message(), ANSWER, message()]}, "answers one message"),
        ({"messages": []}, "There are 0 messages"),
        ({"messages": [message("What?", IMAGE)]}, "2 pictures; this model answers about exactly one"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "0 pictures"),
        ({"messages": [message("What?", {"type": "text", "text": "Why?"})]}, "reads one question"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "input_audio"),
        ({"n": 2}, "cannot do 'n' = 2"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "cannot do 'tools'"),
        ({"logprobs": True, "top_logprobs": 3}, "cannot do 'top_logprobs' = 3"),
        ({"presence_penalty": 0.5}, "cannot do 'presence_penalty'"),
        ({"response_format": {"type": "xml"}}, "'response_format' must be"),
        ({"extra_body": {"guided_json": {}}}, "There is no field 'guided_json'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"max_tokens": 2000}, "at most 1024"),
        ({"messages": [message(" ")]}, "The question is empty"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_model_cannot_do_is_refused(client, changed, says, stream):
    request = {"model": "llava", "messages": [message()], "max_tokens": 2, "stream": stream, **changed}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**request)
    assert says in error.value.body["message"]


def test_an_unknown_model_is_no_model(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="lava", messages=[message()])
    assert error.value.code == "model_not_found"


STAR = {
    "type": "object",
    "properties": {"shape": {"enum": ["star", "disc"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["shape", "count"],
    "additionalProperties": False,
}


def wants(schema):
    return {"type": "json_schema", "json_schema": {"name": "star", "schema": schema, "strict": True}}


@pytest.mark.parametrize("name", ["llava", "t5"])
def test_a_response_format_is_followed(client, tasks, name):
    pytest.importorskip("llguidance", reason=REASON)
    asked = {"model": name, "messages": [message()], "max_tokens": 60}
    expected = tasks[name].ask(SCENE, "What?", max_new_tokens=60, schema=STAR)
    done = client.chat.completions.create(**asked, response_format=wants(STAR))
    assert done.choices[0].message.content == expected.text
    assert done.choices[0].finish_reason == "stop"
    assert json.loads(expected.text).keys() == {"shape", "count"}
    pieces = client.chat.completions.create(**asked, response_format=wants(STAR), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == expected.text
    free = client.chat.completions.create(**asked, response_format={"type": "text"})
    assert free.choices[0].message.content == tasks[name].ask(SCENE, "What?", max_new_tokens=60).text


def test_a_response_format_that_cannot_be_followed_is_refused(client):
    pytest.importorskip("llguidance", reason=REASON)
    asked = {"model": "llava", "messages": [message()]}
    for wrong, told in (
        ({"type": "xml"}, "'response_format' must be"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "'response_format' must be"),
        (wants({"uniqueItems": True}), "'uniqueItems'"),
    ):
        with pytest.raises(openai.BadRequestError, match=told):
            client.chat.completions.create(**asked, response_format=wrong)
    with pytest.raises(openai.BadRequestError, match="Leave one of them out"):
        client.chat.completions.create(**asked, response_format={"type": "json_object"}, stop="x")


def test_an_answer_that_ends_early_is_an_error_over_http_too(client):
    pytest.importorskip("llguidance", reason=REASON)
    asked = {"model": "llava", "messages": [message()], "max_tokens": 3, "response_format": wants(STAR)}
    with pytest.raises(openai.UnprocessableEntityError, match="not complete after 3 tokens") as caught:
        client.chat.completions.create(**asked)
    assert caught.value.body["code"] == "incomplete_answer"
    with pytest.raises(openai.APIError, match="not complete after 3 tokens"):
        list(client.chat.completions.create(**asked, stream=True))
