"""The lessons that the zoo's models are taught from: scenes and photos, framed and lit.

A published model has seen light and dark pictures, pictures with borders, and pictures on white pages. The zoo's
models see such pictures too. A picture is shown at a random size inside a frame, which is black or a neutral surface.
One light, mildly dim and tinted, falls on picture and frame alike.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tvp.trainer import scenes

from .models import CANVAS, MERGE, PATCH
from .words import PHOTO_LABELS, PHOTO_QUESTIONS

N_HELD_OUT = 2000  # photos at the end of the training file, which are looked at while models learn
FULL_SHARE = 0.4  # share of the batches that show the picture over the whole canvas
SMALLEST = 44  # px, the smallest inner picture
NEUTRAL_SHARE = 0.6  # share of the frames that are a grey or white surface; the rest are black
DIMMEST, DEEPEST_TINT = 0.55, 0.7  # the strongest light: a factor for all channels, and for each channel
# The topics that take longest to learn are asked most often.
TURNS = (
    "number",
    "kind",
    "colour",
    "existence",
    "reasoning",
    "kind",
    "existence",
    "reasoning",
    "existence",
    "reasoning",
)
# Topics whose answer is found in the picture by one word. The others build on these, and are noise before them.
LOOK_UPS = ("number", "kind", "colour", "kind", "colour", "kind", "colour")
EASY_SHARE = 0.5  # share of the absent objects whose colour is absent too, which is learnt sooner
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))


@dataclass
class Lesson:
    """A batch of canvases with its labels; -1 stands for no shape and for no photo."""

    pixels: Tensor  # (n, 3, 64, 64), normalised
    owner_kind: Tensor  # (n, 64) index of the kind of the shape that a patch owns
    owner_colour: Tensor
    cover_kind: Tensor  # (n, 64) the same for the shape that a patch's middle lies on
    cover_colour: Tensor
    cell_kind: Tensor  # (n, 16) the same for the cells of the scene's grid
    cell_colour: Tensor
    token_kind: Tensor  # (n, 16) the same for the squares of 2 x 2 patches in which a shape has its middle
    token_colour: Tensor
    photo: Tensor  # (n,) class of a photo
    questions: list[list[tuple[str, str]]]
    captions: list[str]

    def to(self, device: torch.device) -> Lesson:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


def load_photos(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read a CIFAR-10 parquet file without its last N_HELD_OUT photos: uint8 (n, 32, 32, 3) and labels (n,)."""
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["image"].to_pylist()]
    n = len(pictures) - N_HELD_OUT
    return np.stack(pictures[:n]), np.asarray(table["label"].to_pylist()[:n], np.int64)


def lessons(
    seed: int,
    n_scenes: int,
    n_photos: int,
    photos: tuple[NDArray[np.uint8], NDArray[np.int64]] | None,
    n_questions: int = len(TURNS),
    turns: tuple[str, ...] = TURNS,
) -> Iterator[Lesson]:
    """Yield lessons without end; a photo and a scene in the same lesson share the frame's size only.

    Args:
        seed: of all that is random.
        n_scenes: scenes a lesson.
        n_photos: photos a lesson.
        photos: pictures and labels, or none.
        n_questions: about a scene. A photo is asked one question, or none where this is 0.
        turns: topics of the questions about scenes.
    """
    rng = np.random.default_rng(seed)
    while True:
        side = CANVAS if rng.random() < FULL_SHARE else int(rng.integers(SMALLEST, CANVAS // 2 + 31)) // 2 * 2
        drawn = []
        for _ in range(n_scenes):
            scene = scenes.make_scene(rng)
            topics = [turns[i] for i in rng.permutation(len(turns))[:n_questions]]
            drawn.append((scenes.draw(scene, CANVAS), scene, [_ask(scene, rng, topic) for topic in topics]))
        pictures = torch.from_numpy(np.array([d[0] for d in drawn], np.uint8).reshape(-1, CANVAS, CANVAS, 3))
        pictures = pictures.permute(0, 3, 1, 2).float()  # (n, h, w, 3) -> (n, 3, h, w)
        targets = [_targets(d[1], side) for d in drawn]
        questions = [[(q.text, q.answer) for q in d[2]] for d in drawn]
        captions = [d[1].caption for d in drawn]
        photo = np.full(n_scenes, -1)
        if photos is not None and n_photos:
            rows = rng.integers(0, len(photos[0]), n_photos)
            pictures = torch.cat([pictures, _augment(photos[0][rows], rng)])
            photo = np.concatenate([photo, photos[1][rows]])
            targets += [_targets(None, side)] * n_photos
            for label in photos[1][rows]:
                name = PHOTO_LABELS[label]
                asked = PHOTO_QUESTIONS[rng.integers(len(PHOTO_QUESTIONS))]
                questions.append([(asked, name)] * min(1, n_questions))
                captions.append(f"a {name}")
        known = (torch.from_numpy(np.stack(t)) for t in zip(*targets, strict=True))
        yield Lesson(show(pictures / 255, side, rng), *known, torch.from_numpy(photo), questions, captions)


def _ask(scene: scenes.Scene, rng: np.random.Generator, topic: str) -> scenes.SceneQuestion:
    question = scenes.ask(scene, rng, topic)
    if topic == "existence" and question.answer == "no" and rng.random() < EASY_SHARE:
        colours, kinds = ({getattr(shape, what) for shape in scene.shapes} for what in ("colour", "kind"))
        colour = [name for name in scenes.COLOURS if name not in colours]
        kind = [name for name in scenes.KINDS if name not in kinds or rng.random() < 0.5] or list(scenes.KINDS)
        name = f"{colour[rng.integers(len(colour))]} {kind[rng.integers(len(kind))]}"
        return scenes.SceneQuestion(f"Is there a {name}?", "no", topic, scenes.YES_NO)
    return question


def show(pictures: Tensor, side: int, rng: np.random.Generator | None) -> Tensor:
    """Put pictures (n, 3, h, w) in [0, 1] on canvases, under a light; without rng the frame is black, without light."""
    n = len(pictures)
    if pictures.shape[-1] != side:
        pictures = F.interpolate(pictures, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    edge = (CANVAS - side) // 2
    canvas = F.pad(pictures, [edge] * 4)
    if rng is not None:
        if edge:
            level = torch.from_numpy(rng.uniform(0.5, 1, (n, 1, 1, 1)) * (rng.random((n, 1, 1, 1)) < NEUTRAL_SHARE))
            frame = F.pad(torch.zeros(1, 1, side, side), [edge] * 4, value=1.0)
            canvas = canvas + frame * level.float()
        light = rng.uniform(DIMMEST, 1, (n, 1)) * rng.uniform(DEEPEST_TINT, 1, (n, 3))
        canvas = canvas * torch.from_numpy(light).float()[:, :, None, None]
        noise = rng.uniform(0, 0.02, (n, 1, 1, 1)).astype(np.float32)
        canvas = canvas + torch.from_numpy(rng.standard_normal(canvas.shape, np.float32) * noise)
        canvas = (canvas * 255).round().clamp(0, 255) / 255
    return (canvas - MEAN) / STD


def _augment(photos: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Crop and flip 32-px photos at random, and enlarge them to the canvas: float (n, 3, 64, 64) in 0..255."""
    padded = np.pad(photos, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    out = np.empty_like(photos)
    for i, picture in enumerate(padded):
        y, x = rng.integers(0, 9, 2)
        crop = picture[y : y + 32, x : x + 32]
        out[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    pictures = torch.from_numpy(out).permute(0, 3, 1, 2).float()
    return F.interpolate(pictures, (CANVAS, CANVAS), mode="bicubic").clamp(0, 255)


def _targets(scene: scenes.Scene | None, side: int) -> tuple[NDArray[np.int64], ...]:
    """Labels of kind and colour: by patch (as owner, as cover), by cell of the scene's grid, and by merged patches.

    One patch owns a shape, the upper left of the four that its middle touches, so that counting shapes is counting
    patches.
    """
    n_side = CANVAS // PATCH
    owner, cover = np.full((2, n_side, n_side), -1), np.full((2, n_side, n_side), -1)
    cell = np.full((2, scenes.GRID, scenes.GRID), -1)
    token = np.full((2, n_side // MERGE, n_side // MERGE), -1)
    colours = list(scenes.COLOURS)
    middles = (np.arange(n_side) + 0.5) * PATCH
    for shape in scene.shapes if scene else ():
        what = [scenes.KINDS.index(shape.kind), colours.index(shape.colour)]
        x, y = (CANVAS - side) / 2 + side * np.array([shape.x, shape.y])
        owner[:, int((y - PATCH / 2) // PATCH), int((x - PATCH / 2) // PATCH)] = what
        reach = (shape.side * side + 3) / 2
        over = (np.abs(middles - y) < reach)[:, None] & (np.abs(middles - x) < reach)[None, :]
        cover[:, over] = np.array(what)[:, None]
        cell[:, int(shape.y * scenes.GRID), int(shape.x * scenes.GRID)] = what
        token[:, int(y // (MERGE * PATCH)), int(x // (MERGE * PATCH))] = what
    return tuple(t.reshape(-1) for pair in (owner, cover, cell, token) for t in pair)
