"""Exports with a lens: whole bundles of every kind of model, and lens bundles; which prompt files go together."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from safetensors import safe_open

from tests.bundles import random_prompt
from tests.lenses import lens_prompt
from tests.tiny import save_tiny
from tvp import sdk
from tvp.export import preprocess, without_base
from tvp.export.bundle import export
from tvp.export.cli import export as command
from tvp.export.lens import add_lens
from tvp.export.output import refuse_to_overwrite
from tvp.export.plan import plan, plan_lens
from tvp.export.prompts import choose_prompt
from tvp.export.without_base import export_lens
from tvp.sdk.errors import BundleError, CheckError, DataError, RequestError
from tvp.trainer import tasks
from tvp.trainer.lens import LensDesign
from tvp.trainer.prompt import Prompt, compose

LENS = lens_prompt(LensDesign("conv", normalise=True))
PICTURE = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "prompts"
    for name, prompt in (("lens", LENS), ("frame", random_prompt()), ("both", compose(LENS, random_prompt()))):
        prompt.save(folder / f"{name}.safetensors")
    return lambda name: folder / f"{name}.safetensors"


@pytest.mark.parametrize("name", ["llava", "instructblip-t5", "qwen2_5_vl", "clip", "siglip"])
def test_a_bundle_with_a_lens_is_equal_to_pytorch(name, tmp_path):
    """A causal model and one behind an encoder, one of native resolution, and contrastive ones."""
    model = save_tiny(name, tmp_path / "model")
    task = tasks.get("count")
    for prompt in (LENS, compose(LENS, random_prompt())):
        report = export(model, task, tmp_path / "out", prompt=prompt, n_cases=4, force=True)
        assert report.tokens_equal == report.n_cases == 4
        assert report.pixels_within_a_level >= 0.999
        with sdk.load(tmp_path / "out") as loaded:
            assert loaded.check()["cases"] == 4
            assert loaded.manifest.prompt == (("lens",) if prompt.frame is None else ("lens", "frame"))
            assert loaded.manifest.pixels.size == 64


def test_a_single_file_has_the_lens_too(tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    export(model, tasks.get("count"), tmp_path / "out", prompt=LENS, n_cases=1, single_file=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "image_encoder.onnx", providers=["CPUExecutionProvider"])
    (whole,) = session.run(["image_embeds"], {"image": PICTURE})
    with sdk.load(tmp_path / "out") as task:
        parts = task.model.encode(task.pixel_values(PICTURE))
    assert np.abs(whole - parts).max() < 1e-4
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"prompt.safetensors", "image_encoder.onnx"}
    assert not (tmp_path / "out" / "prompt.png").exists()  # there is no frame
    assert Prompt.load(tmp_path / "out" / "prompt.safetensors").lens.design == LENS.lens.design


def test_a_lens_that_is_off_by_a_little_is_not_written(tmp_path, monkeypatch):
    model = save_tiny("llava", tmp_path / "model")

    def darker(g, picture, lens, side):
        return g.op("Mul", add_lens(g, picture, lens, side), g.real(0.98))

    monkeypatch.setattr(preprocess, "add_lens", darker)
    with pytest.raises(CheckError, match="pixel values are within one level"):
        export(model, tasks.get("count"), tmp_path / "out", prompt=LENS, n_cases=2)
    with pytest.raises(CheckError, match=r"not equal to the PyTorch lens.*\n.*within one level"):
        export_lens(model, tmp_path / "out", [PICTURE], prompt=LENS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_which_files_go_together(files):
    assert choose_prompt() is None
    whole = choose_prompt(lens=files("lens"), frame=files("frame"))
    assert whole.facts == {"lens": {"camera": "planted"}, "frame": {}}
    assert (whole.lens.design, whole.geometry) == (LENS.lens.design, random_prompt().geometry)
    assert choose_prompt(lens=files("lens")).frame is None
    assert choose_prompt(frame=files("frame")).lens is None
    assert choose_prompt(prompt=files("both")).lens is not None
    assert choose_prompt(lens=files("both"), frame=files("frame")).lens is not None  # its lens, behind another frame
    for given, says in (
        ({"prompt": "both", "lens": "lens"}, "--prompt is a whole prompt"),
        ({"prompt": "both", "frame": "frame"}, "--prompt is a whole prompt"),
        ({"lens": "frame"}, "has no lens; it is a frame alone. Give it as --frame"),
        ({"lens": "both"}, "has a frame besides its lens. Give it as --prompt"),
        ({"frame": "lens"}, "has no frame; it is a lens alone. Give it as --lens"),
        ({"frame": "both"}, "has a lens besides its frame. Give it as --prompt"),
        ({"lens": "lens", "frame": "both"}, "has a lens of its own"),
        ({"lens": "frame", "frame": "frame"}, "it is a frame alone"),
    ):
        with pytest.raises(RequestError, match=says):
            choose_prompt(**{name: files(file) for name, file in given.items()})
    with pytest.raises(DataError, match="no prompt file"):
        choose_prompt(lens=files("gone"))


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_the_command_composes_and_exports_without_a_base(files, tmp_path):
    model, out = save_tiny("llava", tmp_path / "model"), tmp_path / "out"
    lens, both = ("--lens", files("lens")), ("--lens", files("lens"), "--frame", files("frame"))
    done = run("-m", model, "-t", "count", "-o", out, *both, "--cases", 2)
    assert done.exit_code == 0, done.output
    with safe_open(out / "prompt.safetensors", "pt") as file:
        assert {"frame", "lens.matrix"} <= set(file.keys())
    for options, prompt in ((lens, ["lens"]), (both, ["lens", "frame"])):
        done = run("-m", model, *options, "--without-base", "-o", tmp_path / "lens", "--force", "--cases", 2)
        assert done.exit_code == 0, done.output
        assert "100.00% of pixel values" in done.output
        assert json.loads((tmp_path / "lens" / "manifest.json").read_bytes())["prompt"] == prompt
    planned = run("-m", model, *lens, "--without-base", "-o", tmp_path / "plan", "--dry-run")
    assert "preprocess.onnx" in planned.output
    assert not (tmp_path / "plan").exists()
    for wrong, says in (
        ((*lens,), "Name it (--task)"),
        (("--without-base",), "Give one: --lens"),
        ((*lens, "--without-base", "-t", "count"), "--without-base has none"),
        ((*lens, "--without-base", "--precision", "int8"), "--without-base has none"),
        ((*lens, "--without-base", "--single-file"), "--without-base has none"),
    ):
        done = run("-m", model, "-o", tmp_path / "new", *wrong)
        assert done.exit_code == 2, done.output
        assert says in done.output
    for wrong, error in (
        ((*lens, "-p", files("both"), "--without-base"), RequestError),
        ((*lens, "--without-base"), BundleError),  # it exists
    ):
        done = run("-m", model, "-o", tmp_path / "lens", *wrong)
        assert isinstance(done.exception, error)


def test_a_lens_bundle_is_replaced_and_nothing_else_is(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")  # as web applications have one
    with pytest.raises(BundleError, match="not a bundle"):
        refuse_to_overwrite(tmp_path, force=True)
    (tmp_path / "preprocess.onnx").touch()
    refuse_to_overwrite(tmp_path, force=True)
    with pytest.raises(BundleError, match="exists already"):
        export_lens("never loaded", tmp_path, [PICTURE], prompt=LENS)
    with pytest.raises(RequestError, match="at least one picture"):
        export_lens("never loaded", tmp_path / "new", [], prompt=LENS)


@pytest.mark.parametrize("prompt", [LENS, random_prompt(), compose(LENS, random_prompt())], ids=["l", "f", "lf"])
def test_the_plan_of_an_export_is_near_its_size(prompt, tmp_path):
    model = save_tiny("llava", tmp_path / "model")
    export_lens(model, tmp_path / "lens", [PICTURE], prompt=prompt)
    export(model, tasks.get("count"), tmp_path / "out", prompt=prompt, n_cases=1)
    lens = {name: size for name, size, _ in plan_lens(tmp_path / "new", prompt=prompt)}
    whole = {name: size for name, size, _ in plan(model, tasks.get("count"), tmp_path / "new", prompt=prompt)}
    for rows, folder in ((lens, tmp_path / "lens"), (whole, tmp_path / "out")):
        for name in ("preprocess.onnx", "prompt.safetensors"):
            found = (folder / name).stat().st_size if (folder / name).exists() else 0
            assert -(2**12) <= rows.get(name, 0) - found <= 128 * 2**10
        assert ("prompt.png" in rows) == (folder / "prompt.png").exists()


def test_a_frame_lies_before_other_pixels_of_a_lens_bundle(tmp_path):
    """A prompt without a lens has its bundle too; what it resizes says the filter."""
    family = without_base.families.load(save_tiny("llava", tmp_path / "model"))
    family.pixel_format = type(family.pixel_format)(96, (0.5,) * 3, (0.5,) * 3, "lanczos")
    export_lens("", tmp_path / "frame", [PICTURE], prompt=random_prompt(), family=family)
    said = json.loads((tmp_path / "frame" / "manifest.json").read_bytes())
    assert said["prompt"] == ["frame"]
    assert said["pixels"] == {"size": 96, "mean": [0.5] * 3, "std": [0.5] * 3, "filter": "lanczos"}
    onnx.checker.check_model(onnx.load(tmp_path / "frame" / "preprocess.onnx"))
