"""How often answers are those about the clean pictures: planted answers, and a model that trained without its words."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tvp.trainer import agreement
from tvp.trainer.config import TrainConfig
from tvp.trainer.data import Sample
from tvp.trainer.evaluate import Asked
from tvp.trainer.team import Team
from tvp.trainer.train import train

N = 10


class Planted:
    """Pictures whose first pixel is their number; a clean one is white below it."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        picture = np.full((8, 8, 3), index, np.uint8)
        return Sample(picture, (), "", picture + 100)


def test_the_shares_are_those_of_the_planted_answers(monkeypatch):
    def ask(family, data, geometry, prompt, task, batch):
        answers = []
        for i in range(len(data)):
            sample = data[i]
            assert [question.text for question in sample.questions] == list(agreement.QUESTIONS)
            clean = sample.picture[0, 0, 0] >= 100
            knows = clean or i < (8 if prompt else 3)
            answers += [f"{i}" if knows else "dark"] * len(agreement.QUESTIONS)
        return Asked(answers=answers)

    monkeypatch.setattr(agreement, "ask", ask)
    monkeypatch.setattr(agreement, "whole_source", lambda prepared, typed: SimpleNamespace(model=torch.nn.Identity()))
    config = TrainConfig(("zoo:blip2",))
    run = SimpleNamespace(learn_from="pairs", validation=Planted(), geometry=None, config=config)
    found = agreement.measure("the prompt", run, Team())
    assert (found.n, found.without, found.behind) == (3 * N, 0.3, 0.8)
    assert found.gain.value == pytest.approx(0.5)
    assert "answers as about the clean ones in 30.0% of 30 without the lens, and in 80.0% behind it" in str(found)
    run.learn_from = "answers"
    assert agreement.measure("the prompt", run, Team()) is None


def test_a_model_that_trained_without_its_language_model_is_loaded_for_it(tmp_path, monkeypatch, caplog):
    config = TrainConfig(
        ("zoo:smolvlm",),
        method="lens",
        lens="colour",
        lens_start="statistics",
        frame=False,
        learn_from="pairs",
        canvas=64,
        batch=16,
        steps=2,
        tse=0.0,
        reference="clean",
        relative=True,
        n_train=64,
        n_validation=16,
        guard_model="none",
        keep="last",
    )
    done = train(config, tmp_path / "a", quiet=True)
    assert done.agreement.n == 3 * 16
    assert done.prompt.facts["agreement"]["behind"] == done.agreement.behind
    monkeypatch.setattr(agreement, "MOST_OF_MEMORY", 0.0)
    caplog.set_level("INFO", "tvp.trainer")
    assert train(config, tmp_path / "b", quiet=True).agreement is None
    assert "would take much memory" in caplog.text


def test_what_writes_no_answers_is_not_asked():
    run = SimpleNamespace(sources=[SimpleNamespace()], config=TrainConfig(("zoo:blip2",)))
    assert agreement.whole_source(run, None) is None
