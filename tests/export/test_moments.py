"""The moments that an export learns: from which pictures, of which features, and what a swapped lens has of them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.bundles import seal
from tests.lenses import lens_prompt
from tests.sdk.test_cli import tvp
from tests.tiny import save_tiny
from tvp import sdk
from tvp.export.bundle import export
from tvp.export.cli import export as command
from tvp.export.moments import different_pictures, features_by, features_of, moments_of
from tvp.export.without_base import export_lens
from tvp.sdk.errors import DataError, RequestError
from tvp.sdk.formats.moments import FILE, read_moments
from tvp.trainer import families, tasks
from tvp.trainer.data import Pictures, Question, Sample, Scenes
from tvp.trainer.data.sample import Row
from tvp.trainer.lens import LensDesign

LENS = lens_prompt(LensDesign("kernel"))
COUNT = tasks.get("count")


class InOrderOfClasses:
    """Rows of 30 pictures, two rows each, in the order of their classes; row 4 is unreadable."""

    def __len__(self):
        return 60

    def row(self, index):
        return Row(f"row {index}", str(index // 2), (Question("How many?", "1", ("1", "2")),))

    def __getitem__(self, index):
        if index // 2 == 2:
            raise DataError("row 4 is cut off")
        picture = np.random.default_rng(index // 2).integers(0, 256, (40, 40, 3), np.uint8)
        return Sample(picture, self.row(index).questions, "")


def test_pictures_come_from_all_over_the_data_each_once():
    data = InOrderOfClasses()
    number = {data[2 * i].picture.tobytes(): i for i in range(30) if i != 2}
    taken = [number[picture.tobytes()] for picture in different_pictures(data, 12)]
    assert len(set(taken)) == len(taken) == 12
    assert min(taken) < 10
    assert max(taken) >= 20
    assert len([*different_pictures(data, 64)]) == 29  # all that can be read
    assert not [*different_pictures(data, 0)]


def test_few_pictures_have_no_moments(caplog):
    def features(picture):
        return picture[0].astype(np.float32)

    few = [*different_pictures(InOrderOfClasses(), 7)]
    assert moments_of(features, few) == (None, 0)
    assert "7 pictures; at least 8" in caplog.text
    caplog.clear()
    assert moments_of(features, []) == (None, 0)
    assert not caplog.records


@pytest.mark.parametrize("name", ["llava", "instructblip-t5", "clip"])
def test_pytorch_and_the_bundle_make_the_same_features(name, tmp_path):
    model = save_tiny(name, tmp_path / "model")
    export(model, COUNT, tmp_path / "out", prompt=LENS, n_cases=1, n_moment_pictures=9)
    family = families.load(model, canvas=LENS.geometry.canvas)
    picture = Scenes(1, seed=3)[0].picture
    with sdk.load(tmp_path / "out") as task:
        mine = features_by(task)(picture)
        assert mine.shape == features_of(family, LENS)(picture).shape
        np.testing.assert_allclose(mine, features_of(family, LENS)(picture), atol=1e-4)
        # The export learned from drawn scenes: other scenes are like those, noise is not.
        assert task.manifest.n_moment_pictures == 9
        scenes = Scenes(40, seed=11)
        like = np.mean([task.see(scenes[i].picture).unlikeness for i in range(40)])
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        assert 0.7 < like < 1.4
        assert task.see(noise).unlikeness > 2 * like


def test_how_many_pictures(one_bundle, tmp_path):
    model = one_bundle.parent / "model"
    with pytest.raises(RequestError, match="n_moment_pictures is 7; it must be 0"):
        export(model, COUNT, tmp_path / "out", n_moment_pictures=7)
    for task, options in ((tasks.get("custom"), {}), (COUNT, {"n_moment_pictures": 0})):
        # Drawn scenes are not the pictures of a task that is about others.
        export(model, task, tmp_path / "out", n_cases=1, force=True, **options)
        assert not (tmp_path / "out" / FILE).exists()
        with sdk.load(tmp_path / "out") as loaded:
            assert loaded.manifest.n_moment_pictures == 0
            assert loaded.see(Scenes(1, seed=0)[0].picture).unlikeness is None


def test_pictures_of_the_device_need_no_questions(one_bundle, tmp_path):
    """Two lens bundles: from a folder of pictures by the command, and from the same ones in Python."""
    model, prompt = one_bundle.parent / "model", tmp_path / "lens.safetensors"
    (tmp_path / "device").mkdir()
    LENS.save(prompt)
    for i in range(9):
        Image.fromarray(Scenes(9, seed=2)[i].picture).save(tmp_path / "device" / f"{i}.png")
    arguments = ["-m", model, "-p", prompt, "--without-base", "--pictures", tmp_path / "device", "-o", tmp_path / "a"]
    done = CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    data = Pictures(tmp_path / "device")
    export_lens(model, tmp_path / "b", [data[0].picture], prompt=prompt, usual=[data[i].picture for i in range(9)])
    moments = [read_moments(tmp_path / name) for name in "ab"]
    np.testing.assert_allclose(moments[0].mean, moments[1].mean, rtol=1e-5)
    np.testing.assert_allclose(moments[0].spread, moments[1].spread, rtol=1e-5)
    export(model, tasks.get("custom"), tmp_path / "c", prompt=LENS, n_cases=1, usual=data)
    np.testing.assert_allclose(read_moments(tmp_path / "c").spread, moments[0].spread, rtol=1e-3)


def test_the_plan_lists_the_file(one_bundle, tmp_path):
    model, out = str(one_bundle.parent / "model"), str(tmp_path / "out")
    (tmp_path / "device").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "device" / "0.png")
    for options, listed in (
        (["-t", "count"], True),
        (["-t", "count", "--moments", "0"], False),
        (["-t", "custom"], False),
        (["-t", "custom", "--pictures", str(tmp_path / "device")], True),
    ):
        done = CliRunner().invoke(command, ["-m", model, "-o", out, "--dry-run", *options], catch_exceptions=False)
        assert "preprocess.onnx" in done.output
        assert ("moments.npy" in done.output) == listed


def test_a_lens_bundle_has_moments_of_its_own(one_bundle, tmp_path):
    """They are those of a task that is exported with the lens, and serve tasks on the same weights alone."""
    pictures = [Scenes(20, seed=5)[i].picture for i in range(20)]
    for name, usual in (("lens", pictures), ("plain", ())):
        export_lens(one_bundle.parent / "model", tmp_path / name, pictures[:1], prompt=LENS, usual=usual)
    assert not (tmp_path / "plain" / FILE).exists()
    picture = Scenes(1, seed=6)[0].picture
    with sdk.load(one_bundle, lens=tmp_path / "lens") as task:
        moments, n = moments_of(features_by(task), pictures)
        assert n == task.lens.n_moment_pictures == 20
        np.testing.assert_allclose(read_moments(tmp_path / "lens").spread, moments.spread, rtol=1e-3)
        behind = task.see(picture)
        assert behind.unlikeness == pytest.approx(moments.unlikeness(task.model.features(behind._seen)), rel=1e-3)
        task.use_lens(tmp_path / "plain")
        assert task.see(picture).unlikeness is None  # the task's own are about another prompt
        task.use_lens(None)
        assert task.see(picture).unlikeness not in (None, behind.unlikeness)
    for number, weights in enumerate(("0" * 63 + "1", "")):  # of another model, and of one that nobody knows
        other = shutil.copytree(one_bundle, tmp_path / str(number))
        content = json.loads((other / "manifest.json").read_bytes())
        (other / "manifest.json").write_bytes(
            seal(content | {"provenance": {**content["provenance"], "weights": weights}})
        )
        with sdk.load(other, lens=tmp_path / "lens") as task:
            assert task.see(picture).unlikeness is None
            task.use_lens(None)
            assert task.see(picture).unlikeness is not None
    assert "by 20 pictures" in tvp("inspect", tmp_path / "lens").stdout
