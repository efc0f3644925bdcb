"""The preprocessing graph against Pillow and torch: what training showed is what the edge shows."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.lenses import DESIGNS, lens_prompt, random_lens
from tvp.export.preprocess import preprocess_graph
from tvp.trainer.families import PixelFormat
from tvp.trainer.families.pixels import to_pixels
from tvp.trainer.lens import LensDesign
from tvp.trainer.prompt import Geometry, Prompt

FORMATS = {64: PixelFormat(64, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)), 96: PixelFormat(96, (0.5,) * 3, (0.5,) * 3)}


def photo_like(height, width, seed=0):
    """Smooth with edges, as pictures are; white noise would test nothing but overshoot."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    picture = 128 + 90 * np.sin(x[..., None] / rng.uniform(5, 40, 3)) * np.cos(y[..., None] / rng.uniform(5, 40, 3))
    picture[height // 3 : height // 2 + 1, width // 4 : width // 2 + 1] = rng.integers(0, 256, 3)
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


def run(model, picture):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": picture})[0]


def make_prompt(geometry, pixel_range):
    prompt = Prompt.start(geometry, pixel_range)
    noise = torch.rand(prompt.frame.shape, generator=torch.Generator().manual_seed(3))
    prompt.frame = (noise if pixel_range == "image" else noise * 3 - 1) * geometry.mask()
    return prompt


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("pixel_range", ["free", "image", None])
@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("placement", ["around", "over"])
def test_equal_to_training_within_one_level(fit, pixel_range, size, placement):
    geometry = Geometry(64, 48, fit, placement)
    prompt = make_prompt(geometry, pixel_range) if pixel_range else None
    model = preprocess_graph(geometry, FORMATS[size], prompt)
    levels = np.reshape(FORMATS[size].std, (1, 3, 1, 1)) * 255
    within = []
    for height, width in ((48, 48), (480, 640), (61, 200), (300, 47), (31, 33), (1, 1), (2, 90), (1080, 1920)):
        picture = photo_like(height, width)
        canvas = geometry.show([picture])
        expected = to_pixels(prompt.on(canvas) if prompt else canvas, FORMATS[size]).detach().numpy()
        given = run(model, picture)
        assert given.shape == expected.shape == (1, 3, size, size)
        gap = np.abs(given - expected) * levels
        within.append(gap <= 1.001)  # float rounding around exactly one level
    assert np.concatenate([w.ravel() for w in within]).mean() >= 0.999


def test_a_task_holds_its_frame_and_no_whole_canvas():
    """A loaded task shares everything with others but this graph."""
    geometry = Geometry(64, 48, "crop", "around")
    graph = preprocess_graph(geometry, FORMATS[64], make_prompt(geometry, "free")).graph
    floats = sum(np.prod(c.dims) for c in graph.initializer if c.data_type == onnx.TensorProto.FLOAT)
    assert 3 * (64**2 - 48**2) <= floats < 3 * (64**2 - 48**2) + 10


def test_an_unresized_picture_is_exact():
    geometry = Geometry(64, 48)
    prompt = make_prompt(geometry, "image")
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    canvas = prompt.on(geometry.place(torch.from_numpy(picture)[None]))
    expected = to_pixels(canvas, FORMATS[64]).detach().numpy()
    assert np.abs(run(preprocess_graph(geometry, FORMATS[64], prompt), picture) - expected).max() < 1e-6


def test_without_a_frame_the_picture_fills_the_canvas():
    model = preprocess_graph(Geometry(64, 64), FORMATS[64], None)
    white = run(model, np.full((200, 100, 3), 255, np.uint8))
    expected = (1 - np.array(FORMATS[64].mean)) / np.array(FORMATS[64].std)
    assert np.allclose(white, expected.reshape(1, 3, 1, 1), atol=1e-6)


SIDES = [(design, 64, 64, "crop") for design in DESIGNS] + [
    (design, side, size, "pad")
    for design in (LensDesign("kernel", normalise=True), LensDesign("conv"))
    for side, size in ((64, 64), (63, 63), (50, 96), (164, 64))
]


@pytest.mark.parametrize(("design", "side", "size", "fit"), SIDES, ids=lambda x: getattr(x, "kind", None))
def test_a_lens_is_equal_to_training(design, side, size, fit):
    """Sides that squares of 2 and of 4 px fill, and sides that they do not."""
    prompt = lens_prompt(design, side, fit)
    pixel_format = PixelFormat(size, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    model = preprocess_graph(prompt.geometry, pixel_format, prompt)
    levels = np.reshape(pixel_format.std, (1, 3, 1, 1)) * 255
    within = []
    # A picture more than twice as tall as wide is left out: since version 13, Pillow filters such along the height
    # first, which is a level now and then, and a lens may make two of it.
    for height, width in ((side, side), (480, 640), (61, 200), (300, 160), (31, 33), (1, 1), (2, 90)):
        canvas = prompt.geometry.show([picture := photo_like(height, width)])
        expected = to_pixels(prompt.on(canvas), pixel_format).detach().numpy()
        gap = np.abs(run(model, picture) - expected) * levels
        assert (height, width) != (side, side) or gap.max() < 2e-3  # nothing was resized
        within.append((gap <= 1.001).ravel())
    assert np.concatenate(within).mean() >= 0.999


@pytest.mark.parametrize("placement", ["around", "over"])
@pytest.mark.parametrize("pixel_range", ["free", "image"])
@pytest.mark.parametrize("size", [64, 96])
def test_a_lens_lies_before_the_frame(placement, pixel_range, size):
    geometry = Geometry(64, 48, "crop", placement)
    prompt = make_prompt(geometry, pixel_range)
    prompt.lens = random_lens(DESIGNS[-1])
    picture = np.random.default_rng(0).integers(0, 256, (geometry.side, geometry.side, 3), np.uint8)
    expected = to_pixels(prompt.on(geometry.show([picture])), FORMATS[size]).detach().numpy()
    assert np.abs(run(preprocess_graph(geometry, FORMATS[size], prompt), picture) - expected).max() < 1e-4


def test_a_picture_is_normalised_by_means_that_are_exact():
    """The sums are over 150,528 values, here far from zero and nearly equal: a fog."""
    prompt = lens_prompt(DESIGNS[1], 224)
    prompt.lens.values.update({"matrix": torch.eye(3), "bias": torch.zeros(3), "tone": torch.zeros(3)})
    picture = np.random.default_rng(0).integers(235, 242, (224, 224, 3), np.uint8)
    picture[:40] = 230
    x = picture.transpose(2, 0, 1) / 255
    expected = np.clip((x - x.mean()) * 0.2 / x.std() + 0.5, 0.5 / 255, 1)
    given = run(preprocess_graph(prompt.geometry, PixelFormat(224, (0.0,) * 3, (1.0,) * 3), prompt), picture)[0]
    assert np.abs(given - expected).max() < 2e-5


def test_a_lens_is_small():
    """What a swap of the lens has to carry."""
    for design in DESIGNS:
        prompt = lens_prompt(design, 224)
        model = preprocess_graph(prompt.geometry, PixelFormat(224, (0.5,) * 3, (0.5,) * 3), prompt)
        assert len(model.SerializeToString()) < 100_000
