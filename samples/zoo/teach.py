"""How the zoo's models are taught: the eye first, densely; then the language model, on a frozen eye."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

import models
from lessons import Lesson
from models import LAYOUTS, WIDTH, eye_parameters, project, see
from tvp.trainer import scenes

CHECKPOINT_EVERY = 100
IGNORE = -100
ALIGN_WEIGHT = 0.3


def run(
    title: str,
    checkpoint: Path,
    n_steps: int,
    lr: float,
    parameters: list[nn.Parameter],
    modules: nn.Module,
    lessons: Callable[[int], Iterator[Lesson]],
    loss_of: Callable[[Lesson], tuple[Tensor, dict[str, float]]],
) -> None:
    """Minimise a loss with AdamW and a one-cycle rate; continue from `checkpoint` where it exists."""
    if not n_steps:
        return
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    warm_up = min(100, n_steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min((t + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * min(1, t / n_steps)) + 0.005),
    )
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        modules.load_state_dict(state["modules"])
        if state["step"] >= n_steps:
            return
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
    batches = lessons(start)
    smooth: dict[str, float] = {}
    bar = tqdm(range(start, n_steps), initial=start, total=n_steps, desc=title, mininterval=10)
    for step in bar:
        loss, shown = loss_of(next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        for name, value in {"loss": loss.item(), **shown}.items():
            smooth[name] = 0.97 * smooth.get(name, value) + 0.03 * value
        if step % 20 == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in smooth.items()}, refresh=False)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == n_steps:
            state = {
                "modules": modules.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
            }
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            os.replace(temporary, checkpoint)


class EyeHeads(nn.Module):
    """Linear read-outs of what patches (and a Q-Former's queries) should know; thrown away after."""

    def __init__(self) -> None:
        super().__init__()
        n_kinds, n_colours, n_photos = len(scenes.KINDS) + 1, len(scenes.COLOURS), len(models.PHOTO_LABELS)
        self.owner = nn.Linear(WIDTH, n_kinds + n_colours)
        self.cover = nn.Linear(WIDTH, n_kinds + n_colours)
        self.cell = nn.Linear(WIDTH, n_kinds + n_colours)
        self.photo = nn.ModuleList([nn.Linear(WIDTH, n_photos), nn.Linear(WIDTH, n_photos)])
        n_names = len(scenes.KINDS) * n_colours + 1
        self.names = nn.ModuleList([nn.Linear(WIDTH, n_names), nn.Linear(WIDTH, n_names)])


def eye_loss(
    name: str, model: nn.Module, heads: EyeHeads, lesson: Lesson, n_kept: int | None, bind: bool
) -> tuple[Tensor, dict[str, float]]:
    """Kind and colour by patch and query of scenes; class of photos, of which n_kept patches are shown.

    bind: also the mixture of both ("red star") as one class, without which a small language model
        takes long to learn that a red circle beside a blue star is no red star.
    """
    is_photo = lesson.photo >= 0
    patches, tokens = see(name, model, lesson.pixels[~is_photo])
    views = [
        (heads.cover, patches, lesson.cover_kind, lesson.cover_colour),
        (heads.owner, patches, lesson.owner_kind, lesson.owner_colour),
    ]
    if name == "blip2":
        views.append((heads.cell, tokens, lesson.cell_kind, lesson.cell_colour))
    loss, shown = torch.zeros(()), {}
    for dense, features, kind, colour in views:
        kind_logits, colour_logits = dense(features).split([len(scenes.KINDS) + 1, len(scenes.COLOURS)], -1)
        kind, colour = kind[~is_photo], colour[~is_photo]
        shape = kind >= 0
        weight = torch.where(shape, 1.0, 0.15)
        kind_loss = F.cross_entropy(kind_logits.transpose(1, 2), torch.where(shape, kind, 4), reduction="none")
        loss = loss + (kind_loss * weight).sum() / weight.sum()
        loss = loss + F.cross_entropy(colour_logits[shape], colour[shape])
        shown.setdefault("cover", (kind_logits.argmax(-1) == kind)[shape].float().mean().item())
        shown["kind"] = (kind_logits.argmax(-1) == kind)[shape].float().mean().item()
        shown["colour"] = (colour_logits.argmax(-1) == colour)[shape].float().mean().item()
    if bind:
        owners = [(heads.names[0], patches, lesson.owner_kind, lesson.owner_colour)]
        if name == "blip2":
            owners.append((heads.names[1], tokens, lesson.cell_kind, lesson.cell_colour))
        for head, features, kind, colour in owners:
            kind, colour = kind[~is_photo], colour[~is_photo]
            shape = kind >= 0
            mixture = torch.where(shape, kind * len(scenes.COLOURS) + colour, head.out_features - 1)
            weight = torch.where(shape, 1.0, 0.15)
            logits = head(features)
            loss = (
                loss
                + (F.cross_entropy(logits.transpose(1, 2), mixture, reduction="none") * weight).sum() / weight.sum()
            )
            shown["name"] = (logits.argmax(-1) == mixture)[shape].float().mean().item()
    if is_photo.any():
        patches, tokens = see(name, model, lesson.pixels[is_photo], n_kept)
        for head, features in zip(heads.photo, (patches, tokens), strict=True):
            logits = head(features.mean(1))
            loss = loss + F.cross_entropy(logits, lesson.photo[is_photo], label_smoothing=0.05)
        shown["photo"] = (logits.argmax(-1) == lesson.photo[is_photo]).float().mean().item()
    return loss, shown


def language_loss(
    name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, lesson: Lesson
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers. All questions about a picture share one sequence, but each sees
    only the picture and itself, at the positions that it would have alone."""
    with torch.no_grad():
        _, features = see(name, model, lesson.pixels)
    image = project(name, model, features)
    n, n_image, _ = image.shape
    aligned = ALIGN_WEIGHT * alignment_loss(name, model, tokenizer, lesson, image)
    before, after = LAYOUTS[name]
    prefix, tail = [tokenizer.bos_token_id, *_ids(tokenizer, before)], []
    if name == "blip2":  # its processor puts the image tokens before the begin token
        prefix, tail = [], [tokenizer.bos_token_id]
    n_questions = len(lesson.questions[0])
    rows: list[list[int]] = []
    targets: list[list[int]] = []
    for questions in lesson.questions:
        for question, answer in questions:
            asked = tail + _ids(tokenizer, after.format(question=question))
            answered = [*_ids(tokenizer, f" {answer}"), tokenizer.eos_token_id]
            rows.append(asked + answered)
            targets.append([IGNORE] * (len(asked) - 1) + answered + [IGNORE])
    length = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    wanted = torch.tensor([row + [IGNORE] * (length - len(row)) for row in targets])
    embed = model.get_input_embeddings()
    parts = [image, embed(ids).view(n, n_questions * length, -1)]
    if prefix:
        parts.insert(0, embed(torch.tensor(prefix)).expand(n, -1, -1))
    embeddings = torch.cat(parts, 1)
    n_prefix = len(prefix) + n_image
    segment = torch.cat([torch.full((n_prefix,), -1), torch.arange(n_questions).repeat_interleave(length)])
    position = torch.cat([torch.arange(n_prefix), n_prefix + torch.arange(length).repeat(n_questions)])
    visible = (position[:, None] >= position[None, :]) & (
        (segment[None, :] == -1) | (segment[:, None] == segment[None, :])
    )
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
    decoder = model.model.language_model if name == "llava" else model.language_model.model.decoder
    hidden = decoder(
        inputs_embeds=embeddings,
        attention_mask=mask.expand(n, -1, -1, -1),
        position_ids=position.expand(n, -1),
        use_cache=False,
    ).last_hidden_state
    hidden = hidden[:, n_prefix:].reshape(-1, hidden.shape[-1])
    chosen = wanted.view(-1) != IGNORE
    logits = model.get_output_embeddings()(hidden[chosen])
    right = (logits.argmax(-1) == wanted.view(-1)[chosen]).float()
    is_answer = wanted.view(-1)[chosen] != tokenizer.eos_token_id
    loss = F.cross_entropy(logits, wanted.view(-1)[chosen])
    shown = {"answer": loss.item(), "right": right[is_answer].mean().item(), "align": aligned.item()}
    return loss + aligned, shown


def alignment_loss(
    name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, lesson: Lesson, image: Tensor
) -> Tensor:
    """Where a shape is, its image embedding should be near the word embeddings of its kind and colour.

    It does for a small model what the caption stage of LLaVA and BLIP-2 does for a large one: a word
    in a question then finds what it names by likeness.
    """
    scene = lesson.photo < 0
    words = model.get_input_embeddings().weight
    pairs = (
        ((lesson.owner_kind, scenes.KINDS), (lesson.owner_colour, tuple(scenes.COLOURS)))
        if name == "llava"
        else ((lesson.cell_kind, scenes.KINDS), (lesson.cell_colour, tuple(scenes.COLOURS)))
    )
    loss = image.new_zeros(())
    for target, names in pairs:
        (ids,) = zip(*(_ids(tokenizer, f" {word}") for word in names), strict=True)
        likeness = 10 * F.normalize(image[scene], dim=-1) @ F.normalize(words[list(ids)], dim=-1).T
        logits = F.pad(likeness, [0, 1], value=2.0)  # the last class: no shape here
        target = target[scene]
        shape = target >= 0
        weight = torch.where(shape, 1.0, 0.15)
        each = F.cross_entropy(logits.transpose(1, 2), torch.where(shape, target, len(names)), reduction="none")
        loss = loss + (each * weight).sum() / weight.sum()
    return loss


def language_parameters(name: str, model: nn.Module) -> list[nn.Parameter]:
    eye = {id(p) for p in eye_parameters(name, model)}
    return [p for p in model.parameters() if id(p) not in eye]


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids if text else []
