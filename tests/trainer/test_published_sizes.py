"""Every family at the dimensions of its published models, two layers deep and with random weights.

The other tests run models of a few thousand weights; what is hard-wired to their sizes fails here:
widths, heads, vocabularies, picture and patch sizes, numbers of queries, positions, image token ids.
"""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

from tests.published import CLOSED, PUBLISHED, WORDS
from tests.stand_in import StandIn, build, make_pool
from tvp.sdk.errors import RequestError
from tvp.trainer import families

CANVAS = 224  # px
QUESTION, ANSWERS = "How many?", ["3", "none"]


@pytest.fixture(scope="module")
def pool():
    return make_pool()


@pytest.fixture
def make(pool):
    """Build a case's family; its model is gone before the next test builds one."""

    yield lambda case: build(case, pool)
    gc.collect()


def a_canvas():
    return torch.rand(1, 3, CANVAS, CANVAS, generator=torch.Generator().manual_seed(1))


def look(family, case):
    """A canvas that takes a gradient, and what the language model gets of it."""
    canvas = a_canvas().requires_grad_(True)
    pixels = family.to_pixels(canvas)
    assert pixels.shape == (1, 3, case.size, case.size)
    embeddings = family.see(pixels, [QUESTION])
    assert embeddings.shape == (1, case.n_image, case.width)
    return canvas, embeddings


def expect_a_gradient(loss, canvas):
    assert loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, canvas)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_every_family_is_here():
    assert {case.kind for case in PUBLISHED} == set(families.FAMILIES)


@pytest.mark.parametrize("case", WORDS, ids=lambda case: case.name)
def test_a_published_model_runs(case, make):
    family = make(case)
    ends = case.end if isinstance(case.end, list) else [case.end]
    assert set(ends) <= set(family.layout.end)  # MiniGPT-4 and VPGTrans have their text's besides
    assert [family.text(family.answer_ids(answer)) for answer in ANSWERS] == ANSWERS
    canvas, embeddings = look(family, case)
    loss = family.answer_loss(embeddings, [QUESTION], ANSWERS[:1])
    expect_a_gradient(loss, canvas)
    scores = family.answer_scores(embeddings.detach(), [QUESTION], ANSWERS)
    assert scores.shape == (1, len(ANSWERS))
    assert torch.allclose(scores[0, 0], -loss.detach(), rtol=1e-4)
    (tokens,), (logits,) = family.generate_tokens(embeddings.detach(), [QUESTION], max_new_tokens=2)
    assert len(tokens) == 2
    assert logits.shape == (2, family.text_config.vocab_size)


@pytest.mark.parametrize("case", CLOSED, ids=lambda case: case.name)
def test_a_published_model_of_closed_questions_runs(case, make, pool):
    family = make(case)
    canvas, embeddings = look(family, case)
    labels = ["a cat", "a dog", "a ship"]
    expect_a_gradient(family.answer_loss(embeddings, [QUESTION], labels[:1], [labels]), canvas)
    scores = family.answer_scores(embeddings.detach(), [QUESTION], labels)
    # SigLIP reads its padding, CLIP does not.
    texts = StandIn(case, pool).tokenizer()(
        [f"a photo of a {label}" for label in labels],
        padding="max_length",
        max_length=family.model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    )
    with torch.no_grad():
        theirs = family.model(texts.input_ids, family.to_pixels(a_canvas())).logits_per_image
    if case.kind == "clip":
        assert torch.allclose(scores.exp().sum(), torch.tensor(1.0))
        theirs = theirs.log_softmax(-1)
    else:
        theirs = F.logsigmoid(theirs)
    assert torch.allclose(scores, theirs, atol=1e-5)
    assert scores.std() > 0
    with pytest.raises(RequestError, match="closed questions"):
        family.generate(embeddings, [QUESTION])
