"""Our step and scorer do what the released ones do, for less arithmetic; how fast they are says the benchmark."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reference_step import STEPS, TASK, Bench, Case, Counter, cosine
from tvp.trainer.prompt import Geometry


@pytest.fixture(scope="module")
def bench():
    return Bench(Case("zoo", "zoo:blip2", "zoo:guide", Geometry(64, 48), batch=4), n_pictures=8)


def test_the_gradient_is_the_reference_s_with_both_losses(bench):
    reference, ours = (bench.step(name)(bench.indices(0)) for name in STEPS[:2])
    assert cosine(reference, ours) >= 0.9999
    # Each loss has a share in the gradient, far above what the two differ by.
    for weights in ({"fca": 0.0}, {"tse": 0.0}):
        without = bench.reference.gradient(bench.prompt, bench.indices(0), **weights)
        assert (ours - reference).norm() < 0.01 * (without - reference).norm()


def test_both_scorers_give_the_same_scores(bench):
    embeddings = bench.embeddings()
    scores = bench.ours.scores(embeddings)
    assert scores.shape == (len(embeddings), len(TASK.labels))
    torch.testing.assert_close(scores, bench.reference.scores(embeddings), atol=1e-5, rtol=1e-5)


def test_our_step_and_scorer_need_less_arithmetic(bench):
    def count(call, *arguments):
        with Counter() as counter:
            call(*arguments)
        return counter.get_total_flops()

    bench.ours.look(bench.prompt.geometry, range(len(bench.data)))
    bench.ours_new.look(bench.prompt.geometry, [0])
    reference, ours, new = (count(bench.step(name), bench.indices(0)) for name in STEPS[:3])
    assert ours < new < reference
    assert reference >= 2 * ours
    embeddings = bench.embeddings()
    assert count(bench.reference.scores, embeddings) >= 5 * count(bench.ours.scores, embeddings)
