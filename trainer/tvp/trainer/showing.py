"""Pictures for a person: what a lens has learned, and what it does to pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .contact_sheet import Block, Picture, draw_sheet
from .data import Data
from .files import write_whole
from .lens import Lens
from .prompt import Prompt

LENS, PICTURES = "lens.png", "pictures.png"
N_SHOWN, SIDE = 6, 128  # pictures, and px of one
CHANNELS = (("red", "#b3261e"), ("green", "#0a7a3d"), ("blue", "#2f6fde"))


def behind(prompt: Prompt, pictures: Sequence[Picture]) -> list[Picture]:
    """Return what models are shown of pictures, uint8 (canvas, canvas, 3) each."""
    with torch.no_grad():
        shown = prompt.on(prompt.geometry.show(pictures)).clamp(0, 1)
    levels = (shown * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (n, 3, h, w) -> (n, h, w, 3)
    return list(levels)


def picture_sheet(prompt: Prompt, data: Data) -> Image.Image:
    """Draw pictures of the data as they are, behind the prompt, and clean where the data has that, side by side."""
    samples = [data[i] for i in np.linspace(0, len(data) - 1, min(len(data), N_SHOWN), dtype=int).tolist()]
    fitted = [[prompt.geometry.shrink(sample.picture) for sample in samples]]
    titles = ["as the camera takes it", "behind the prompt" if prompt.frame is not None else "behind the lens"]
    fitted.append(behind(prompt, [sample.picture for sample in samples]))
    if all(sample.clean is not None for sample in samples):
        titles.append("clean")
        fitted.append([prompt.geometry.shrink(sample.clean) for sample in samples if sample.clean is not None])
    rows = [("", pictures) for pictures in zip(*fitted, strict=True)]
    return draw_sheet([Block("", "", [(title, "") for title in titles], rows)], SIDE)


def lens_sheet(lens: Lens) -> bytes:
    """Draw a lens as a PNG: its kernels, the matrix that mixes its channels, and its tone curves."""
    from matplotlib.figure import Figure

    values = {name: value.detach().cpu() for name, value in lens.values.items()}
    kernels = [(name, value) for name, value in values.items() if value.ndim >= 3]
    figure = Figure(figsize=(3 * (len(kernels) + 2), 3), layout="constrained")
    axes = figure.subplots(1, len(kernels) + 2, squeeze=False)[0]
    for axis, (name, kernel) in zip(axes, kernels, strict=False):
        axis.imshow(_grid(kernel.numpy()), interpolation="nearest")
        axis.set_title("kernel of each channel" if name == "kernel" else f"convolution {name.rpartition('_')[2]}")
        axis.set_axis_off()
    matrix, bias = values["matrix"].numpy(), values["bias"].numpy()
    axis = axes[-2]
    axis.imshow(matrix, cmap="coolwarm", vmin=-np.abs(matrix).max(), vmax=np.abs(matrix).max())
    for row in range(3):
        for column in range(3):
            axis.text(column, row, f"{matrix[row, column]:.2f}", ha="center", va="center")
    axis.set_xticks(range(3), [name for name, _ in CHANNELS])
    axis.set_yticks(range(3), [f"{name} {bias[i]:+.2f}" for i, (name, _) in enumerate(CHANNELS)])
    axis.set_title("colour matrix and bias")
    axis = axes[-1]
    levels = np.linspace(0, 1, 101)
    for (name, colour), tone in zip(CHANNELS, values["tone"].tolist(), strict=True):
        axis.plot(levels, levels ** np.exp(tone), color=colour, label=f"{name}, power {np.exp(tone):.2f}")
    axis.plot(levels, levels, color="#5a6675", linewidth=0.6, linestyle=":")
    axis.legend(fontsize=7)
    axis.set_title("tone curves")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _grid(kernels: np.ndarray) -> np.ndarray:
    """Lay kernels out as tiles of a picture in [0, 1], with grey for zero; those of three inputs are in colour."""
    if kernels.ndim == 3:  # (channels, 5, 5)
        kernels = kernels[:, None]
    if kernels.shape[1] not in (1, 3):  # the last convolution: a row of tiles for each output
        kernels = kernels.reshape(-1, 1, *kernels.shape[2:])
    tiles = 0.5 + kernels / (2 * max(float(np.abs(kernels).max()), 1e-9))
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=1.0)
    columns = 3 if len(tiles) == 3 else int(np.ceil(len(tiles) ** 0.5))
    missing = -len(tiles) % columns
    tiles = np.pad(tiles, [(0, missing), (0, 0), (0, 0), (0, 0)], constant_values=1.0)
    rows = [np.concatenate(list(tiles[i : i + columns]), -1) for i in range(0, len(tiles), columns)]
    grid = np.concatenate(rows, -2).transpose(1, 2, 0)  # (1 or 3, h, w) -> (h, w, 1 or 3)
    return np.repeat(grid, 3 // grid.shape[2], axis=2)


def write_pictures(folder: Path, prompt: Prompt, data: Data) -> None:
    """Write pictures.png, and of a lens lens.png, into a run's folder."""
    sheet = io.BytesIO()
    picture_sheet(prompt, data).save(sheet, "PNG")
    write_whole(folder / PICTURES, sheet.getvalue())
    if prompt.lens is not None:
        write_whole(folder / LENS, lens_sheet(prompt.lens))
