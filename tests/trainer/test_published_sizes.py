"""Every family at the dimensions of its published models, two layers deep and with random weights.

The other tests run models of a few thousand weights; what is hard-wired to their sizes fails here:
widths, heads, vocabularies, picture and patch sizes, numbers of queries, positions, image token ids.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.modeling_utils import no_init_weights

from tests.published import BERT_TOKENS, CLOSED, PUBLISHED, WORDS, Published
from tvp.sdk.errors import RequestError
from tvp.trainer import families
from tvp.trainer.families._checkpoint import Checkpoint

CANVAS = 224  # px
QUESTION, ANSWERS = "How many?", ["3", "none"]
FIRST_BYTE = 1000  # ids of the stand-in tokenizer's 256 byte tokens; no special token is among them
N_POOL = 130528 * 4096  # the largest tensor of all: ChatGLM-6B's embeddings


class StandIn(Checkpoint):
    """What a family reads of a published model, without the model's files.

    Its weights are windows of one pool of random numbers: a model of gigabytes costs no more memory
    than the pool, and no time.
    """

    def __init__(self, case: Published, pool: torch.Tensor) -> None:
        self.name, self.kind, self.config = case.name, case.kind, dict(case.config)
        self._case, self._pool = case, pool

    def weights(self, architecture: Any) -> Any:
        with no_init_weights():  # nothing is written to what is replaced below
            model = architecture(architecture.config_class.from_dict(self.config))
        model.tie_weights()
        norms = [module for module in model.modules() if "Norm" in type(module).__name__]
        start = 0
        for parameter in model.parameters():
            n = parameter.numel()
            assert parameter.dtype == torch.float32
            start = start if start + n <= len(self._pool) else 0
            parameter.data = self._pool[start : start + n].view(parameter.shape)
            start += -(-n // 16) * 16  # windows begin at multiples of 64 bytes
        for norm in norms:
            for name, parameter in norm.named_parameters(recurse=False):
                parameter.data = torch.full_like(parameter, float(name == "weight"))
        if self._case.end is not None:
            model.generation_config.eos_token_id = self._case.end
        return model

    def tokenizer(self, folder: str = "") -> PreTrainedTokenizerBase:
        if folder:  # the Q-Former's
            assert folder == "qformer_tokenizer"
            return byte_tokenizer(BERT_TOKENS, ("[CLS]",), ("[SEP]",), {})
        case = self._case
        return byte_tokenizer(case.special, case.begin, case.close, case.marks)

    def pixel_format(self, size: int) -> families.PixelFormat:
        return families.PixelFormat(size, *self._case.pixels, self._case.filter)

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        return None


def byte_tokenizer(
    special: Mapping[str, int], begin: tuple[str, ...], close: tuple[str, ...], marks: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """Every byte is a token, and every special token has its published id.

    What else a published vocabulary holds is filled with names that no text has.
    """
    vocabulary = {f"unused {i}": i for i in range(max(FIRST_BYTE + 256, *special.values()) + 1)}
    names = dict(enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), FIRST_BYTE))
    names |= {i: token for token, i in special.items()}
    for i, token in names.items():
        del vocabulary[f"unused {i}"]
        vocabulary[token] = i
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *close], special_tokens=[(mark, special[mark]) for mark in {*begin, *close}]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(special), model_max_length=10**6, **marks
    )


@pytest.fixture(scope="module")
def pool():
    """Random numbers as large as weights usually are: uniform, standard deviation 0.029."""
    return torch.empty(N_POOL).uniform_(-0.05, 0.05, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(pool):
    """Build a case's family; its model is gone before the next test builds one."""

    def build(case):
        module = importlib.import_module(f"tvp.trainer.families.{families.FAMILIES[case.kind]}")
        return module.make(StandIn(case, pool))

    yield build
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
