"""The losses and the update against their formulas and against torch's own optimiser."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from tests.tiny import save_tiny_guide
from tvp.sdk.errors import ModelError
from tvp.trainer.losses import Guide, feature_consistency
from tvp.trainer.update import Update


def test_feature_consistency_is_the_mean_distance_not_squared():
    prompted, clean = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    expected = np.mean(
        [np.linalg.norm(a - b) for a, b in zip(prompted.reshape(-1, 7), clean.reshape(-1, 7), strict=False)]
    )
    assert feature_consistency(prompted, clean).item() == pytest.approx(expected, rel=1e-6)


def test_feature_consistency_at_the_start_is_zero_with_a_zero_gradient():
    clean = torch.randn(2, 5, 7)
    prompted = clean.clone().requires_grad_(True)
    loss = feature_consistency(prompted, clean)
    (gradient,) = torch.autograd.grad(loss, prompted)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(clean))


def test_one_equal_token_does_not_spoil_the_others_gradient():
    clean = torch.randn(1, 3, 4, dtype=torch.float64)
    prompted = clean + torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1)
    prompted = prompted.requires_grad_(True)
    (gradient,) = torch.autograd.grad(feature_consistency(prompted, clean), prompted)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0].abs().max() == 0
    assert torch.allclose(gradient[0, 1], torch.full((4,), 1 / 2 / 3, dtype=torch.float64))


def test_task_semantics_is_clips_own_logit(tmp_path):
    folder = save_tiny_guide(tmp_path)
    guide = Guide(folder)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    canvas = torch.rand(2, 3, 64, 64)
    captions = ["a red star", "a cat"]
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        image, text, scale = model((canvas - mean) / std, tokenizer([f"this is a photo of {c}" for c in captions]))
    expected = (scale * F.cosine_similarity(image, text)).mean()
    assert torch.allclose(guide.task_semantics(canvas, captions), expected, atol=1e-5)


def test_captions_are_read_once(tmp_path, monkeypatch):
    guide = Guide(save_tiny_guide(tmp_path))
    calls = []
    encode = guide.model.encode_text
    monkeypatch.setattr(guide.model, "encode_text", lambda ids: calls.append(len(ids)) or encode(ids))
    guide.text_features(["a", "b", "a"])
    guide.text_features(["b", "c"])
    assert calls == [1, 1, 1]


def test_unknown_damaged_and_untrained_guides_are_model_errors(tmp_path):
    folder = save_tiny_guide(tmp_path)
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for name in ("ViT-Q-99", folder, "ViT-B-32"):  # the last has no weights named
        with pytest.raises(ModelError, match="guide"):
            Guide(name)


def test_a_normalized_step_is_as_long_as_the_rate():
    gradients = [torch.randn(3, 8, 8), torch.randn(5)]
    before = [torch.zeros(3, 8, 8), torch.ones(5)]
    after = Update("normalized", lr=0.5, n_steps=10).apply(before, gradients, step=0)
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-5)  # over all that is learned together
    against = torch.cat([-g.flatten() for g in gradients])
    assert F.cosine_similarity(moved, against, dim=0) > 0.999999


@pytest.mark.parametrize("rule", ["normalized", "sign", "adam"])
def test_a_zero_gradient_changes_nothing(rule):
    frame = torch.ones(3, 4, 4)
    (after,) = Update(rule, lr=0.5, n_steps=10).apply([frame], [torch.zeros(3, 4, 4)], 0)
    assert torch.equal(after, frame)


def test_a_sign_step_moves_every_value_by_the_rate():
    (after,) = Update("sign", lr=0.25, n_steps=10).apply([torch.zeros(3)], [torch.tensor([5.0, -0.01, 0.0])], 0)
    assert after.tolist() == [-0.25, 0.25, 0.0]


def test_adam_is_torchs_adam():
    mine = torch.zeros(3, 4, 4)
    update = Update("adam", lr=0.1, n_steps=20)
    parameter = mine.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99))
    for step in range(20):
        gradient = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(step))
        (mine,) = update.apply([mine], [gradient], step)
        optimizer.param_groups[0]["lr"] = update.rate(step)
        parameter.grad = gradient
        optimizer.step()
    assert torch.allclose(mine, parameter.detach(), atol=1e-6)


def test_the_rate_warms_up_and_ends_near_zero():
    update = Update("adam", lr=1.0, n_steps=100, n_warm_up=10)
    rates = [update.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_a_guide_may_lie_in_a_folder_with_an_at(tmp_path):
    (tmp_path / "me@host").mkdir()
    assert Guide(save_tiny_guide(tmp_path / "me@host")).text_features(["a cat"]).shape[0] == 1
