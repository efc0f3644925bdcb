"""Views: several that are answered together with options of their own, and the memory that one takes."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from tvp import sdk
from tvp.sdk._view import answer_together

PICTURES = [np.random.default_rng(i).integers(0, 256, (30, 64, 3), np.uint8) for i in range(2)]


@pytest.fixture(scope="module")
def task(one_bundle):
    with sdk.load(one_bundle) as loaded:
        yield loaded


def test_answers_of_one_batch_have_options_of_their_own(task):
    """Each is the one that it would be alone; a client that goes costs the others nothing, and all say their tokens."""
    views = [task.see(PICTURES[0]), task.see(PICTURES[0]), task.see(PICTURES[1])]
    gone, told = threading.Event(), []
    gone.set()
    options = [{"max_new_tokens": 30}, {"max_new_tokens": 400}, {"max_new_tokens": 7, "temperature": 1.0, "seed": 3}]
    requests = [task._open_requests().ask("What?", option) for option in options]
    requests[0], requests[1] = (
        request._replace(generation=dataclasses.replace(request.generation, **more))
        for request, more in zip(
            requests, [{"told": lambda answering: told.append(answering.tokens[-1])}, {"cancel": gone}], strict=False
        )
    )
    answers = answer_together(views, requests)
    assert answers[1].finish == "cancelled"
    assert len(answers[1].tokens) <= 1
    for place in (0, 2):
        alone = task.ask(PICTURES[place // 2], "What?", **options[place])
        assert (answers[place].tokens, answers[place].finish) == (alone.tokens, alone.finish)
    assert tuple(told) == answers[0].tokens


def test_a_view_says_its_bytes(task):
    view = task.see(PICTURES[0])
    before = view.n_bytes
    view.ask("What?", max_new_tokens=2)
    held = [*vars(view._seen.cache).values()]
    arrays = [a for v in held if isinstance(v, (dict, list)) for a in (v.values() if isinstance(v, dict) else v)]
    tensors = [a if isinstance(a, np.ndarray) else a.numpy() for a in arrays]
    kept = sum(a.nbytes for a in tensors if a.ndim == 4)  # keys and values; the others are inputs of a run
    assert 0 < before < view.n_bytes == view._seen.features.nbytes + kept + view._seen.logits.nbytes
