"""Tasks whose answers have a structure: asked alone, in pieces, in batches and on the command line."""

from __future__ import annotations

import json
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tvp import sdk
from tvp.sdk.cli import cli
from tvp.sdk.errors import AnswerError, RequestError

pytest.importorskip("llguidance", reason="the extra 'structured' is not installed: pip install '.[dev]'")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install '.[dev]'")

GOLDENS = Path(__file__).parents[1] / "goldens" / "format-2"
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.fixture(scope="module", params=["llava_next.tvp", "instructblip-t5.tvp"])
def task(request):
    with sdk.load(GOLDENS / request.param) as loaded:
        yield loaded


SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": ["star", "disc"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["shape", "count"],
    "additionalProperties": False,
}
LONG = {"max_new_tokens": 60}


def test_a_wrong_structure_costs_no_picture(task, monkeypatch):
    monkeypatch.setattr(task, "_see", lambda *_: pytest.fail("a picture was seen"))
    with pytest.raises(RequestError, match="uniqueItems"):
        task.ask(PICTURE, "What?", schema={"uniqueItems": True})


def test_answers_of_a_task_have_their_structure(task):
    answer = task.ask(PICTURE, "What?", schema=SCHEMA, **LONG)
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert "".join(task.stream(PICTURE, "What?", schema=SCHEMA, **LONG)) == answer.text
    assert task.see(PICTURE).ask("What?", schema=SCHEMA, **LONG).tokens == answer.tokens
    assert len(answer.log_probabilities) == len(answer.tokens)
    assert task.ask(PICTURE, "What?", choices=["red", "blue"]).text in ("red", "blue")
    drawn = {task.ask(PICTURE, "What?", choices=["red", "blue"], temperature=5.0, seed=s).text for s in range(12)}
    assert drawn == {"red", "blue"}


def test_a_batch_has_a_follower_for_each_row(task):
    rows = [(PICTURE[i:], question) for i in range(3) for question in ("What?", "How many objects are there?")]
    alone = [task.ask(*row, schema=SCHEMA, **LONG) for row in rows]
    together = task.ask_many(rows, batch=6, schema=SCHEMA, **LONG)
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]


def test_an_answer_that_ends_early_is_an_error_and_no_answer(task):
    short = {"schema": SCHEMA, "max_new_tokens": 3}
    with pytest.raises(AnswerError, match="not complete after 3 tokens"):
        task.ask(PICTURE, "What?", **short)
    pieces = []
    with pytest.raises(AnswerError):
        pieces.extend(task.stream(PICTURE, "What?", **short))
    rows = [(PICTURE, "What?"), (PICTURE, "How many objects are there?")]
    with pytest.raises(AnswerError, match="answer 1 of 2"):
        task.ask_many(rows, **short)
    errors = task.ask_many(rows, errors="return", **short)
    assert [type(error) for error in errors] == [AnswerError] * 2
    # A number that could have gone on is not an answer either.
    with pytest.raises(AnswerError):
        task.ask(PICTURE, "What?", regex="[0-9]{3,}", max_new_tokens=5)
    cancel = threading.Event()
    cancel.set()
    for stopped in ({"time_limit": 1e-6}, {"cancel": cancel}):
        with pytest.raises(AnswerError, match=r"time limit|cancelled"):
            task.ask(PICTURE, "What?", schema=SCHEMA, **stopped)
        with pytest.raises(AnswerError, match=r"time limit|cancelled"):
            list(task.stream(PICTURE, "What?", schema=SCHEMA, **stopped))


def test_without_the_extra_the_error_names_it(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install 'tvp-edge\[structured\]'"):
        task.ask(PICTURE, "What?", choices=["never asked before"])
    assert task.ask(PICTURE, "What?", max_new_tokens=2).tokens


def run(*arguments):
    result = CliRunner().invoke(
        cli, ["ask", str(GOLDENS / "llava_next.tvp"), "docs/images/scene.png", "What?", *arguments]
    )
    return result.exit_code, result.output, result.exception


def test_the_command_line_asks_for_structures(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    code, output, _ = run("--schema", str(file), "--max-new-tokens", "60")
    assert code == 0
    jsonschema.validate(json.loads(output), SCHEMA)
    assert run("--choice", "red", "--choice", "blue")[1] in ("red\n", "blue\n")
    assert re.fullmatch("[0-9]{2}\n", run("--regex", "[0-9]{2}", "--stream")[1])
    assert run("--regex", "[0-9]{2}", "--rank")[0] == 2
    file.write_text("[1]")
    assert isinstance(run("--schema", str(file))[2], RequestError)
