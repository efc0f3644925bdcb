"""The lens: what its docstring promises, its gradients, and the files that hold it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.lenses import DESIGNS, lens_prompt, name_of, random_lens
from tvp.sdk.errors import DataError, RequestError
from tvp.trainer.lens import Lens, LensDesign, above_zero, normalised
from tvp.trainer.prompt import Geometry, Prompt, compose, eight_bit

FRAME_GEOMETRY = Geometry(20, 12)
every_design = pytest.mark.parametrize("design", DESIGNS, ids=name_of)


def pictures(n=2, height=12, width=15, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, height, width, generator=generator)


def frame_prompt(seed=0):
    frame = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(seed)) * FRAME_GEOMETRY.mask()
    return Prompt(frame, FRAME_GEOMETRY, facts={"task": "count"})


# An independent oracle: numpy in double precision, loops over the taps of a kernel, after the docstring of lens.py.


def pixel(picture, row, column):
    """A picture (channels, height, width) moved by a tap; its edges repeat."""
    _, height, width = picture.shape
    rows = np.clip(np.arange(height) + row, 0, height - 1)
    columns = np.clip(np.arange(width) + column, 0, width - 1)
    return picture[:, rows][:, :, columns]


def convolved(grown, weight, bias):
    """Valid convolution of an array whose edges were repeated before."""
    _, height, width = grown.shape
    total = np.zeros((len(weight), height - 4, width - 4)) + bias[:, None, None]
    for row in range(5):
        for column in range(5):
            part = grown[:, row : row + height - 4, column : column + width - 4]
            total += np.tensordot(weight[:, :, row, column], part, 1)
    return total


def oracle(lens, picture):
    values = {name: value.double().numpy() for name, value in lens.values.items()}
    design, x = lens.design, picture.double().numpy()
    if design.normalise:
        x = (x - x.mean()) * (0.2 / max(x.std(), 1 / 255)) + 0.5
    if design.kind == "kernel":
        taps = [(row, column) for row in range(5) for column in range(5)]
        x = sum(values["kernel"][:, r, c, None, None] * pixel(x, r - 2, c - 2) for r, c in taps)
    if design.kind == "conv":
        n = design.depth + 1
        grown = np.pad(x, [(0, 0), (2 * n, 2 * n), (2 * n, 2 * n)], mode="edge")
        for i in range(n):
            grown = convolved(grown, values[f"weight_{i}"], values[f"bias_{i}"])
            grown = np.maximum(grown, 0) if i < n - 1 else grown
        x = x + grown
    x = np.tensordot(values["matrix"], x, 1) + values["bias"][:, None, None]
    floor = 1 / 255
    x = np.where(x >= floor, x, floor**2 / (2 * floor - np.minimum(x, floor)))
    return np.clip(x ** np.exp(values["tone"])[:, None, None], 0, 1)


@every_design
def test_a_lens_is_what_its_docstring_says(design):
    lens, batch = random_lens(design), pictures()
    given = lens(batch).numpy()
    for i in range(len(batch)):  # each picture by itself
        expected = oracle(lens, batch[i])
        assert np.abs(given[i] - expected).max() < 2e-5
        assert np.abs(given[i] - batch[i].numpy()).max() > 0.05  # it does something


@every_design
def test_a_lens_starts_as_the_identity(design):
    batch = torch.cat([pictures(), torch.zeros(1, 3, 12, 15), torch.ones(1, 3, 12, 15)])
    given = Lens(design, design.start(3))(batch)
    expected = normalised(batch).clamp(0, 1) if design.normalise else batch
    assert (given - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_a_normalised_picture_has_the_mean_and_the_spread_and_one_colour_stays_one():
    batch = torch.cat([pictures(1) * 0.1, 0.9 + 0.1 * pictures(1, seed=1), torch.full((1, 3, 12, 15), 0.3)])
    given = normalised(batch)
    torch.testing.assert_close(given.mean((1, 2, 3)), torch.full((3,), 0.5))
    torch.testing.assert_close(given[:2].std((1, 2, 3), unbiased=False), torch.full((2,), 0.2))
    torch.testing.assert_close(given[2], torch.full((3, 12, 15), 0.5))


@pytest.mark.parametrize("kind", ["kernel", "conv"])
def test_the_edges_repeat(kind):
    """A picture that is the same in every row keeps that, up to its first and last row."""
    rows = pictures(1, 1, 15).expand(-1, -1, 12, -1)
    given = random_lens(LensDesign(kind))(rows)
    torch.testing.assert_close(given, given[:, :, :1].expand(-1, -1, 12, -1))


@every_design
def test_in_8_bits_the_result_is_rounded_and_nothing_else(design):
    prompt = eight_bit(lens_prompt(design, 24))
    canvas = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    levels = 255 * prompt.on(canvas)
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert (prompt.on(canvas) - lens_prompt(design, 24).on(canvas)).abs().max() <= 0.5 / 255 + 1e-6


@every_design
def test_no_gradient_makes_white_whiter(design):
    """What is white can be made no whiter, so a gradient that asks for it would let values grow without end."""
    start = random_lens(design)
    values = {name: value.clone().requires_grad_() for name, value in start.values.items()}
    seen = Lens(design, values | {"bias": values["bias"] + 3})(pictures())
    assert (seen == 1).all()
    (-seen).sum().backward()
    assert all(not value.grad.any() for value in values.values())


@every_design
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0], ids=["black", "as it is", "white"])
def test_a_gradient_reaches_every_value_whatever_the_lens_made_of_the_picture(design, shift):
    """As through fog, where a first step may turn everything black: it must be able to come back."""
    start = random_lens(design)
    values = {name: value.clone().requires_grad_() for name, value in start.values.items()}
    moved = values | {"bias": values["bias"] + shift}
    seen = Lens(design, moved)(pictures())
    if shift:
        assert (seen > 0.5).all() if shift > 0 else (seen < 0.5).all()
    (seen * torch.linspace(0.5, 1.5, seen.numel()).view(seen.shape)).sum().backward()
    for name, value in values.items():
        assert torch.isfinite(value.grad).all()
        if name == "tone" and shift > 0:  # white stays white at any power
            continue
        # What a ReLU holds back in every pixel of these pictures has none: at most a channel or two.
        assert (value.grad != 0).float().mean() > 0.85, name


@pytest.mark.parametrize("level", [0.0, 1.0])
@every_design
def test_a_black_and_a_white_picture_give_finite_gradients(design, level):
    lens = random_lens(design)
    values = {name: value.clone().requires_grad_() for name, value in lens.values.items()}
    batch = torch.full((1, 3, 12, 15), level, requires_grad=True)
    Lens(design, values)(batch).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in [*values.values(), batch])
    assert (values["bias"].grad != 0).all()
    if level < 1:  # white stays white at any power
        assert (values["tone"].grad != 0).all()


def test_the_bend_above_zero_is_smooth_and_never_reaches_it():
    x = torch.linspace(-100, 1, 100_001, dtype=torch.float64, requires_grad=True)
    y = above_zero(x)
    y.sum().backward()
    assert (y > 0).all()
    assert torch.equal(y[x > 1 / 255], x[x > 1 / 255])
    assert (x.grad > 0).all()
    assert x.grad.max() <= 1
    join = torch.tensor([1 / 255 - 1e-9, 1 / 255 + 1e-9], dtype=torch.float64, requires_grad=True)
    above_zero(join).sum().backward()
    torch.testing.assert_close(join.grad, torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_design_that_cannot_be_is_refused():
    for wrong, says in (
        ({"kind": "blur"}, "no lens 'blur'.*colour, kernel, conv"),
        ({"width": 0}, "width of a lens is 0.*from 1 to 64"),
        ({"width": 65}, "from 1 to 64"),
        ({"depth": 5}, "depth of a lens is 5.*from 1 to 4"),
        ({"depth": True}, "depth of a lens is True"),
        ({"normalise": 1}, "normalise is 1"),
    ):
        with pytest.raises(RequestError, match=says):
            LensDesign(**wrong)


# Prompts with a lens.


@pytest.mark.parametrize("placement", ["around", "over"])
def test_the_lens_acts_on_the_picture_inside_the_frame(placement):
    geometry = Geometry(20, 12, "crop", placement)
    frame, lens = frame_prompt().frame, random_lens(LensDesign("conv"))
    prompt = Prompt(frame, geometry, lens=lens)
    shown = torch.randint(0, 256, (2, geometry.side, geometry.side, 3), dtype=torch.uint8)
    behind = lens(shown.permute(0, 3, 1, 2) / 255)
    if placement == "around":
        expected = frame.expand(2, -1, -1, -1).clone()
        expected[:, :, 4:16, 4:16] = behind
    else:
        expected = behind + frame
    torch.testing.assert_close(prompt.on(geometry.place(shown)), expected)
    alone = Prompt(None, Geometry(20, 20), lens=lens)
    whole = torch.rand(1, 3, 20, 20)
    torch.testing.assert_close(alone.on(whole), lens(whole))
    assert alone.picture() is None


@every_design
def test_a_saved_lens_comes_back(design, tmp_path):
    file = tmp_path / "lens.safetensors"
    for prompt in (lens_prompt(design, 20), compose(lens_prompt(design, 20), frame_prompt())):
        prompt.save(file)
        loaded = Prompt.load(file)
        assert loaded.lens.design == design
        assert loaded.lens.values.keys() == prompt.lens.values.keys()
        assert all(torch.equal(loaded.lens.values[name], value) for name, value in prompt.lens.values.items())
        assert (loaded.geometry, loaded.facts) == (prompt.geometry, prompt.facts)
        canvas = torch.rand(2, 3, 20, 20)
        assert torch.equal(loaded.on(canvas), prompt.on(canvas))
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["format"] == "3"
        assert (tmp_path / "lens.png").exists() == (prompt.frame is not None)


def test_a_frame_alone_is_written_for_earlier_versions(tmp_path):
    prompt = frame_prompt()
    prompt.save(tmp_path / "frame.safetensors")
    with safe_open(tmp_path / "frame.safetensors", "pt") as opened:
        assert opened.metadata()["format"] == "2"
        assert "lens" not in opened.metadata()
    assert Prompt.load(tmp_path / "frame.safetensors").lens is None


def test_damaged_and_hostile_files_are_refused(tmp_path):
    file = tmp_path / "lens.safetensors"
    compose(lens_prompt(LensDesign("conv", width=4), 20), frame_prompt()).save(file)
    with safe_open(file, "pt") as opened:
        about, good = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    design = json.loads(about["lens"])
    geometry = json.loads(about["geometry"])
    infinite = good["lens.weight_0"].clone()
    infinite[0, 0, 0, 0] = float("inf")
    for tensors, said, says in (
        ({"lens.matrix": torch.eye(4)}, {}, r"tensors must be .*lens\.matrix \(3, 3\)"),
        ({"lens.weight_0": good["lens.weight_0"][:3]}, {}, "tensors must be"),
        ({"lens.weight_0": infinite}, {}, r"lens\.weight_0 must be finite"),
        ({"lens.bias": torch.full((3,), float("nan"))}, {}, r"lens\.bias must be finite"),
        ({"lens.bias": torch.zeros(3, dtype=torch.int32)}, {}, "finite"),
        ({"lens.more": torch.zeros(3)}, {}, "tensors must be"),
        ({"more": torch.zeros(3)}, {}, "tensors must be"),
        ({"lens.bias": None}, {}, "tensors must be"),
        ({"frame": torch.zeros(3, 24, 24)}, {}, r"frame \(3, 20, 20\)"),
        ({"frame": None}, {}, "without a frame the picture fills the canvas"),
        ({}, {"lens": {**design, "kind": "blur"}}, "no lens 'blur'"),
        ({}, {"lens": {**design, "kind": ["conv"]}}, "no lens"),
        ({}, {"lens": {**design, "width": 10**9}}, "width of a lens"),
        ({}, {"lens": {**design, "width": 4.0}}, "width of a lens"),
        ({}, {"lens": {**design, "depth": 3}}, "tensors must be"),
        ({}, {"lens": {**design, "zoom": 3}}, "zoom"),
        ({}, {"lens": [design]}, "not an intact"),
        ({}, {"lens": None}, "tensors must be"),  # tensors of a lens of which nothing is said
        ({}, {"geometry": {**geometry, "canvas": 24, "inner": 16}}, "tensors must be"),
    ):
        held = {name: value for name, value in {**good, **tensors}.items() if value is not None}
        spelt = {name: value if name == "lens" and value is None else json.dumps(value) for name, value in said.items()}
        save_file(held, file, {name: value for name, value in {**about, **spelt}.items() if value is not None})
        with pytest.raises(DataError, match=says):
            Prompt.load(file)
    save_file(good, file, about | {"lens": "{"})
    with pytest.raises(DataError, match="not an intact"):
        Prompt.load(file)
    save_file(good, file, about)
    Prompt.load(file)


def test_a_lens_and_a_frame_are_put_together():
    lens, frame = lens_prompt(LensDesign("kernel"), 32), frame_prompt()
    both = compose(lens, frame)
    assert both.lens is lens.lens
    assert both.frame is frame.frame
    assert both.geometry == frame.geometry  # the picture lies as the frame wants it
    assert both.facts == {"lens": {"camera": "planted"}, "frame": {"task": "count"}}
    canvas = FRAME_GEOMETRY.place(torch.randint(0, 256, (1, 12, 12, 3), dtype=torch.uint8))
    inside = both.on(canvas)[..., 4:16, 4:16]
    torch.testing.assert_close(inside, lens.lens(canvas[..., 4:16, 4:16]))


def test_what_cannot_be_put_together_is_said():
    lens, frame = lens_prompt(LensDesign("kernel"), 20), frame_prompt()
    with pytest.raises(RequestError, match="given as the lens has none; it is a frame alone"):
        compose(frame, frame)
    with pytest.raises(RequestError, match="given as the frame has none; it is a lens alone"):
        compose(lens, lens)
    with pytest.raises(RequestError, match="given as the frame has a lens of its own"):
        compose(lens, compose(lens, frame))
