"""Every family against transformers' own forward, loss, generate and image processor.

A row a family, a column a check: pytest ends with the table (see the hook in tests/conftest.py).
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

from tests.oracles import ABOUT, CLOSED, NAMES, Double, published
from tests.tiny import CANVAS, save_tiny
from tvp import sdk
from tvp.sdk.errors import ModelError, RequestError
from tvp.trainer import families
from tvp.trainer.families.causal import CausalFamily
from tvp.trainer.families.clip import ContrastiveFamily
from tvp.trainer.families.instructblip import InstructBlip, InstructBlipT5
from tvp.trainer.families.seq2seq import Seq2SeqFamily
from tvp.trainer.losses import choice_loss

QUESTIONS = ["How many objects are there?", "Is there a red star", "What?"]
ANSWERS = ["3", "yes", "a purple triangle and more"]
CANDIDATES = ["yes", "no", "a purple triangle and more", "airplane"]
LABELS = [*CANDIDATES, "3"]
N_NEW = 8
# transformers gives NumPy a tensor in InternVLProcessor
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are slower on several threads, and several threads round differently."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module", params=NAMES)
def row(request, tmp_path_factory):
    """A family with its oracle, and what three pictures look like to it."""
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    family = families.load(folder)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (len(QUESTIONS), CANVAS, CANVAS, 3), np.uint8)
    canvas = to_canvas(noise)
    with torch.no_grad():
        embeddings = family.see(family.to_pixels(canvas), QUESTIONS)
    return SimpleNamespace(
        folder=folder,
        family=family,
        oracle=published(request.param, folder, family.model),
        pictures=[Image.fromarray(picture) for picture in noise],
        canvas=canvas,
        embeddings=embeddings,
    )


# Only these answer in free text, of as many tokens as they like.
wordy = pytest.mark.parametrize("row", list(ABOUT), indirect=True)


def to_canvas(noise):
    return torch.from_numpy(noise).permute(0, 3, 1, 2) / 255  # (n, H, W, C) -> (n, C, H, W)


def loss_of(family, embeddings, questions, answers):
    return family.answer_loss(embeddings, questions, answers, [LABELS] * len(answers))


def close(ours, theirs, rtol=1e-5, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_loss(row):
    """Equals transformers' on the same tokens; a batch's is the mean over its tokens."""
    family, closed = row.family, row.oracle.name in CLOSED
    singles, counts = [], []
    for i, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        ours = loss_of(family, row.embeddings[i : i + 1], [question], [answer])
        more = [LABELS] if closed else []
        close(ours, row.oracle.loss(row.pictures[i], question, answer, *more))
        singles.append(ours)
        counts.append(1 if closed else len(family.answer_ids(answer)))
    whole = loss_of(family, row.embeddings, QUESTIONS, ANSWERS)
    close(whole, sum(s * n for s, n in zip(singles, counts, strict=True)) / sum(counts))


def test_choice_loss(row):
    """It and its gradient are those of the softmax over minus the losses of the candidates, each by itself."""
    family, sets = row.family, (CANDIDATES, CANDIDATES[::-1], CANDIDATES[:2])
    labels = [sets[i % len(sets)] for i in range(len(QUESTIONS))]
    answers = [one[i % 2] for i, one in enumerate(labels)]
    seen = row.embeddings.detach().clone().requires_grad_()
    ours = choice_loss(family, seen, QUESTIONS, answers, labels)
    parts = []
    for i, (question, answer, some) in enumerate(zip(QUESTIONS, answers, labels, strict=True)):
        one = seen[i : i + 1]
        if row.oracle.name in CLOSED:
            parts.append(family.answer_loss(one, [question], [answer], [some]))
        else:
            each = torch.stack([-family.answer_loss(one, [question], [text]) for text in some])
            parts.append(-each.log_softmax(-1)[some.index(answer)])
    theirs = torch.stack(parts).mean()
    close(ours, theirs, atol=2e-5)
    mine, expected = (torch.autograd.grad(loss, seen, allow_unused=True)[0] for loss in (ours, theirs))
    assert expected.abs().max() > 0
    close(mine, expected, rtol=1e-3, atol=1e-6)


def test_scores(row):
    """A candidate's score is minus its loss, whatever else is in the batch: the same tokens in both."""
    family = row.family
    scores = family.answer_scores(row.embeddings, QUESTIONS, CANDIDATES)
    assert scores.std() > 0.01, "the planted models must not find everything equally likely"
    for i, question in enumerate(QUESTIONS):
        one = row.embeddings[i : i + 1]
        if row.oracle.name in CLOSED:
            theirs = row.oracle.scores(row.pictures[i], question, CANDIDATES)
        else:
            theirs = torch.stack([-family.answer_loss(one, [question], [c]) for c in CANDIDATES])
        close(scores[i], theirs, atol=2e-5)
        close(family.answer_scores(one, [question], CANDIDATES)[0], scores[i], atol=2e-5)
    assert torch.equal(family.answer_scores(row.embeddings, QUESTIONS, CANDIDATES), scores)
    close(family.answer_scores(row.embeddings, QUESTIONS, CANDIDATES, at_once=3), scores, atol=2e-5)


@wordy
def test_generate(row, monkeypatch):
    """Greedy answers are transformers' token for token, for questions of different lengths at once."""
    batch, logits = row.family.generate_tokens(row.embeddings, QUESTIONS, N_NEW)
    for i, question in enumerate(QUESTIONS):
        tokens, theirs = row.oracle.generate(row.pictures[i], question, N_NEW)
        assert batch[i] == tokens, question
        close(logits[i], theirs, atol=1e-4)
    assert len({tuple(tokens) for tokens in batch}) > 1, "the planted models must not all say the same"
    # As if a token that the first row says were the end: each row stops behind it, and the others go on.
    end = batch[0][2]
    monkeypatch.setattr(row.family, "layout", replace(row.family.layout, end=(end,)))
    stopped, logits = row.family.generate_tokens(row.embeddings, QUESTIONS, N_NEW)
    assert stopped == [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in batch]
    assert [len(steps) for steps in logits] == [len(tokens) for tokens in stopped]


@wordy
def test_padding(row):
    """What stands beside a row changes nothing: padding on the left (scores, answers) and on the right (loss)."""
    family = row.family
    lengths = [len(family.prompt_ids(question)[1]) for question in QUESTIONS]
    assert len(set(lengths)) == len(lengths)
    together = family.answer_scores(row.embeddings, QUESTIONS, CANDIDATES)
    tokens, logits = family.generate_tokens(row.embeddings, QUESTIONS, N_NEW)
    weight = len(family.answer_ids(ANSWERS[0]))
    for i, question in enumerate(QUESTIONS):
        one = row.embeddings[i : i + 1]
        close(family.answer_scores(one, [question], CANDIDATES)[0], together[i], atol=2e-5)
        alone, alone_logits = family.generate_tokens(one, [question], N_NEW)
        assert alone[0] == tokens[i]
        close(alone_logits[0], logits[i], atol=1e-4)
        # The same answer to each question and to the longest: a pair's loss is the mean of both.
        j = lengths.index(max(lengths))
        pair = row.embeddings[[i, j]]
        both = loss_of(family, pair, [question, QUESTIONS[j]], [ANSWERS[0], ANSWERS[2]])
        apart = [
            loss_of(family, pair[k : k + 1], [q], [a])
            for k, q, a in ((0, question, ANSWERS[0]), (1, QUESTIONS[j], ANSWERS[2]))
        ]
        other = len(family.answer_ids(ANSWERS[2]))
        close(both, (apart[0] * weight + apart[1] * other) / (weight + other))


def test_gradient(row):
    """The float32 gradient to a canvas that is resized on its way agrees with float64 difference quotients."""
    # Inside of [0, 1], so that a step does not move the bounds that overshoot is clipped to.
    canvas = torch.nn.functional.interpolate(row.canvas * 0.9 + 0.05, (80, 80)).requires_grad_(True)

    def loss(family, canvas):
        return loss_of(family, family.see(family.to_pixels(canvas), QUESTIONS), QUESTIONS, ANSWERS)

    (gradient,) = torch.autograd.grad(loss(row.family, canvas), canvas)
    assert all(p.grad is None and not p.requires_grad for p in row.family.model.parameters())
    exact = families.load(row.folder)
    exact.model.double()
    generator = torch.Generator().manual_seed(0)
    with Double(), torch.no_grad():
        for _ in range(3):
            direction = torch.randn(canvas.shape, generator=generator, dtype=torch.float64)
            step = 1e-7 * direction  # a longer one meets the kinks of ReLU
            numeric = (loss(exact, canvas.double() + step) - loss(exact, canvas.double() - step)) / 2e-7
            close((gradient * direction).sum(), numeric, rtol=1e-3, atol=1e-5 * float(gradient.norm()))


def test_pixels(row):
    """`to_pixels` agrees with the published image processor to one of 256 levels, at any size of the canvas."""
    rng = np.random.default_rng(1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (row.family.pixel_format.mean, row.family.pixel_format.std))
    for side in (CANVAS, 224, 40):
        noise = rng.integers(0, 256, (side, side, 3), np.uint8)
        ours, theirs = row.family.to_pixels(to_canvas(noise[None]))[0], row.oracle.pixels(Image.fromarray(noise))
        levels = [((pixels * std + mean) * 255).round() for pixels in (ours, theirs)]
        assert (levels[0] - levels[1]).abs().max() <= 1, side


def test_refusals(row):
    """Special tokens in a question, questions beyond the context, and free questions to those who only choose."""
    family, one = row.family, row.embeddings[:1]
    for candidates in ([], ()):
        with pytest.raises(RequestError, match="no candidates"):
            family.answer_scores(one, ["What?"], candidates)
    if row.oracle.name in CLOSED:
        with pytest.raises(RequestError, match="rank labels"):
            family.generate(one, ["What?"])
        for labels in ((), [["no"]]):
            with pytest.raises(RequestError, match="needs labels with the right one"):
                family.answer_loss(one, ["What?"], ["yes"], labels)
        return
    with pytest.raises(RequestError, match="special token"):
        family.prompt_ids(f"What is {family.layout.image_token} this?")
    with pytest.raises(RequestError, match="special token"):
        family.answer_ids(family.layout.image_token)
    if family.n_positions is not None:  # T5 has no end
        for call in (family.generate, lambda e, q: family.answer_loss(e, q, ["yes"])):
            with pytest.raises(RequestError, match="at most"):
                call(one, ["word " * 600])
    if family.reads_question:
        with pytest.raises(RequestError, match="at most"):
            family.see(family.to_pixels(row.canvas[:1]), ["word " * 600])
        with pytest.raises(RequestError, match="reads the question"):
            family.see(family.to_pixels(row.canvas[:1]))


@wordy
def test_prefix(row):
    """Scoring makes one run over picture and question, and one over all candidates.

    With T5 the first is the encoder's, the second the decoder's.
    """
    family = row.family
    encoder_decoder = family.name.endswith("t5")
    stacks = [family.language_model.encoder, family.language_model.decoder] if encoder_decoder else [family.decoder] * 2
    runs = []

    def note(module, _, given):
        words = given.get("inputs_embeds")
        runs.append((module, (given["input_ids"] if words is None else words).shape))

    hooks = [stack.register_forward_pre_hook(note, with_kwargs=True) for stack in dict.fromkeys(stacks)]
    family.answer_scores(row.embeddings, QUESTIONS, CANDIDATES)
    for hook in hooks:
        hook.remove()
    assert [module for module, _ in runs] == stacks
    n_prefix, n_answers = runs[0][1][1], runs[1][1][1]
    assert (runs[0][1][0], runs[1][1][0]) == (len(QUESTIONS), len(QUESTIONS) * len(CANDIDATES))
    assert n_prefix > row.embeddings.shape[1]
    assert n_answers < max(len(family.answer_ids(c)) for c in CANDIDATES) + encoder_decoder


def test_a_patch_has_the_same_place_in_every_type(tmp_path):
    """transformers rounds places in the weights' type, and in bf16 other ones come out."""
    folder = save_tiny("smolvlm", tmp_path / "smolvlm")
    places = [families.load(folder, dtype=kind)._places for kind in (torch.float32, torch.bfloat16, torch.float16)]
    assert torch.equal(places[0], places[1])
    assert torch.equal(places[0], places[2])


def test_smolvlm_whose_patches_cannot_be_joined_is_refused(tmp_path):
    """transformers makes such a model, and its forward ends in a shape that does not fit."""
    folder = save_tiny("smolvlm", tmp_path / "smolvlm")
    config = transformers.AutoConfig.from_pretrained(folder)
    n_side = config.vision_config.image_size // config.vision_config.patch_size
    config.scale_factor = n_side - 1
    transformers.SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    with pytest.raises(ModelError, match=f"has {n_side} patches a side, and its connector joins {n_side - 1} of them"):
        families.load(folder)


def test_logits_of_clip_are_not_rounded_in_bf16(tmp_path):
    clip = families.load(save_tiny("clip", tmp_path / "clip"), dtype=torch.bfloat16)
    seen = clip.see(clip.to_pixels(torch.rand(1, 3, CANVAS, CANVAS)))
    assert clip.logits(seen, ["a dog", "a cat"]).dtype == torch.float32
    assert clip.scale == families.load(tmp_path / "clip").scale
    assert clip.model.logit_scale.dtype == torch.bfloat16


def test_open_clips_weights_have_the_activation_that_they_were_trained_with(monkeypatch):
    asked = {}

    def create_model(name, *, pretrained, force_quick_gelu, force_preprocess_cfg, **options):
        asked[name, pretrained] = force_quick_gelu
        assert len(force_preprocess_cfg["mean"]) == 3
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    for place in ("ViT-B-32@openai", "ViT-B/32@openai", "ViT-B-32@laion2b_s34b_b79k"):
        with pytest.raises(ModelError, match="no network"):
            families.load(f"open_clip:{place}")
    assert asked == {("ViT-B-32", "openai"): True, ("ViT-B-32", "laion2b_s34b_b79k"): False}
    for place in ("ViT-B-32", "ViT-B-32@nobody"):
        with pytest.raises(ModelError, match=r"There are no weights .*openai"):
            families.load(f"open_clip:{place}")


def test_a_question_may_hold_a_character_that_is_unknown(one_bundle):
    """T5 reads one as a token of its own, which is marked as special."""
    for name in ("zoo:blip2-t5", one_bundle.parent / "model"):
        family = families.load(name)
        special = set(family.tokenizer.all_special_ids)
        assert special - family._prompt_tokenizer.special_ids == {family.tokenizer.unk_token_id}
    with sdk.load(one_bundle) as task:
        assert task.model.prompt_tokenizer.special_ids == family._prompt_tokenizer.special_ids


def test_a_family_says_of_which_kind_it_is():
    assert (CausalFamily.kind, Seq2SeqFamily.kind, ContrastiveFamily.kind) == ("causal", "seq2seq", "contrastive")
    assert (InstructBlip.kind, InstructBlipT5.kind) == ("causal", "seq2seq")


def test_size(row):
    """The size of pictures is known before weights are read: what a canvas is made for."""
    assert families.input_side(row.folder) == row.family.pixel_format.size
