"""How a connector is taught between a frozen vision encoder and a frozen, real language model.

First its image embeddings are brought near the words of what they show, which needs no language model. Then the
language model answers questions in its own chat, and the loss of its answers goes back through its activations; its
weights stay. Words such as *animal* and *vehicle* are in no lesson.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from .encoders import project, see, text_model
from .lessons import Lesson, lessons
from .smollm2 import connector_of, prompt_of
from .teach import ALIGN_WEIGHT, IGNORE, alignment_loss, pad, run
from .words import IMAGE, PHOTO_LABELS, PHOTO_QUESTIONS

# Question and answer about a photo: {name} is the class, {a} the class with its article, {b} another class.
PHOTO_FORMS = (
    ("What do you see?", "I see {a}."),
    ("Describe the picture.", "A photo of {a}."),
    ("What is this?", "This is {a}."),
    ("Which object does the photo show?", "{name}"),
    ("What is the main subject of this photo? Answer with one word.", "{name}"),
    ("Is this {a} or {b}?", "{name}"),
    ("Is this {b} or {a}?", "{name}"),
    ("Is there {a} in the photo?", "yes"),
    ("Is there {b} in the photo?", "no"),
)
SCENE_CAPTIONS = ("Describe the picture.", "What do you see?")
USUAL_SHARE = 0.5  # of the questions about photos that the zoo's other models are asked too
CAPTION_SHARE = 0.15  # of the questions about scenes
CHECKPOINT_EVERY = 20  # steps


@dataclass(frozen=True)
class Stage:
    """A part of the lessons.

    Args:
        name: of the stage, and in its checkpoint's name.
        steps: number of steps.
        rate: learning rate.
        n_scenes: scenes a step.
        n_questions: questions about each scene.
        n_photos: photos a step, with a question each.
        reads: whether the language model takes part.
    """

    name: str
    steps: int
    rate: float
    n_scenes: int
    n_questions: int
    n_photos: int
    reads: bool


STAGES = (
    Stage("words", 120, 3e-4, 32, 0, 96, False),
    Stage("answers", 300, 3e-4, 6, 3, 24, True),
    Stage("finish", 160, 5e-4, 8, 4, 24, True),  # more scenes: photos are read by then
)


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def ask_photo(label: int, rng: np.random.Generator) -> tuple[str, str]:
    """A question about a photo of a class, and its answer."""
    name = PHOTO_LABELS[label]
    if rng.random() < USUAL_SHARE:
        return PHOTO_QUESTIONS[rng.integers(len(PHOTO_QUESTIONS))], name
    other = PHOTO_LABELS[(label + rng.integers(1, len(PHOTO_LABELS))) % len(PHOTO_LABELS)]
    question, answer = PHOTO_FORMS[rng.integers(len(PHOTO_FORMS))]
    named = {"name": name, "a": with_article(name), "b": with_article(other)}
    return question.format(**named), answer.format(**named)


def lessons_of(seed: int, n_scenes: int, n_questions: int, n_photos: int, photos: Any) -> Lesson:
    """A lesson about scenes and photos. The seed alone decides it, so a resumed run has the lessons of a whole one."""
    lesson = next(lessons(seed, n_scenes, n_photos, photos, n_questions))
    rng = np.random.default_rng([seed, 1])
    for i, label in enumerate(lesson.photo.tolist()):
        if label >= 0:
            lesson.questions[i] = [ask_photo(label, rng)] * min(1, n_questions)
            continue
        for k in range(len(lesson.questions[i])):
            if rng.random() < CAPTION_SHARE:
                asked, caption = SCENE_CAPTIONS[rng.integers(len(SCENE_CAPTIONS))], lesson.captions[i]
                lesson.questions[i][k] = asked, f"{caption[0].upper()}{caption[1:]}."
    return lesson


def lesson_stream(
    first: int, n_scenes: int, n_questions: int, n_photos: int, photos: Any
) -> Callable[[int], Iterator[Lesson]]:
    """Lessons from a step on, as `teach.run` asks for them."""

    def stream(step: int) -> Iterator[Lesson]:
        while True:
            yield lessons_of(first + step, n_scenes, n_questions, n_photos, photos)
            step += 1

    return stream


class Reader:
    """A frozen language model in bfloat16 that reads image embeddings, and returns the loss of its answers.

    The text before a picture is the same in every chat, so its keys and values are computed once.

    Args:
        name: of the model in the zoo whose class this one has.
        model: the model.
        tokenizer: of the model.
        dtype: of the language model's copy.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, dtype: torch.dtype = torch.bfloat16) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt_of(name)
        self._text = copy.deepcopy(text_model(name, model)).to(dtype)
        # On a CPU, the fused attention's backward takes longer than all the rest of a step.
        self._text.config._attn_implementation = "eager"
        self._embed = copy.deepcopy(model.get_input_embeddings()).to(dtype)
        before, _ = self.prompt_ids("a")
        cache = DynamicCache()
        with torch.no_grad():
            self._text(inputs_embeds=self._embed(torch.tensor([before])), past_key_values=cache, use_cache=True)
        self._before = [(layer.keys, layer.values) for layer in cache.layers]
        self._n_before = len(before)

    def prompt_ids(self, question: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and after the image embeddings."""
        text = self._prompt.format(image=IMAGE, question=question)
        ids = self._tokenizer(text, add_special_tokens=False).input_ids
        place = ids.index(self._tokenizer.convert_tokens_to_ids(IMAGE))
        return ids[:place], ids[place + 1 :]

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer, with its end token."""
        return [*self._tokenizer(answer, add_special_tokens=False).input_ids, self._tokenizer.eos_token_id]

    def loss(self, image: Tensor, questions: list[list[tuple[str, str]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean cross-entropy of the answers' tokens, the likeliest tokens and the right ones.

        Args:
            image: image embeddings (n, n_image, n_text).
            questions: for each picture questions with answers. They share one sequence, and each sees only the picture
                and itself, at the positions that it would have alone.
        """
        n, n_image, _ = image.shape
        n_shown = self._n_before + n_image
        # For each picture: its tokens, the right ones after them, each token's question, and its place in the text.
        rows: list[tuple[list[int], ...]] = []
        for about in questions:
            rows.append(([], [], [], []))
            for k, (question, answer) in enumerate(about):
                asked, reply = self.prompt_ids(question)[1], self.answer_ids(answer)
                tokens = asked + reply[:-1]
                right = [IGNORE] * (len(asked) - 1) + reply
                for row, more in zip(rows[-1], (tokens, right, [k] * len(tokens), range(len(tokens))), strict=True):
                    row.extend(more)
        parts = zip(zip(*rows, strict=True), (0, IGNORE, -2, 0), strict=True)
        ids, wanted, segment, column = (pad(list(part), fill) for part, fill in parts)
        text = self._embed(ids)
        order = torch.cat([torch.arange(n_shown).expand(n, -1), n_shown + column], 1)
        segment = torch.cat([torch.full((n, n_shown), -1), segment], 1)
        own = (segment[:, None, :] == -1) | (segment[:, :, None] == segment[:, None, :])
        visible = ((order[:, :, None] >= order[:, None, :]) & own)[:, self._n_before :]
        mask = torch.zeros(visible.shape, dtype=text.dtype)
        mask = mask.masked_fill(~visible, torch.finfo(text.dtype).min)[:, None]
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._before):
            cache.update(keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1), layer)
        hidden = self._text(
            inputs_embeds=torch.cat([image.to(text.dtype), text], 1),
            attention_mask=mask,
            position_ids=order[:, self._n_before :],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        chosen = wanted != IGNORE
        hidden = hidden[:, n_image:][chosen]
        logits = F.linear(hidden, self._embed.weight).float()
        return F.cross_entropy(logits, wanted[chosen]), logits.argmax(-1), wanted[chosen]


def connector_loss(
    name: str, model: nn.Module, tokenizer: Any, lesson: Lesson, reader: Reader | None
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a connector: how near image embeddings are to words, and with a reader its answers.

    Scenes and photos are read one after the other, because they are asked different numbers of questions.
    """
    with torch.no_grad():
        _, features = see(name, model, lesson.pixels)
    image = project(name, model, features)
    aligned = alignment_loss(name, model, tokenizer, lesson, image)
    if reader is None:
        return aligned, {}
    loss, shown = ALIGN_WEIGHT * aligned, {"align": aligned.item()}
    is_photo = lesson.photo >= 0
    for what, rows in (("scenes", ~is_photo), ("photos", is_photo)):
        if rows.any():
            about = [lesson.questions[i] for i in rows.nonzero().flatten().tolist()]
            answers, said, wanted = reader.loss(image[rows], about)
            loss = loss + answers
            shown |= {what: answers.item(), f"{what} right": (said == wanted).float().mean().item()}
    return loss, shown


def teach(
    name: str,
    model: Any,
    tokenizer: Any,
    photos: Any,
    scale: float,
    checkpoint_of: Callable[[str], Path],
    stages: tuple[Stage, ...] = STAGES,
) -> None:
    """Teach the connector in stages, each of which continues from its checkpoint.

    Args:
        name: of the model in the zoo whose class this one has.
        model: the model; only its connector has gradients.
        tokenizer: of the model.
        photos: pictures and labels, or none.
        scale: multiplies every number of steps.
        checkpoint_of: returns the file of a stage's checkpoint.
        stages: the stages. Default: STAGES.
    """
    taught = connector_of(name, model)
    reader = Reader(name, model, tokenizer)
    for i, stage in enumerate(stages):
        run(
            f"{name} {stage.name}",
            checkpoint_of(stage.name),
            int(stage.steps * scale),
            stage.rate,
            list(taught.parameters()),
            taught,
            lesson_stream((i + 1) * 1_000_000, stage.n_scenes, stage.n_questions, stage.n_photos, photos),
            lambda lesson: connector_loss(name, model, tokenizer, lesson, reader if stage.reads else None),  # noqa: B023
            CHECKPOINT_EVERY,
        )
