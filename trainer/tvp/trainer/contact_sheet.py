"""Contact sheets: one picture of many pictures, in rows and columns with captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]

INK, FAINT, PAPER, EMPTY, EDGE = "#1c2430", "#5a6675", "#ffffff", "#eef1f4", "#d5dbe2"
MARGIN, GAP, LABELS = 24, 8, 132  # px; the last is the column of rows' names
TITLE, TEXT, SMALL = 17, 13, 11  # sizes of type, px
MOST_BLOCKS = 8  # in a column
LEADING = 1.25  # a line's height over the size of its type


@dataclass(frozen=True)
class Block:
    """Rows of pictures that have the same columns.

    Args:
        title, about: a heading, and what stands behind it in faint ink; '' for none.
        columns: for each a caption, and a second one in faint ink.
        rows: a name, '' for none, and a picture for each column, uint8 (height, width, 3).
    """

    title: str
    about: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Picture]]]


def draw_sheet(blocks: Sequence[Block], side: int) -> Image.Image:
    """Draw blocks below each other, many of them in two columns; every picture lies in a square cell, whole.

    Args:
        blocks: what to draw.
        side: of a cell, px.
    """
    if len(blocks) > MOST_BLOCKS:
        half = (len(blocks) + 1) // 2
        left, right = (draw_sheet(part, side) for part in (blocks[:half], blocks[half:]))
        both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), PAPER)
        both.paste(left, (0, 0))
        both.paste(right, (left.width, 0))
        return both
    fonts = {size: ImageFont.load_default(size) for size in (TITLE, TEXT, SMALL)}
    labels = LABELS if any(name for block in blocks for name, _ in block.rows) else 0
    heads = [_Head(block, side, fonts) for block in blocks]
    width = 2 * MARGIN + max(
        max(labels + len(block.columns) * (side + GAP) - GAP, head.width)
        for block, head in zip(blocks, heads, strict=True)
    )
    heights = [head.height + len(block.rows) * (side + GAP) - GAP for block, head in zip(blocks, heads, strict=True)]
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN * (len(blocks) + 1)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for block, head, height in zip(blocks, heads, heights, strict=True):
        head.draw(draw, MARGIN, MARGIN + labels, top)
        for i, (name, pictures) in enumerate(block.rows):
            y = top + head.height + i * (side + GAP)
            for k, line in enumerate(_wrap(name, labels - GAP, fonts[TEXT])[: int(side / (TEXT * LEADING))]):
                draw.text((MARGIN, y + k * TEXT * LEADING), line, FAINT, fonts[TEXT])
            for k, picture in enumerate(pictures):
                x = MARGIN + labels + k * (side + GAP)
                draw.rectangle((x - 1, y - 1, x + side, y + side), outline=EDGE)  # so that white shows on paper
                sheet.paste(_cell(picture, side), (x, y))
        top += height + MARGIN
    return sheet


class _Head:
    """What stands above a block's pictures: its title, and the captions of its columns."""

    def __init__(self, block: Block, side: int, fonts: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont]) -> None:
        self._block, self._side, self._fonts = block, side, fonts
        self._lines = [
            [(line, size, ink) for text, size, ink in ((caption, TEXT, INK), (more, SMALL, FAINT))
             for line in _wrap(text, side, fonts[size])]
            for caption, more in block.columns
        ]  # fmt: skip
        self._title = round(TITLE * LEADING) + 4 if block.title else 0
        tallest = max(sum(size * LEADING for _, size, _ in lines) for lines in self._lines)
        self.height = self._title + round(tallest) + 4
        self._after = round(fonts[TITLE].getlength(block.title)) + 10
        self.width = self._after + round(fonts[TEXT].getlength(block.about))

    def draw(self, draw: ImageDraw.ImageDraw, left: int, first: int, top: int) -> None:
        if self._block.title:
            draw.text((left, top), self._block.title, INK, self._fonts[TITLE])
            draw.text((left + self._after, top + TITLE - TEXT), self._block.about, FAINT, self._fonts[TEXT])
        for k, lines in enumerate(self._lines):
            x, y = first + k * (self._side + GAP), float(top + self._title)
            for line, size, ink in lines:
                draw.text((x, y), line, ink, self._fonts[size])
                y += size * LEADING


def _wrap(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a text into lines of at most this width, px; behind a space or a mark, where there is one."""
    lines: list[str] = []
    for letter in text:
        if lines and font.getlength(lines[-1] + letter) <= width:
            lines[-1] += letter
        elif not lines:
            lines.append(letter)
        else:
            cut = max(lines[-1].rfind(mark) for mark in " ,/-_") + 1
            line, rest = (lines[-1][:cut], lines[-1][cut:]) if cut else (lines[-1], "")
            lines[-1:] = [line, rest + letter]
    return [line.strip() for line in lines]


def _cell(picture: Picture, side: int) -> Image.Image:
    """Fit a whole picture into a square; small ones keep their pixels visible."""
    image = Image.fromarray(picture)
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (side, side), EMPTY)
    cell.paste(image.resize((width, height), how), ((side - width) // 2, (side - height) // 2))
    return cell
