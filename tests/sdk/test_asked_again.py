"""Below fp32 a question has one answer: asked again, after others, alone, or among many."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import save_tiny
from tvp import sdk
from tvp.export.bundle import export
from tvp.trainer import tasks
from tvp.trainer.data import Scenes

QUESTIONS = ("How many objects are there?", "What shape is the red object?", "Is there a star?")
PICTURES = [Scenes(6, seed=5)[i].picture for i in range(6)]


@pytest.fixture(scope="module", params=["smolvlm", "paligemma", "blip2", "instructblip"])
def task(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = save_tiny(request.param, folder / "model")
    export(model, tasks.get("scenes"), folder / "task", precision="int8", n_cases=2, max_loss=1.0)
    with sdk.load(folder / "task", providers="cpu") as loaded:
        yield loaded


def said(answer):
    return answer.tokens, answer.log_probabilities


def test_asked_again_or_after_another_question_the_answer_is_the_same_to_the_last_bit(task):
    for picture in PICTURES:
        alone = {question: said(task.ask(picture, question, max_new_tokens=6)) for question in QUESTIONS}
        view = task.see(picture)
        for question in (*QUESTIONS, *reversed(QUESTIONS), QUESTIONS[0], QUESTIONS[0]):
            assert said(view.ask(question, max_new_tokens=6)) == alone[question]
        ranked = {row.label: row.score for row in view.rank(QUESTIONS[0], labels=["one", "two"])}
        assert said(view.ask(QUESTIONS[0], max_new_tokens=6)) == alone[QUESTIONS[0]]
        assert {row.label: row.score for row in view.rank(QUESTIONS[0], labels=["one", "two"])} == ranked


def test_among_many_an_answer_is_that_of_one_alone_but_for_rounding(task):
    """One value in millions is rounded to the other of two steps of int8, and a score moves by some thousandths."""
    pairs = [(picture, question) for picture in PICTURES for question in QUESTIONS[:2]]
    n_other = 0
    for (picture, question), answer in zip(pairs, task.ask_many(pairs, max_new_tokens=6), strict=True):
        alone = task.ask(picture, question, max_new_tokens=6)
        n_other += answer.tokens != alone.tokens
        assert answer.log_probabilities[0] == alone.log_probabilities[0]  # prompts are read one by one
        if answer.tokens == alone.tokens:
            assert np.allclose(answer.log_probabilities, alone.log_probabilities, atol=0.05)
    assert n_other <= 1


def test_what_is_remembered_is_not_changed_by_an_answer(task):
    view = task.see(PICTURES[0])
    first = said(view.ask(QUESTIONS[0], max_new_tokens=6))
    view.ask(QUESTIONS[0], max_new_tokens=6, temperature=1.5, top_k=3, seed=1)
    assert "".join(view.stream(QUESTIONS[0], max_new_tokens=6)).strip() == view.ask(QUESTIONS[0], max_new_tokens=6).text
    assert said(view.ask(QUESTIONS[0], max_new_tokens=6)) == first
