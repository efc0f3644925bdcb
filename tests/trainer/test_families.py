"""Every family against transformers' own forward, loss, generate and image processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.tiny import save_tiny
from tvp.sdk.errors import ModelError, RequestError
from tvp.trainer import families

NAMES = ["llava", "blip2"]
QUESTIONS = ["How many objects are there?", "Is there a red star?", "What?"]
ANSWERS = ["3", "yes", "a purple triangle and more"]


@pytest.fixture(scope="module", params=NAMES)
def loaded(request, tmp_path_factory):
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    return families.load(folder), AutoProcessor.from_pretrained(folder, use_fast=False)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in QUESTIONS]


def texts(family, questions):
    if family.name == "llava":
        return [f"USER: <image>\n{q} ASSISTANT:" for q in questions]
    return [f"Question: {q} Answer:" for q in questions]


def canvases(pictures):
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in pictures])


def test_to_pixels_agrees_with_the_image_processor_to_one_level(loaded):
    family, processor = loaded
    rng = np.random.default_rng(1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (family.pixel_format.mean, family.pixel_format.std))
    for side in (64, 224, 40):
        noise = rng.integers(0, 256, (side, side, 3), np.uint8)
        theirs = processor.image_processor(Image.fromarray(noise), return_tensors="pt").pixel_values[0]
        ours = family.to_pixels(canvases([noise]))[0]
        levels = [((pixels * std + mean) * 255).round() for pixels in (ours, theirs)]
        assert (levels[0] - levels[1]).abs().max() <= 1


def test_loss_equals_transformers(loaded, pictures):
    family, processor = loaded
    for question, answer, picture in zip(QUESTIONS, ANSWERS, pictures, strict=True):
        text = texts(family, [question])[0]
        inputs = processor(images=picture, text=f"{text} {answer}</s>", return_tensors="pt")
        n_asked = processor(images=picture, text=text, return_tensors="pt").input_ids.shape[1]
        labels = inputs.input_ids.clone()
        labels[:, :n_asked] = -100
        theirs = family.model(**inputs, labels=labels).loss
        embeddings = family.see(inputs.pixel_values)
        ours = family.answer_loss(embeddings, [question], [answer])
        assert torch.allclose(ours, theirs, atol=1e-5), (ours, theirs)


def test_loss_of_a_batch_is_the_mean_over_its_tokens(loaded, pictures):
    family, _ = loaded
    embeddings = family.see(family.to_pixels(canvases(pictures)))
    counts = [len(family.answer_ids(a)) for a in ANSWERS]
    single = [family.answer_loss(embeddings[i : i + 1], [QUESTIONS[i]], [ANSWERS[i]]) * counts[i] for i in range(3)]
    whole = family.answer_loss(embeddings, QUESTIONS, ANSWERS)
    assert torch.allclose(whole, sum(single) / sum(counts), atol=1e-5)


def test_scores_are_minus_the_loss_of_each_candidate(loaded, pictures):
    """The same tokens in loss and scorer: a candidate's score is minus its loss, whatever else is in the batch."""
    family, _ = loaded
    embeddings = family.see(family.to_pixels(canvases(pictures)))
    candidates = ["yes", "no", "a purple triangle and more", "airplane"]
    scores = family.answer_scores(embeddings, QUESTIONS, candidates)
    for i, question in enumerate(QUESTIONS):
        for j, candidate in enumerate(candidates):
            loss = family.answer_loss(embeddings[i : i + 1], [question], [candidate])
            assert torch.allclose(scores[i, j], -loss, atol=2e-5), (question, candidate)


def test_generate_equals_transformers(loaded, pictures):
    family, processor = loaded
    embeddings = family.see(family.to_pixels(canvases(pictures)))
    batch, logits = family.generate_tokens(embeddings, QUESTIONS, max_new_tokens=12)
    for i, (question, picture) in enumerate(zip(QUESTIONS, pictures, strict=True)):
        inputs = processor(images=picture, text=texts(family, [question])[0], return_tensors="pt")
        theirs = family.model.generate(
            **inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        new = theirs.sequences[0][-len(theirs.logits) :].tolist()
        assert batch[i] == new
        assert torch.allclose(logits[i], torch.cat(theirs.logits), atol=1e-4)
    assert len({tuple(row) for row in batch}) > 1, "the planted models must not all say the same"


def test_gradient_reaches_the_canvas_and_agrees_with_finite_differences(loaded, pictures, monkeypatch):
    family, _ = loaded
    # transformers rounds to float32 inside this norm, which drowns a difference quotient.
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda self, x: self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon),
    )
    model = family.model.double()
    try:
        # Inside of [0, 1], so that a step does not move the bounds that overshoot is clipped to.
        canvas = torch.nn.functional.interpolate(canvases(pictures).double() * 0.9 + 0.05, (80, 80))
        canvas.requires_grad_(True)

        def loss(c):
            return family.answer_loss(family.see(family.to_pixels(c)), QUESTIONS, ANSWERS)

        (gradient,) = torch.autograd.grad(loss(canvas), canvas)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            direction = torch.randn(canvas.shape, generator=generator, dtype=torch.float64)
            step = 1e-6 * direction
            with torch.no_grad():
                numeric = (loss(canvas + step) - loss(canvas - step)) / 2e-6
            assert torch.allclose(numeric, (gradient * direction).sum(), rtol=1e-4, atol=1e-8)
        assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    finally:
        model.float()


def test_a_question_with_a_special_token_is_refused(loaded):
    family, _ = loaded
    with pytest.raises(RequestError, match="special token"):
        family.prompt_ids("What is <image> this?")


def test_an_unsupported_architecture_is_named_with_its_neighbours(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava_next_video"}')
    with pytest.raises(ModelError, match=r"llava_next_video.*Did you mean llava"):
        families.load(tmp_path)


def test_an_architecture_that_nobody_knows_is_named_too(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llawa"}')
    with pytest.raises(ModelError, match=r"llawa.*Did you mean llava"):
        families.load(tmp_path)
    for text in ("", "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=r"readable config\.json"):
            families.load(tmp_path)


def test_damaged_checkpoints_and_bad_devices_are_named(tmp_path):
    folder = save_tiny("llava", tmp_path / "model")
    for name in ("model.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        for part in (whole[: len(whole) // 2], b""):
            (folder / name).write_bytes(part)
            with pytest.raises(ModelError, match="incomplete or damaged"):
                families.load(folder)
        (folder / name).write_bytes(whole)
    with pytest.raises(RequestError, match="device 'abacus'"):
        families.load(folder, "abacus")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="incomplete"):
        families.load(folder)


def test_a_question_beyond_the_context_is_refused(loaded, pictures):
    family, _ = loaded
    embeddings = family.see(family.to_pixels(canvases(pictures[:1])))
    for call in (family.generate, lambda e, q: family.answer_loss(e, q, ["yes"])):
        with pytest.raises(RequestError, match="at most"):
            call(embeddings, ["word " * 600])
