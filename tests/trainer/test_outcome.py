"""Whether a prompt helped: planted answers with known shares, and runs that end well, badly, or in a black frame."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tvp.sdk.errors import CheckError
from tvp.trainer import outcome, tasks
from tvp.trainer.config import TrainConfig, make_config
from tvp.trainer.data import Question, Sample
from tvp.trainer.evaluate import Asked, judge
from tvp.trainer.metrics import matches
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.team import Team
from tvp.trainer.train import _advice, train

N = 40
GEOMETRY = Geometry(64, 48)


class Listed:
    """Samples of a list."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def samples(answers, text="What is it?"):
    black = np.zeros((8, 8, 3), np.uint8)
    return Listed([Sample(black, (Question(text, answer),), "") for answer in answers])


@pytest.fixture
def prepared(monkeypatch):
    """A run with two sources, whose answers are planted: right as often as `right` says of each way."""
    right = {"nothing": 20, "black frame": 22, "prompt": 30}
    train_answers = ["cat"] * 30 + ["dog"] * 10
    validation = samples(["cat"] * 24 + ["dog"] * 16)
    questions = [validation[i].questions[0] for i in range(N)]

    def ask(family, data, geometry, prompt, task, batch):
        way = "prompt" if prompt else "nothing" if geometry.inner == geometry.canvas else "black frame"
        answers = [q.answer if i < right[way] else "fish" for i, q in enumerate(questions)]
        return Asked(questions, answers, [None] * N, [str(i) for i in range(N)])

    monkeypatch.setattr(outcome, "ask", ask)
    monkeypatch.setattr(outcome, "in_turn", lambda prepared: prepared.sources)
    run = SimpleNamespace(
        learn_from="answers",
        task=tasks.get("custom"),
        geometry=GEOMETRY,
        validation=validation,
        train=samples(train_answers),
        sources=["one", "two"],
        config=TrainConfig(("zoo:blip2",), keep="best", batch=8),
        home="cpu",
    )
    return run, right


def judged(run, right, **change):
    right.update(change)
    prompt = Prompt.start(GEOMETRY, "free")
    found = outcome.judged(prompt, run, Team())
    return found, outcome.settled(prompt, {"step": 9, "accuracy": found.prompted}, run, found, {})


def test_all_shares_are_those_of_the_planted_answers(prepared):
    found, (prompt, chosen, refused) = judged(*prepared)
    assert (found.n, found.without, found.black, found.prompted) == (N, 0.5, 0.55, 0.75)
    assert found.commonest == 0.6  # cat is the commonest in training
    assert found.gain.value == pytest.approx(0.25)
    assert found.gain.low < 0.25 < found.gain.high
    assert found.best == "prompt"
    assert not refused
    assert chosen["step"] == 9
    assert found.answers == {"cat": 0.6, "fish": 0.25, "dog": 0.15}
    assert prompt.facts["outcome"]["prompted"] == 0.75
    assert found.examples[0][2:] == ("fish", "cat")  # an answer that the prompt changed
    first, caution, beside, answers = outcome.sentences(found)
    assert "it may be less elsewhere" in caution
    assert re.fullmatch(
        r"on 40 held-out questions: 50.0% right without a prompt, 75.0% with it; it helped by \+25.0 points "
        r"\(\+1\d.\d to \+[34]\d.\d\)",
        first,
    )
    assert beside == "a black frame alone gives 55.0%; the commonest answer to each question alone is right in 60.0%"
    assert answers == "with the prompt it answered 'cat' 60%, 'fish' 25%, 'dog' 15%"


def test_a_prompt_that_does_not_help_is_refused_unless_the_last_one_is_kept(prepared):
    run, right = prepared
    found, (_, _, refused) = judged(run, right, prompt=4, **{"black frame": 20})
    assert found.best == "nothing"  # of equals the simplest
    assert "did not help: it costs -40.0 points" in refused
    assert "the commonest answer to each question alone is right in 60.0%" in refused
    assert "with the prompt it answered 'fish' 90%" in refused
    said = outcome.sentences(found)
    assert "no better than always giving the commonest answer: the model does not see what is asked for" in said
    run.config = replace(run.config, keep="last")
    _, (_, chosen, refused) = judged(run, right)
    assert not refused
    assert chosen["step"] == 9


def test_a_gain_whose_interval_holds_0_is_not_shown_to_help(prepared):
    found, (_, _, refused) = judged(*prepared, prompt=21, **{"black frame": 21})
    assert found.gain.value > 0 >= found.gain.low
    assert found.best == "nothing"
    assert "it is not shown to help: +2.5 points" in refused


@pytest.mark.parametrize("given", [["no"] * 6 + ["yes"] * 4, ["yes"] * 6 + ["no"] * 4])
def test_labels_are_told_in_the_task_s_order_and_one_that_is_never_given_by_name(prepared, given):
    """Which of two is a little commoner differs from processor to processor; the sentence must not."""
    labels = ("yes", "no", "maybe")
    questions = [Question("May I?", answer, labels) for answer in ("yes", "no", "maybe", "no", "yes") * 2]
    assert list(outcome._answers(questions, given)) == list(labels)
    assert outcome._answers(questions, given)["yes"] == given.count("yes") / 10
    assert outcome._missing(questions, given) == ("maybe",)
    assert outcome._missing(questions, ["Well, maybe."] * 10) == ()
    assert outcome._answers(questions, ["I know"] * 6 + given[:4]) == {"I know": 0.6, given[0]: 0.4}
    found, _ = judged(*prepared)
    said = outcome.sentences(replace(found, missing=("maybe",)))
    assert said[-1] == "it never answered 'maybe', though that is right for some of these questions"


@pytest.mark.parametrize(
    ("without", "method", "advice"),
    [
        (0.95, "both", "The model needs no prompt: export it as it is, without --prompt."),
        (0.5, "both", r"more steps \(--steps 600\) may help. Ask for labels in words that the model knows"),
        (0.5, "tvp", r"--steps 600\) may help. A narrower frame"),
        (0.5, "lens", r"--steps 600\) may help. Several models"),
    ],
)
def test_the_advice_is_that_of_the_method_that_ran(without, method, advice):
    config = make_config({"models": ("m",), "task": "custom", "data": "x.jsonl", "method": method})
    said = _advice(config, SimpleNamespace(without=without), 200, Path("runs/rejected.safetensors"))
    assert re.search(advice, said), said


def test_a_black_frame_that_is_better_takes_the_prompt_s_place(prepared):
    found, (prompt, chosen, refused) = judged(*prepared, prompt=28, **{"black frame": 29})
    assert found.best == "black frame"
    assert not refused
    assert chosen == {"step": 0, "accuracy": 0.725}
    assert not prompt.frame.any()
    assert "the black frame is kept in the prompt's place" in outcome.sentences(found)


def test_a_lens_that_learned_without_answers_is_judged_by_those_that_the_data_has(prepared, monkeypatch):
    """It is refused where fewer answers are right, and kept where no fewer are: a few pictures may show no gain."""
    run, right = prepared
    model = SimpleNamespace(model=torch.nn.Identity())
    monkeypatch.setattr(outcome, "whole_source", lambda prepared, typed: model)
    run.learn_from, run.geometry = "pairs", Geometry(64, 64)
    assert outcome.judged(Prompt.start(GEOMETRY, "free"), run, Team()) is None  # drawn scenes: nobody's own
    run.config = replace(run.config, data="doors.jsonl")
    without = {"distance": 0.5}
    lost = "it did not help: it costs -40.0 points"
    for n_right, words in ((20, ""), (21, ""), (19, "it is not shown to help: -2.5 points"), (4, lost)):
        right["prompt"] = n_right
        found = outcome.judged(Prompt.start(GEOMETRY, "free"), run, Team())
        assert (found.n, found.black) == (N, None)
        _, _, refused = outcome.settled(Prompt.start(GEOMETRY, "free"), {"distance": 0.1}, run, found, without)
        assert words in refused
        assert bool(words) == bool(refused)
    _, _, refused = outcome.settled(Prompt.start(GEOMETRY, "free"), {"distance": 0.5}, run, None, without)
    assert "50.0% away from the good ones without it and 50.0% with it" in refused


def test_where_nothing_is_right_examples_say_what_was_answered(prepared):
    found, _ = judged(*prepared, nothing=0, prompt=0, **{"black frame": 0})
    assert outcome.sentences(found)[-1] == "asked 'What is it?', it answered 'fish'; right is 'cat'"


@pytest.mark.parametrize(
    ("answer", "right", "how", "same"),
    [
        ("Cat.", "cat", "loose", True),
        ("  a  black\ncat . ", "A black cat", "loose", True),
        ("cats", "cat", "loose", False),
        ("3.5", "35", "loose", False),
        ("Cat.", "cat", "exact", False),
        ("cat", "cat", "exact", True),
    ],
)
def test_a_loose_match_differs_in_case_spaces_and_a_final_point(answer, right, how, same):
    assert matches(answer, right, how) == same
    assert judge(Asked([Question("?", right)], [answer], [None], ["0"]), how).right.tolist() == [same]


def test_own_tasks_match_loosely_and_published_ones_exactly():
    assert [name for name, task in tasks.TASKS.items() if task.match == "loose"] == ["custom"]


def test_a_run_that_makes_things_worse_keeps_no_prompt(tmp_path):
    config = TrainConfig(
        ("zoo:smolvlm",),
        task="count",
        method="evp",
        canvas=64,
        inner=40,
        update="sign",
        lr=1.0,  # every pixel of the frame becomes noise
        fca=0.0,
        tse=0.0,
        batch=4,
        steps=2,
        n_train=16,
        n_validation=40,
    )
    with pytest.raises(CheckError, match=r"(?s)not kept: on \d+ held-out questions: .*rejected.safetensors"):
        train(replace(config, n_train=200), tmp_path / "a", quiet=True)
    assert (tmp_path / "a" / "rejected.safetensors").exists()
    assert not (tmp_path / "a" / "prompt.safetensors").exists()
    done = train(replace(config, n_train=200, keep="last"), tmp_path / "b", quiet=True)
    assert done.outcome.prompted < done.outcome.without
    assert (tmp_path / "b" / "prompt.safetensors").exists()
