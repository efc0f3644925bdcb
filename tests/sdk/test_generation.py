"""How answers are chosen, when they end and how they become text: alone, in pieces, together, from threads."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models

from tests.bundles import listed_anew, seal
from tvp import sdk
from tvp.sdk._answer_text import AnswerText
from tvp.sdk._generation import Answering, Generation
from tvp.sdk.errors import ImageError, ProviderError, RequestError
from tvp.sdk.formats.archive import unpack

GOLDENS = Path(__file__).parents[1] / "goldens" / "format-1"
QUESTIONS = ["What?", "How many objects are there?", "Is there a red star or a blue one or a green one?"]
PICTURES = [np.random.default_rng(i).integers(0, 256, (30 + 9 * i, 64, 3), np.uint8) for i in range(4)]
REQUESTS = [(PICTURES[i // 3], QUESTIONS[i % 3]) for i in range(12)]


@pytest.fixture(scope="module")
def task(one_bundle):
    with sdk.load(one_bundle) as loaded:
        yield loaded


def test_the_pieces_of_a_stream_are_the_answer(task):
    for picture, question in REQUESTS:
        pieces = list(task.stream(picture, question, max_new_tokens=24))
        assert "".join(pieces) == task.ask(picture, question, max_new_tokens=24).text
        assert all(pieces)
    assert len(pieces) > 1


def test_a_view_may_be_asked_while_it_streams(task):
    view = task.see(PICTURES[0])
    expected = [view.ask(question, max_new_tokens=12).text for question in QUESTIONS]
    streams = [view.stream(question, max_new_tokens=12) for question in QUESTIONS]
    said = ["", "", ""]
    for _ in range(12):
        for i, stream in enumerate(streams):
            said[i] += next(stream, "")
        view.ask("What?")
    assert [text + "".join(stream) for text, stream in zip(said, streams, strict=True)] == expected


def text_of_bytes(*stop):
    """An AnswerText whose tokens are bytes."""
    letters = {chr(byte): byte for byte in range(256)}
    tokenizer = Tokenizer(models.WordLevel({f"<0x{byte:02X}>": byte for byte in letters.values()}, "<0x00>"))
    tokenizer.decoder = decoders.ByteFallback()
    return AnswerText(tokenizer, (999,), stop)


def pieces_of(spell, stop=()):
    """The pieces in which a text of bytes is given out."""
    made = text_of_bytes(*stop)
    tokens, pieces = [], []
    for number, byte in enumerate(data := spell.encode()):
        tokens.append(byte)
        pieces.append(made.more(tokens, last=number == len(data) - 1))
    return pieces


@pytest.mark.parametrize("text", ["naïve café", "日本語の答え", "a 🦜 flies", " leading and trailing  ", "e\u0301"])
def test_no_piece_holds_half_a_character_and_none_is_taken_back(text):
    pieces = pieces_of(text)
    assert "".join(pieces) == text.strip()
    assert "\ufffd" not in "".join(pieces)


def test_what_may_become_a_stop_text_waits():
    pieces = pieces_of("one STone STOP two", stop=("STOP",))
    assert "".join(pieces) == "one STone"
    assert not any(piece.endswith("S") for piece in pieces)


@pytest.mark.parametrize(("spell", "stop"), [("one\n\ntwo", "\n"), ("one: two", "one: "), ("\none\n", "\n")])
def test_a_stop_text_may_be_or_end_in_space(spell, stop):
    made, tokens, whole = text_of_bytes(stop), list(spell.encode()), spell.lstrip()
    n = next(n for n in range(1, len(tokens) + 1) if made.text(tokens[:n])[1])
    assert bytes(tokens[:n]).decode().endswith(stop)  # not a token later
    assert made.text(tokens[:n])[0] == whole[: whole.index(stop)].rstrip()


def test_a_stop_text_ends_the_answer_and_is_not_in_it(task):
    whole = task.ask(PICTURES[0], QUESTIONS[1], max_new_tokens=24).text
    stop = whole[len(whole) // 2 :][:3]
    answer = task.ask(PICTURES[0], QUESTIONS[1], max_new_tokens=24, stop=stop)
    assert answer.text == whole[: whole.index(stop)].rstrip()
    assert answer.finish == "stop"
    assert "".join(task.stream(PICTURES[0], QUESTIONS[1], max_new_tokens=24, stop=["never", stop])) == answer.text


def test_why_an_answer_ends(task):
    long = {"max_new_tokens": 400}
    assert task.ask(PICTURES[0], "What?", max_new_tokens=1).finish == "length"
    began = time.perf_counter()
    cut = task.ask(PICTURES[0], "What?", time_limit=1e-6, **long)
    assert (cut.finish, len(cut.tokens)) == ("time", 0)
    cancel = threading.Event()
    cancel.set()
    assert task.ask(PICTURES[0], "What?", cancel=cancel, **long).finish == "cancelled"
    assert time.perf_counter() - began < 30
    end = Answering(None, (3,), Generation(9), 0.0)
    assert end.take(np.eye(5, dtype=np.float32)[3], 9) is None
    assert end.finish == "end"


def test_drawn_tokens_follow_the_softmax():
    """Against frequencies counted over many draws."""
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    rng = np.random.default_rng(0)

    def shares(**options):
        generation = Generation.of({"temperature": 1.0, **options}, 1)
        return np.bincount([generation.choose(logits, rng) for _ in range(4000)], minlength=4) / 4000

    assert np.allclose(shares(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    assert np.allclose(shares(temperature=0.5), np.array([25, 9, 2.25, 0.25]) / 36.5, atol=0.03)
    assert np.allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    assert np.allclose(shares(top_p=0.7), [0.625, 0.375, 0, 0], atol=0.03)
    assert np.allclose(shares(top_p=0.4), [1, 0, 0, 0])
    assert np.allclose(shares(temperature=0), [1, 0, 0, 0])


def test_a_seed_draws_the_same_answer_again(task):
    def ask(seed):
        return task.ask(PICTURES[0], "What?", temperature=2.0, seed=seed, max_new_tokens=12).tokens

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(5)}) > 1
    assert "".join(task.stream(PICTURES[0], "What?", temperature=2.0, seed=1, max_new_tokens=12)) == (
        task.ask(PICTURES[0], "What?", temperature=2.0, seed=1, max_new_tokens=12).text
    )


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_many_questions_get_the_answers_that_one_gets(task, batch):
    together = task.ask_many(REQUESTS, batch=batch, max_new_tokens=12)
    alone = [task.ask(*request, max_new_tokens=12) for request in REQUESTS]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one.log_probabilities, other.log_probabilities, atol=1e-4)
        assert one.text == other.text
    assert task.ask_many([]) == []


def test_an_answer_ends_where_the_context_does(task, monkeypatch):
    """Rows that have ended wait in place, and the answer so far is not lost."""
    monkeypatch.setattr("tvp.sdk._generation.Generation.choose", lambda *_: 5)  # no end token
    room = task.model.manifest.n_positions
    requests = [(PICTURES[0], question) for question in QUESTIONS]
    alone = [task.ask(*request, max_new_tokens=room) for request in requests]
    assert {answer.finish for answer in alone} == {"length"}
    assert len({len(answer.tokens) for answer in alone}) == 3  # the longer the question, the less room
    together = task.ask_many(requests, max_new_tokens=room)
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


@pytest.mark.parametrize("kind", ["a decoder", "a connector, an encoder and a decoder"])
def test_sixteen_threads_get_the_answers_that_one_gets(task, kind, tmp_path):
    if kind != "a decoder":
        unpack(GOLDENS / "instructblip-t5.tvp", tmp_path / "t5")
        task = sdk.load(tmp_path / "t5")
    expected = [task.ask(*request, max_new_tokens=8).tokens for request in REQUESTS]
    view = task.see(PICTURES[0])
    with ThreadPoolExecutor(16) as pool:
        given = list(pool.map(lambda request: task.ask(*request, max_new_tokens=8).tokens, REQUESTS * 4))
        shared = list(pool.map(lambda question: view.ask(question, max_new_tokens=8).tokens, QUESTIONS * 16))
    assert given == expected * 4
    assert shared == expected[:3] * 16


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temprature": 1}, "Did you mean temperature"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ""}, "stop is"),
        ({"stop": [3]}, "stop is"),
        ({"stop": 3}, "stop is 3"),
        ({"time_limit": 0}, "time_limit is 0"),
        ({"time_limit": 10**400}, "time_limit is 1000"),
        ({"cancel": True}, "cancel is True"),
    ],
)
def test_bad_options_are_refused_before_a_picture_is_read(task, options, says):
    for call in (task.ask, task.stream, lambda image, question, **given: task.ask_many([(image, question)], **given)):
        with pytest.raises(RequestError, match=says):
            call(b"not read", "What?", **options)


def test_a_bad_request_among_many_is_refused(task):
    with pytest.raises(RequestError, match="empty"):
        task.ask_many([(b"not read", "What?"), (PICTURES[0], "")])
    with pytest.raises(RequestError, match="batch is 0"):
        task.ask_many(REQUESTS, batch=0)
    with pytest.raises(ImageError, match=r"^picture 2 of 2: The image data is empty"):
        task.ask_many([(PICTURES[0], "What?"), (b"", "What?")])
    with pytest.raises(RequestError, match="errors is 'ignore'"):
        task.ask_many(REQUESTS, errors="ignore")
    for requests in (PICTURES, [PICTURES[0], "What?"], "abc", [(PICTURES[0],)]):
        with pytest.raises(RequestError, match="pairs"):
            task.ask_many(requests)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_one_bad_picture_among_many_costs_its_own_answer_only(task, batch):
    pictures: list = [PICTURES[number % len(PICTURES)] for number in range(40)]
    pictures[16] = "no such file.png"
    pictures[20] = pictures[21] = pictures[22] = b"no picture"
    questions = ["What?"] * 40
    questions[7], questions[39] = " ", "What? " * 4000
    bad = {7: "question 8", 16: "picture 17", 20: "picture 21", 21: "picture 22", 22: "picture 23", 39: "question 40"}
    answers = task.ask_many(list(zip(pictures, questions, strict=True)), batch=batch, errors="return", max_new_tokens=2)
    assert len(answers) == 40
    for number, answer in enumerate(answers):
        if number in bad:
            assert isinstance(answer, (ImageError, RequestError))
            assert str(answer).startswith(f"{bad[number]} of 40: The ")
            assert isinstance(answer.__cause__, type(answer))
        else:
            assert answer.tokens == task.ask(pictures[number], "What?", max_new_tokens=2).tokens
    with pytest.raises(RequestError, match=r"^question 8 of 40: The question is empty"):
        task.ask_many(list(zip(pictures, questions, strict=True)), batch=batch)
    with pytest.raises(ImageError, match=r"^picture 17 of 40: The image file no such file.png cannot be read"):
        task.ask_many([(picture, "What?") for picture in pictures], batch=batch)


def test_a_batch_of_bad_pictures_runs_nothing(task, monkeypatch):
    monkeypatch.setattr(type(task.model), "see", lambda *_: pytest.fail("the model ran"))
    answers = task.ask_many([(b"", "What?"), (b"x", "What?")], errors="return")
    assert [type(answer) for answer in answers] == [ImageError, ImageError]
    assert task.ask_many([], errors="return") == []


def test_pictures_of_all_kinds_in_one_list(task, tmp_path):
    Image.fromarray(PICTURES[1]).save(tmp_path / "a.png")
    kinds = [PICTURES[0], str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(PICTURES[0]), PICTURES[1]]
    kinds += [(tmp_path / "a.png").read_bytes(), PICTURES[0]]
    answers = task.ask_many([(kind, "What?") for kind in kinds])
    assert [a.tokens for a in answers] == [task.ask(kind, "What?").tokens for kind in kinds]


@pytest.mark.parametrize("n_made", [0, 1, 5])
def test_a_cache_that_could_not_grow_leaves_the_view_as_it_was(task, monkeypatch, n_made):
    """As where a device is full, or the user ends it: the next question gets its right answer."""

    class Full:
        n_left = n_made

        def __getattr__(self, name):
            return getattr(onnxruntime, name)

        @property
        def OrtValue(self):
            self.n_left -= 1
            if self.n_left < 0:
                raise RuntimeError("no memory left on the device")
            return onnxruntime.OrtValue

    expected = task.ask(PICTURES[0], QUESTIONS[0], max_new_tokens=100).tokens
    view = task.see(PICTURES[0])
    short = view.ask(QUESTIONS[0], max_new_tokens=2).tokens
    with monkeypatch.context() as patch:
        patch.setattr("tvp.sdk._models.kv_cache.onnxruntime", Full)
        with pytest.raises(ProviderError, match="no memory left on the device"):
            view.ask(QUESTIONS[0], max_new_tokens=100)
    assert view.ask(QUESTIONS[0], max_new_tokens=2).tokens == short == expected[:2]
    assert view.ask(QUESTIONS[0], max_new_tokens=100).tokens == expected


def test_many_that_are_cancelled_are_not_begun(task, monkeypatch):
    event, seen = threading.Event(), []
    read = task._read

    def count(image):
        seen.append(1)
        event.set()
        return read(image)

    monkeypatch.setattr(task, "_read", count)
    answers = task.ask_many([(picture, "What?") for picture in PICTURES], batch=2, cancel=event)
    assert (len(seen), answers) == (1, [])


def test_many_that_were_cancelled_before_are_none(task):
    event = threading.Event()
    event.set()
    assert task.ask_many(REQUESTS, cancel=event) == []


def test_a_batch_of_numpys_small_numbers_is_whole(task):
    requests = [(PICTURES[0], "What?")] * 300
    for batch in (np.uint8(8), np.int8(100)):
        assert len(task.ask_many(requests, batch=batch, max_new_tokens=1)) == 300


def test_a_neighbours_prompt_does_not_spend_an_answers_time(task, monkeypatch):
    read = type(task.model).prefill

    def slow(self, seen, question, tokens=()):
        time.sleep(1)
        return read(self, seen, question, tokens)

    monkeypatch.setattr(type(task.model), "prefill", slow)
    answers = task.ask_many([(picture, "What?") for picture in PICTURES], max_new_tokens=2, time_limit=2.5)
    assert "time" not in {answer.finish for answer in answers}


def test_labels_that_cannot_be_ranked_cost_nothing(task, monkeypatch):
    view = task.see(PICTURES[0])
    monkeypatch.setattr(type(task.model), "prefill", lambda *_: pytest.fail("the model ran"))
    monkeypatch.setattr(type(task), "pixel_values", lambda *_: pytest.fail("the picture was read"))
    for labels, match in ((["yes", "a red star " * 200], "take .* tokens"), (["a" * 8193], "characters")):
        with pytest.raises(RequestError, match=match):
            view.rank("What?", labels=labels)
    for labels, match in (("cat", "is the text"), ([], "no labels"), (["a", ""], "not empty"), (["a" * 8193], "char")):
        with pytest.raises(RequestError, match=match):
            task.rank(PICTURES[0], "What?", labels=labels)


def test_a_temperature_of_next_to_nothing_is_greedy(task):
    expected = task.ask(PICTURES[0], "What?").tokens
    for temperature in (1e-310, 1e-30):
        assert task.ask(PICTURES[0], "What?", temperature=temperature).tokens == expected


def test_a_question_that_cannot_be_read_costs_no_picture(task):
    for way in (task.ask, task.stream, task.rank):
        with pytest.raises(RequestError, match="special token"):
            way(b"not read", "what is <image>?")


def test_a_special_token_of_the_connector_is_refused(tmp_path):
    """Its tokenizer is another one than the language model's, and may have tokens of its own."""
    unpack(GOLDENS.parent / "format-2" / "instructblip-t5.tvp", tmp_path / "t5")
    base, file = tmp_path / "t5" / "base", "connector_tokenizer.json"
    content = json.loads((base / file).read_text())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for number, text in enumerate(("[SEP]", "[UNK]")):
        content["added_tokens"].append(token | {"id": number + 5, "content": text})
    changed = json.dumps(content).encode()
    (base / file).write_bytes(changed)
    manifest = listed_anew((base / "manifest.json").read_bytes(), file, changed)
    (base / "manifest.json").write_bytes(manifest)
    task = json.loads((tmp_path / "t5" / "manifest.json").read_bytes()) | {"base": json.loads(manifest)["sha256"]}
    (tmp_path / "t5" / "manifest.json").write_bytes(seal(task))
    with sdk.load(tmp_path / "t5") as task:
        with pytest.raises(RequestError, match="special token"):
            task.ask(PICTURES[0], "what is [SEP]?")
        task.ask(PICTURES[0], "what is [UNK] or 龘?", max_new_tokens=1)
