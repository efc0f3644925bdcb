"""The figures of a run are painted, of every lens and of every kind of curve; no warning comes of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.lenses import DESIGNS, name_of, random_lens
from tvp.trainer.logs import draw_curves
from tvp.trainer.showing import lens_sheet

pytestmark = pytest.mark.usefixtures("painted")


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("design", DESIGNS, ids=name_of)
def test_a_lens_is_painted_with_each_of_its_parts(design):
    n_kernels = {"colour": 0, "kernel": 1, "conv": design.depth + 1}[design.kind]
    sheet = pixels(io.BytesIO(lens_sheet(random_lens(design))))
    assert sheet.shape == (330, 330 * (n_kernels + 2), 3)
    assert all(part.std() > 10 for part in np.split(sheet, n_kernels + 2, axis=1))


@pytest.mark.parametrize("measured", ["accuracy", "distance", ""])
@pytest.mark.parametrize("losses", [(), ("fca",), ("answer", "fca", "tse")])
def test_curves_are_painted_with_each_part_of_the_loss(losses, measured, tmp_path):
    values = [1.0, float("nan"), 0.5, float("inf"), 0.4]  # a run that goes astray is looked at too
    steps = [
        {"step": i, "seconds": 1.0, "rate": 0.1, **dict.fromkeys(losses, value)} for i, value in enumerate(values, 1)
    ]
    validations = [{"step": i, measured: value} for i, value in enumerate(values, 1) if measured]
    draw_curves(tmp_path / "curves.png", steps if losses else [], validations)
    curves = pixels(tmp_path / "curves.png")
    assert curves.shape == (300, 400 * (len(losses) + 1), 3)
    assert all(part.std() > 10 for part in np.split(curves, len(losses) + 1, axis=1))
