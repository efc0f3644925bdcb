"""How the zoo's models are taught: the vision encoder first, patch by patch; then the language part, on it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from tvp.trainer import scenes

from .encoders import ask_queries, positions, project, see, text_model
from .lessons import Lesson
from .models import ENCODER_OF, WIDTH
from .words import LAYOUTS, PHOTO_LABELS

CHECKPOINT_EVERY = 100
IGNORE = -100
ALIGN_WEIGHT = 0.3
PHOTO_WEIGHT = 0.5
# T5 does not divide its attention by the root of a head's size, so queries and keys move too fast at the rate of the
# other parameters. Its position biases are added to scores of ten and more, and would need hundreds of steps to matter.
T5_RATES = {"relative_attention_bias": 20.0, "Attention.q.": 0.42, "Attention.k.": 0.42}


def run(
    title: str,
    checkpoint: Path,
    n_steps: int,
    lr: float,
    parameters: list[nn.Parameter],
    modules: nn.Module,
    lessons: Callable[[int], Iterator[Any]],
    loss_of: Callable[[Any], tuple[Tensor, dict[str, float]]],
    every: int = CHECKPOINT_EVERY,
) -> None:
    """Minimise a loss with AdamW and a one-cycle rate; continue from `checkpoint`, written `every` so many steps."""
    if not n_steps:
        return
    optimizer = torch.optim.AdamW(_groups(parameters, modules, lr), betas=(0.9, 0.98), weight_decay=0.05)
    warm_up = max(1, min(100, n_steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min((t + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * min(1, t / n_steps)) + 0.005),
    )
    start, device = 0, parameters[0].device
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
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
        lesson = to_device(next(batches), device)  # drawn on the CPU
        with device:  # where the losses make their tensors
            loss, shown = loss_of(lesson)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        for name, value in {"loss": loss.item(), **shown}.items():
            smooth[name] = 0.97 * smooth.get(name, value) + 0.03 * value
        if step % 20 == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in smooth.items()}, refresh=False)
        if (step + 1) % every == 0 or step + 1 == n_steps:
            state = {
                "modules": modules.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
            }
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            os.replace(temporary, checkpoint)


def to_device(lesson: Any, device: torch.device) -> Any:
    """Move a lesson to a device, or a tuple of lessons, of which some may be None."""
    if isinstance(lesson, tuple):
        return tuple(None if part is None else part.to(device) for part in lesson)
    return lesson.to(device)


def _groups(parameters: list[nn.Parameter], modules: nn.Module, lr: float) -> list[dict[str, Any]]:
    names = {id(parameter): name for name, parameter in modules.named_parameters()}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        factors = [factor for part, factor in T5_RATES.items() if part in names[id(parameter)]]
        groups.setdefault(factors[0] if factors else 1.0, []).append(parameter)
    return [{"params": members, "lr": lr * factor} for factor, members in groups.items()]


class EncoderHeads(nn.Module):
    """Linear read-outs that teach patches (and a Q-Former's queries) kinds, colours and classes; thrown away after."""

    def __init__(self) -> None:
        super().__init__()
        n_kinds, n_colours, n_photos = len(scenes.KINDS) + 1, len(scenes.COLOURS), len(PHOTO_LABELS)
        self.owner = nn.Linear(WIDTH, n_kinds + n_colours)
        self.cover = nn.Linear(WIDTH, n_kinds + n_colours)
        self.cell = nn.Linear(WIDTH, n_kinds + n_colours)
        self.photo = nn.ModuleList([nn.Linear(WIDTH, n_photos), nn.Linear(WIDTH, n_photos)])
        n_names = len(scenes.KINDS) * n_colours + 1
        self.names = nn.ModuleList([nn.Linear(WIDTH, n_names), nn.Linear(WIDTH, n_names)])


def encoder_loss(
    name: str, model: nn.Module, heads: EncoderHeads, lesson: Lesson, n_kept: int | None, bind: bool
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a vision encoder: kind and colour by patch and query of scenes, and the class of photos.

    Args:
        name: of the model in the zoo.
        model: the model around the vision encoder.
        heads: the read-outs.
        lesson: scenes and photos.
        n_kept: number of patches of a photo that are shown; None: all.
        bind: whether kind and colour together ("red star") are also read out as one class. Without this a small
            language model takes long to learn that a red circle beside a blue star is no red star.
    """
    is_photo = lesson.photo >= 0
    patches, tokens = see(name, model, lesson.pixels[~is_photo])
    views = [
        (heads.cover, patches, lesson.cover_kind, lesson.cover_colour),
        (heads.owner, patches, lesson.owner_kind, lesson.owner_colour),
    ]
    if ENCODER_OF[name] == "blip":
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
        if ENCODER_OF[name] == "blip":
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


def lesson_loss(
    name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, lesson: tuple[Lesson, Lesson | None]
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a lesson about scenes and, if there is one, of a lesson about photos.

    They are apart because a photo is asked only one question, for its class. A step then has room for many photos.
    """
    about_scenes, about_photos = lesson
    loss, shown = language_loss(name, model, tokenizer, about_scenes)
    if about_photos is not None:
        photo_loss, photo = language_loss(name, model, tokenizer, about_photos)
        loss, shown = loss + PHOTO_WEIGHT * photo_loss, {**shown, "photo": photo["right"]}
    return loss, shown


def language_loss(
    name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, lesson: Lesson
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers on a frozen vision encoder, and how near image embeddings are to their words."""
    before, after, space = LAYOUTS[name]
    early = torch.zeros(())
    asked = [[_ids(tokenizer, after.format(question=q)) for q, _ in questions] for questions in lesson.questions]
    answered = [[_ids(tokenizer, space + a) for _, a in questions] for questions in lesson.questions]
    end = tokenizer.eos_token_id
    if name in ("blip2-t5", "instructblip"):
        flat = [ids for row in asked for ids in row]
        replies = [[*ids, end] for row in answered for ids in row]
        n_questions = len(asked[0])
        with torch.no_grad():
            features = _read(name, model, lesson.pixels)
        if name == "blip2-t5":
            image = project(name, model, features).repeat_interleave(n_questions, 0)
            logits, wanted, early = _translate(model, tokenizer, image, [[*ids, end] for ids in flat], replies)
        else:
            read = pad([[tokenizer.bos_token_id, *ids] for ids in flat], tokenizer.pad_token_id)
            features = ask_queries(name, model, features.repeat_interleave(n_questions, 0), read)
            image = project(name, model, features)
            rows = [[[tokenizer.bos_token_id, *ids]] for ids in flat]
            logits, wanted = _continue(name, model, tokenizer, image, [], rows, [[r] for r in replies])
        lesson = _repeat(lesson, n_questions)
    else:
        with torch.no_grad():
            _, features = see(name, model, lesson.pixels)
        image = project(name, model, features)
        prefix = [] if name == "blip2" else _ids(tokenizer, before)
        if name == "llava":
            prefix = [tokenizer.bos_token_id, *prefix]
        if name == "blip2":  # its processor puts the image tokens before the begin token
            asked = [[[tokenizer.bos_token_id, *ids] for ids in row] for row in asked]
        replies = [[[*ids, end] for ids in row] for row in answered]
        logits, wanted = _continue(name, model, tokenizer, image, prefix, asked, replies)
    aligned = ALIGN_WEIGHT * alignment_loss(name, model, tokenizer, lesson, image)
    loss = F.cross_entropy(logits, wanted)
    right = (logits.argmax(-1) == wanted)[wanted != end].float()
    return loss + early + aligned, {"answer": loss.item(), "right": right.mean().item(), "align": aligned.item()}


def _read(name: str, model: nn.Module, pixels: Tensor) -> Tensor:
    """The features before a question is read: states of BLIP-2's queries, of InstructBLIP's vision encoder."""
    if name == "instructblip":
        return model.vision_model(pixels).last_hidden_state  # type: ignore[no-any-return, operator]
    return see(name, model, pixels)[1]


def _repeat(lesson: Lesson, n: int) -> Lesson:
    fields = ("owner", "cover", "cell", "token")
    return replace(
        lesson,
        photo=lesson.photo.repeat_interleave(n, 0),
        **{f"{f}_{w}": getattr(lesson, f"{f}_{w}").repeat_interleave(n, 0) for f in fields for w in ("kind", "colour")},
    )


def _translate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    image: Tensor,
    asked: list[list[int]],
    replies: list[list[int]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a seq2seq model, the right tokens, and a loss of the encoder alone.

    That loss asks the encoder's state at </s> for the answer's first token. An encoder that learns only through the
    decoder's attention takes several times as long to look anything up.
    """
    t5, fill = model.language_model, tokenizer.pad_token_id
    ids, wanted = pad(asked, fill), pad(replies, IGNORE)
    inputs = torch.cat([image, t5.get_input_embeddings()(ids)], 1)
    mask = F.pad((ids != fill).long(), [image.shape[1], 0], value=1)
    shifted = F.pad(wanted.masked_fill(wanted == IGNORE, fill)[:, :-1], [1, 0], value=fill)
    states = t5.encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    last = torch.tensor([image.shape[1] + len(row) - 1 for row in asked])
    early = F.cross_entropy(t5.lm_head(states[torch.arange(len(states)), last]), wanted[:, 0])
    logits = t5(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=shifted, use_cache=False).logits
    chosen = wanted != IGNORE
    return logits[chosen], wanted[chosen], early


def _continue(
    name: str,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    image: Tensor,
    prefix: list[int],
    asked: list[list[list[int]]],
    replies: list[list[list[int]]],
) -> tuple[Tensor, Tensor]:
    """Logits of a decoder, and the right tokens.

    All questions about a picture share one sequence, but each sees only the picture and itself, at the positions that
    it would have alone.
    """
    n, n_image, _ = image.shape
    n_questions = len(asked[0])
    rows, targets = [], []
    for question, reply in ((q, r) for qs, rs in zip(asked, replies, strict=True) for q, r in zip(qs, rs, strict=True)):
        rows.append(question + reply)
        targets.append([IGNORE] * (len(question) - 1) + reply + [IGNORE])
    ids, wanted = pad(rows, tokenizer.pad_token_id), pad(targets, IGNORE)
    length = ids.shape[1]
    embed = model.get_input_embeddings()
    parts = [image, embed(ids).view(n, n_questions * length, -1)]
    if prefix:
        parts.insert(0, embed(torch.tensor(prefix)).expand(n, -1, -1))
    embeddings = torch.cat(parts, 1)
    n_prefix = len(prefix) + n_image
    segment = torch.cat([torch.full((n_prefix,), -1), torch.arange(n_questions).repeat_interleave(length)])
    columns = torch.arange(length).repeat(n_questions)
    order = torch.cat([torch.arange(n_prefix), n_prefix + columns])
    visible = (order[:, None] >= order[None, :]) & ((segment[None, :] == -1) | (segment[:, None] == segment[None, :]))
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
    place = positions(name, len(prefix), n_image, columns)
    hidden = text_model(name, model)(
        inputs_embeds=embeddings,
        attention_mask=mask.expand(n, -1, -1, -1),
        position_ids=place.expand(n, -1) if place.ndim == 1 else place[:, None].expand(-1, n, -1),
        use_cache=False,
    ).last_hidden_state
    hidden = hidden[:, n_prefix:].reshape(-1, hidden.shape[-1])
    chosen = wanted.view(-1) != IGNORE
    return model.get_output_embeddings()(hidden[chosen]), wanted.view(-1)[chosen]


def alignment_loss(
    name: str, model: nn.Module, tokenizer: PreTrainedTokenizerFast, lesson: Lesson, image: Tensor
) -> Tensor:
    """A loss that brings image embeddings near word embeddings.

    A shape's image embedding should be near the words of its kind and colour. A photo's subject is spread over the
    picture, so the mean of its image embeddings should be near the word of its class. A word in a question then finds
    its object by likeness. The caption stage of LLaVA and BLIP-2 does the same for large models.
    """
    scene = lesson.photo < 0
    words = model.get_input_embeddings().weight
    where = "cell" if ENCODER_OF[name] == "blip" else "owner" if name == "llava" else "token"
    pairs = ((f"{where}_kind", scenes.KINDS), (f"{where}_colour", tuple(scenes.COLOURS)))
    loss = image.new_zeros(())
    if not scene.all():
        ids = [_ids(tokenizer, f" {label}")[0] for label in PHOTO_LABELS]
        likeness = 10 * F.normalize(image[~scene].mean(1), dim=-1) @ F.normalize(words[ids], dim=-1).T
        loss = loss + F.cross_entropy(likeness, lesson.photo[~scene])
    for field, names in pairs if scene.any() else ():
        (ids,) = zip(*(_ids(tokenizer, f" {word}") for word in names), strict=True)
        likeness = 10 * F.normalize(image[scene], dim=-1) @ F.normalize(words[list(ids)], dim=-1).T
        logits = F.pad(likeness, [0, 1], value=2.0)  # the last class: no shape here
        target = getattr(lesson, field)[scene]
        shape = target >= 0
        weight = torch.where(shape, 1.0, 0.15)
        each = F.cross_entropy(logits.transpose(1, 2), torch.where(shape, target, len(names)), reduction="none")
        loss = loss + (each * weight).sum() / weight.sum()
    return loss


def pad(rows: list[list[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids if text else []
