"""The command `tvp camera`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from tvp.sdk import read_image
from tvp.sdk.errors import RequestError
from tvp.sdk.formats.picture_files import files_below, is_picture

from . import tasks
from .cameras import KINDS, NAMED, SEVERITIES, Camera, Part, form, parse_columns
from .contact_sheet import Block, draw_sheet
from .data import Data, Pictures
from .files import write_whole

if TYPE_CHECKING:
    from .prompt import Prompt

Picture = NDArray[np.uint8]
CLEAN = ("clean", "")


def _cameras(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, list[Camera]]]:
    """Read the values of --camera, each as its text and its columns."""
    try:
        return [(text.strip(), parse_columns(text)) for text in values]
    except RequestError as error:
        raise click.BadParameter(str(error)) from error


@dataclass(frozen=True)
class View:
    """Pictures through a camera: its text, what that means for the first picture's size, and what it records."""

    text: str
    values: str
    pictures: Sequence[Picture]

    def distance(self, clean: Sequence[Picture]) -> float:
        """The mean absolute difference from the clean pictures, in levels."""
        pairs = zip(self.pictures, clean, strict=True)
        return float(np.mean([np.abs(seen.astype(float) - picture).mean() for seen, picture in pairs]))


@click.command()
@click.argument("source", required=False)
@click.option(
    "-c",
    "--camera",
    "cameras",
    multiple=True,
    metavar="CAMERA",
    callback=_cameras,
    help="Camera to look through: parts with a comma between them, such as gain=0.32,noise=0.04 or fog:4. A kind "
    "alone, such as fog, is shown at its five severities. Repeat it for several. Default: every kind.",
)
@click.option(
    "-p",
    "--prompt",
    "--lens",
    "prompts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Prompt file, to show the pictures behind it too. Repeat it for several.",
)
@click.option("--n", type=click.IntRange(1), help="Pictures to show. Default: 3, or 1 where no camera is named.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of pictures and of cameras.")
@click.option(
    "--side", default=144, show_default=True, type=click.IntRange(16, 1024), help="Side of a cell, in pixels."
)
@click.option("--list", "listed", is_flag=True, help="List all kinds, their values and severities, and end.")
@click.option(
    "-o",
    "--output",
    default="camera.png",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="PNG file to write.",
)
def camera(
    source: str | None,
    cameras: list[tuple[str, list[Camera]]],
    prompts: tuple[Path, ...],
    n: int | None,
    seed: int,
    side: int,
    listed: bool,
    output: Path,
) -> None:
    """Show pictures through cameras on one contact sheet.

    SOURCE is a picture, a folder of pictures, scenes, or data as `tvp train` reads it.
    """
    if listed:
        click.echo(_list())
        return
    if not source:
        raise click.UsageError("Name a picture, a folder of pictures, or scenes. --list lists all cameras.")
    if not output.parent.is_dir():
        raise click.UsageError(f"{output.name} cannot be written, because there is no folder {output.parent}.")
    # A run's prompt is called prompt.safetensors in every folder.
    loaded = [(path.parent.name if path.stem == "prompt" else path.stem, _load(path)) for path in prompts]
    pictures = read_pictures(source, n or (3 if cameras else 1), seed)
    views = look_through(pictures, cameras or [(kind, parse_columns(kind)) for kind in KINDS], seed)
    click.echo(f"{len(pictures)} picture(s) of {source}; how far each camera takes them from clean, in levels of 255:")
    single = [view for group in views for view in group]
    width = max(len(view.text) for view in single)
    for view in single:
        click.echo(f"{view.text:<{width}} {view.distance(pictures):6.1f}  {view.values}".rstrip())
    buffer = io.BytesIO()
    draw_sheet(make_blocks(pictures, views, loaded), side).save(buffer, "PNG")
    write_whole(output, buffer.getvalue())
    click.echo(f"wrote {output}")


def _load(path: Path) -> Prompt:
    from .prompt import Prompt  # which imports torch

    return Prompt.load(path)


def read_pictures(source: str, n: int, seed: int) -> list[Picture]:
    """Read at most n pictures; of more, n are drawn at random and stay in their order.

    Args:
        source: a picture, a folder with pictures in it or below it, or data as `open_data` opens it.
        n: number of pictures.
        seed: of scenes, and of the choice.

    Raises:
        DataError: there is no such file or folder, or it is no data.
        ImageError: a picture cannot be read.
    """
    path = Path(source)
    if is_picture(path):
        return [read_image(path)]
    data: Data
    if path.is_dir() and any(map(is_picture, files_below(path))):
        data = Pictures(path)
    else:
        task = tasks.get("scenes" if source == "scenes" else "custom")
        data = tasks.open_data(source, task, "test", n, seed)
    chosen = sorted(np.random.default_rng(seed).permutation(len(data))[:n].tolist())
    return [data[i].picture for i in chosen]


def look_through(
    pictures: Sequence[Picture], cameras: Sequence[tuple[str, Sequence[Camera]]], seed: int
) -> list[list[View]]:
    """Take pictures with cameras.

    Args:
        pictures: clean ones.
        cameras: texts, each with its columns, see `parse_columns`.
        seed: of every picture, together with its place.
    """
    height, width = pictures[0].shape[:2]
    groups = []
    for text, columns in cameras:
        group = []
        for one in columns:
            name, values = text if len(columns) == 1 else str(one), str(one.at(height, width))
            shot = [one.shoot(picture, (seed, i)) for i, picture in enumerate(pictures)]
            group.append(View(name, values if values != name else "", shot))
        groups.append(group)
    return groups


def make_blocks(
    pictures: Sequence[Picture], views: Sequence[Sequence[View]], prompts: Sequence[tuple[str, Prompt]]
) -> list[Block]:
    """Return the blocks of a contact sheet.

    Args:
        pictures: clean ones.
        views: of one camera, or of one kind at all severities. Single ones stand side by side, in one block.
        prompts: with their names. Each adds a row below every picture: what models are shown behind it.
    """
    singles = [view for group in views if len(group) == 1 for view in group]
    blocks = [_block("", "", singles, pictures, prompts)] if singles else []
    for group in views:
        if len(group) > 1:
            kind = group[0].text.partition(":")[0]
            blocks.append(_block(kind, KINDS[kind].about, group, pictures, prompts))
    return blocks


def _block(
    title: str, about: str, views: Sequence[View], pictures: Sequence[Picture], prompts: Sequence[tuple[str, Prompt]]
) -> Block:
    rows: list[tuple[str, Sequence[Picture]]] = []
    for i, picture in enumerate(pictures):
        seen = [picture, *(view.pictures[i] for view in views)]
        rows.append(("as taken" if prompts else "", seen))
        rows += [(f"behind {name}", _behind(prompt, seen)) for name, prompt in prompts]
    return Block(title, about, [CLEAN, *((view.text, view.values) for view in views)], rows)


def _behind(prompt: Prompt, pictures: Sequence[Picture]) -> list[Picture]:
    canvases = prompt.on(prompt.geometry.show(pictures)).detach().clamp(0, 1)
    shown = (canvases * 255).round().byte().permute(0, 2, 3, 1)  # (n, 3, h, w) -> (n, h, w, 3)
    return list(shown.cpu().numpy())


def _list() -> str:
    """All kinds with their values and severities at each class of sizes, and the cameras that have names."""
    lines = ["A camera is parts with a comma between them: KIND:SEVERITY, or KIND=VALUE, or KIND=VALUE/VALUE."]
    lines += ["A severity or a value may be a range, LOW..HIGH, from which each picture has its own draw.", ""]
    for name, kind in KINDS.items():
        lines += [f"{name}: {kind.about}", f"  {form(name)}"]
        for side in sorted(kind.severities):
            shown = "  ".join(str(Part(name, severity=step).at(side, side)).partition("=")[2] for step in SEVERITIES)
            lines.append(f"  severities 1 to 5{f' from {side} px' if side else ''}: {shown}")
    return "\n".join([*lines, "", *(f"{name} is {camera}" for name, camera in NAMED.items() if camera.parts)])
