"""Draws the pictures of the documentation, of the scenes and models that `make demo` uses.

    python docs/images/make.py

bad-camera.png: one scene as it is, through the bad camera, and behind the lens, each with the model's answers.
scene.png: the picture that the bad camera takes of it. frame.png: a frame, with its values 10 times as large.
cameras.png: a scene through every part of a camera, as `tvp camera` draws it.
That scene was chosen: the camera makes the model fail, and the lens corrects it. The README's table says how often.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tvp.trainer import families, tasks
from tvp.trainer.camera_cli import look_through, make_blocks
from tvp.trainer.cameras import KINDS, parse_columns
from tvp.trainer.contact_sheet import draw_sheet
from tvp.trainer.data import Sample, Scenes
from tvp.trainer.evaluate import accuracy
from tvp.trainer.prompt import Geometry, Prompt

HERE = Path(__file__).parent
MODEL = "zoo:blip2"
PROMPTS = HERE.parents[1] / "samples" / "zoo" / "prompts"
N_SCENES, SEED, CHOSEN = 512, 900, 467  # the demo's held-out scenes, and the one that is shown
QUESTIONS = ("How many objects are there?", "What shape is the red object?")
COLOURFUL = 79  # one with all kinds and four colours
FULL = Geometry(64, 64)
PANEL, MARGIN, LINE = 288, 24, 30  # px
INK, FAINT, RIGHT, WRONG = "#1c2430", "#5a6675", "#0a7a3d", "#b3261e"


class One:
    """One scene as a data set."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self._sample


def panels() -> list[tuple[str, NDArray[np.uint8], list[tuple[str, str, bool]]]]:
    """Title, picture (64, 64, 3) and (question, answer, right) of each panel."""
    model, prompt = families.load(MODEL), Prompt.load(PROMPTS / "lens.safetensors")
    clean = Scenes(N_SCENES, seed=SEED)[CHOSEN]
    bad = Scenes(N_SCENES, seed=SEED, camera=tasks.BAD_CAMERA)[CHOSEN]
    prompted = prompt.on(prompt.geometry.show([bad.picture]))[0].clamp(0, 1)
    shown = (prompted.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)  # (3, h, w) -> (h, w, 3)
    found = []
    for title, picture, sample, geometry, frame in (
        ("clean scene", clean.picture, clean, FULL, None),
        ("through the bad camera", bad.picture, bad, FULL, None),
        ("behind the lens", shown, bad, prompt.geometry, prompt),
    ):
        result = accuracy(model, One(sample), geometry, frame)
        asked = {question.text: i for i, question in enumerate(sample.questions)}
        said = [(text, result.answers[asked[text]], bool(result.right[asked[text]])) for text in QUESTIONS]
        found.append((title, picture, said))
    return found


def main() -> None:
    drawn = panels()
    size = (len(drawn) * (PANEL + MARGIN) + MARGIN, PANEL + 3 * MARGIN + LINE + 2 * LINE * len(QUESTIONS))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    title_font, font, small = (ImageFont.load_default(points) for points in (22, 22, 16))
    for column, (title, picture, said) in enumerate(drawn):
        left, top = MARGIN + column * (PANEL + MARGIN), MARGIN
        draw.text((left, top), title, INK, title_font)
        top += LINE + MARGIN // 2
        sheet.paste(Image.fromarray(picture).resize((PANEL, PANEL), Image.Resampling.NEAREST), (left, top))
        top += PANEL + MARGIN
        for question, answer, right in said:
            draw.text((left, top), question, FAINT, small)
            draw.text((left, top + LINE * 0.7), answer, RIGHT if right else WRONG, font)
            if not right:
                end = left + draw.textlength(answer, font)
                draw.text((end + 8, top + LINE * 0.7 + 5), "wrong", WRONG, small)
            top += 2 * LINE
    sheet.quantize(128).save(HERE / "bad-camera.png", optimize=True)
    Image.fromarray(Scenes(N_SCENES, seed=SEED, camera=tasks.BAD_CAMERA)[CHOSEN].picture).save(HERE / "scene.png")
    kinds = [(kind, parse_columns(kind)) for kind in KINDS]
    clean = [Scenes(N_SCENES, seed=SEED)[COLOURFUL].picture]
    sheet = draw_sheet(make_blocks(clean, look_through(clean, kinds, SEED), []), 128)
    sheet.save(HERE / "cameras.png", optimize=True)
    frame = (
        (0.5 + 10 * Prompt.load(PROMPTS / "bad-camera.safetensors").frame).clamp(0, 1).permute(1, 2, 0).numpy()
    )  # (3, h, w) -> (h, w, 3)
    stretched = Image.fromarray((frame * 255).round().astype(np.uint8))
    stretched.resize((PANEL, PANEL), Image.Resampling.NEAREST).save(HERE / "frame.png", optimize=True)


if __name__ == "__main__":
    main()
