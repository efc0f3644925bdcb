"""Lens bundles: one prompt for tasks that are exported already, swapped on a loaded base."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from tests.bundles import listed_anew, random_prompt, reads_weights_from, seal
from tests.lenses import lens_prompt
from tests.sdk.reference_client import Client
from tests.sdk.test_cli import tvp
from tvp import sdk
from tvp.export.without_base import export_lens
from tvp.sdk.errors import BundleError, CheckError, RequestError
from tvp.sdk.formats.manifest import read_lens_manifest, read_task_manifest
from tvp.trainer import families
from tvp.trainer.lens import LensDesign
from tvp.trainer.prompt import compose

PICTURE = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
LENS = lens_prompt(LensDesign("conv", width=4))


@pytest.fixture(scope="module")
def lens_bundles(one_bundle, tmp_path_factory):
    """A lens alone, and one before the task's frame; do not change them, copy them."""
    folder, model = tmp_path_factory.mktemp("lenses"), one_bundle.parent / "model"
    for name, prompt in (("night", LENS), ("night-frame", compose(LENS, random_prompt()))):
        export_lens(model, folder / name, [PICTURE], prompt=prompt)
    return folder


@pytest.fixture
def copy(lens_bundles, tmp_path):
    return shutil.copytree(lens_bundles / "night", tmp_path / "night")


def expected_pixels(one_bundle, prompt, picture):
    family = families.load(one_bundle.parent / "model")
    return family.to_pixels(prompt.on(prompt.geometry.show([picture]))).detach().numpy()


def test_a_lens_takes_the_place_of_the_tasks_prompt_and_goes_again(one_bundle, lens_bundles):
    picture = LENS.geometry.shrink(PICTURE)  # at 64 px: the lens alone does not resize it
    with sdk.load(one_bundle) as task:
        own, answer = task.pixel_values(picture), task.ask(picture, "What?")
        assert task.lens is None
        view = task.see(picture)
        task.use_lens(lens_bundles / "night")
        assert task.lens.name == "night"
        assert task.lens.prompt == ("lens",)
        behind = task.pixel_values(picture)
        assert np.abs(behind - expected_pixels(one_bundle, LENS, picture)).max() < 1e-4
        assert np.abs(behind - own).max() > 0.1
        assert view.ask("What?").tokens == answer.tokens  # a view keeps what it saw
        seen = task.model.see(behind)[0]
        assert task.rank(picture) == task.model.rank(seen, *task._requests.rank(None, None))
        task.use_lens(None)
        assert np.array_equal(task.pixel_values(picture), own)


def test_a_task_is_loaded_with_a_lens(one_bundle, lens_bundles, tmp_path, monkeypatch):
    shutil.copytree(lens_bundles / "night-frame", tmp_path / "lenses" / "night")
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    prompt = compose(LENS, random_prompt())
    picture = prompt.geometry.shrink(PICTURE)
    with sdk.load(one_bundle, lens="night") as task, sdk.load(one_bundle) as other:
        assert task.model is other.model
        assert np.abs(task.pixel_values(picture) - expected_pixels(one_bundle, prompt, picture)).max() < 1e-4
        assert not np.allclose(other.pixel_values(picture), task.pixel_values(picture), atol=0.1)
        (many,) = task.ask_many([(picture, "What?")])
        assert many.tokens == task.ask(picture, "What?").tokens
    with pytest.raises(RequestError, match="is closed"):
        task.use_lens("night")
    for name, says in (("nihgt", r"no lens 'nihgt'.*has night\. Did you mean night"), (tmp_path, "no lens")):
        with pytest.raises(BundleError, match=says):
            sdk.load(one_bundle, lens=name)


def test_a_frame_that_a_lens_replaces_is_told(one_bundle, lens_bundles, caplog):
    with sdk.load(one_bundle) as task, caplog.at_level(logging.WARNING, "tvp.sdk"):
        task.use_lens(lens_bundles / "night-frame")
        assert not caplog.records
        task.use_lens(lens_bundles / "night")
        assert "has a frame; the lens bundle has none" in caplog.text


def test_a_calibration_that_was_learned_with_another_prompt_is_told(one_bundle, lens_bundles, tmp_path, caplog):
    folder = shutil.copytree(one_bundle, tmp_path / "calibrated")
    content = json.loads((folder / "manifest.json").read_bytes())
    offsets = {"question": content["question"], "labels": content["labels"], "offsets": [0.0] * 4, "n_pictures": 64}
    (folder / "manifest.json").write_bytes(seal({**content, "calibration": [offsets], "requires": ["calibration"]}))
    with sdk.load(folder) as task, caplog.at_level(logging.WARNING, "tvp.sdk"):
        task.use_lens(lens_bundles / "night-frame")
        assert "was learned with its own prompt. Behind the lens 'night-frame'" in caplog.text


def test_check_asks_the_golden_cases_with_the_tasks_own_prompt(one_bundle, copy):
    """They were made with it: with the lens, a whole bundle would seem to be broken."""
    with sdk.load(one_bundle, lens=copy) as task:
        assert task.check()["cases"] == 4
        file = copy / "golden" / "pixels.json"
        whole = json.loads(file.read_bytes())
        for place, off, fails in ((5, 0.5, False), (5, 1.5, True), (-1, -1.5, True)):
            values = list(whole["values"])
            values[place] += off / 255 / task.lens.pixels.std[0 if place == 5 else 2]
            file.write_text(json.dumps({**whole, "values": values}))
            if fails:
                with pytest.raises(CheckError, match=r"lens 'night' does not do here.*1\.5"):
                    task.check()
            else:
                task.check()
        for wrong in ({"values": whole["values"][:-1]}, {"size": 32}, {"every": 0}, {"format": 3}, {"values": [None]}):
            file.write_text(json.dumps(whole | wrong))
            with pytest.raises(BundleError, match=r"pixels\.json"):
                task.check()
        file.write_text("[")
        with pytest.raises(BundleError, match="cannot be read"):
            task.check()
        task.use_lens(None)
        assert task.check()["cases"] == 4


def test_a_damaged_lens_is_refused_and_the_one_before_stays(one_bundle, copy, lens_bundles):
    with sdk.load(one_bundle, lens=lens_bundles / "night") as task:
        before = task.pixel_values(PICTURE)
        for name in ("preprocess.onnx", "golden/pixels.json", "golden/0.png", "manifest.json"):
            whole = (copy / name).read_bytes()
            middle = len(whole) // 2
            (copy / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
            with pytest.raises(BundleError, match=r"damaged"):
                task.use_lens(copy)
            (copy / name).write_bytes(whole)
        assert np.array_equal(task.pixel_values(PICTURE), before)
        task.use_lens(copy)


def test_a_lens_that_does_not_fit_is_refused(one_bundle, copy):
    file = copy / "manifest.json"
    content = json.loads(file.read_bytes())
    pixels = content["pixels"]
    assert pixels["filter"] == ""  # nothing is resized by it
    with sdk.load(one_bundle) as task:
        for wrong in ({"size": 32}, {"mean": [0.5, 0.5, 0.5]}, {"std": [0.5, 0.5, 0.5]}, {"filter": "lanczos"}):
            file.write_bytes(seal({**content, "pixels": pixels | wrong}))
            with pytest.raises(BundleError, match=r"'night' does not fit the task 'count'.*Export the lens"):
                task.use_lens(copy)
        # A manifest that does not say the truth about its graph.
        other = lens_prompt(LensDesign("kernel"), 32)
        wide = copy.parent / "wide"
        export_lens("", wide, [PICTURE], prompt=other, family=_of_size(one_bundle, 32))
        data = (wide / "preprocess.onnx").read_bytes()
        (copy / "preprocess.onnx").write_bytes(data)
        file.write_bytes(listed_anew(seal(content), "preprocess.onnx", data))
        with pytest.raises(BundleError, match=r"pixel_values.*shape"):
            task.use_lens(copy)
        nearly = [value + 3e-8 for value in pixels["mean"]]  # as a float32 is written
        shutil.rmtree(wide)
        assert task.lens is None
        assert read_task_manifest(one_bundle / "manifest.json").pixels.fit(
            type(task.manifest.pixels)(**{**pixels, "mean": nearly, "filter": "bicubic"})
        )


def _of_size(one_bundle, size):
    family = families.load(one_bundle.parent / "model")
    family.pixel_format = type(family.pixel_format)(size, (0.5,) * 3, (0.5,) * 3)
    return family


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixels": None},
        {"pixels": {"size": 0}},
        {"mean": [0.5]},
        {"mean": ["a", 0, 0]},
        {"std": [0.0, 1.0, 1.0]},
        {"std": [1e400, 1.0, 1.0]},
        {"files": {}},
        {"prompt": 3},
        {"kind": "task"},
        {"requires": ["sound"]},
        {"files": {"../preprocess.onnx": {"size": 1, "sha256": ""}}},
    ],
    ids=str,
)
def test_a_manifest_that_is_none_is_refused(one_bundle, copy, wrong):
    file = copy / "manifest.json"
    content = json.loads(file.read_bytes())
    inner = {name: value for name, value in wrong.items() if name in ("mean", "std")}
    content |= {"pixels": content["pixels"] | inner} if inner else wrong
    text = json.dumps(content).replace("Infinity", "1e400")
    file.write_bytes(seal(json.loads(text)))
    with sdk.load(one_bundle) as task, pytest.raises(BundleError):
        task.use_lens(copy)


def test_a_graph_of_a_stranger_may_only_compute(one_bundle, copy):
    data = reads_weights_from("../secret.bin")
    (copy / "preprocess.onnx").write_bytes(data)
    manifest = copy / "manifest.json"
    manifest.write_bytes(listed_anew(manifest.read_bytes(), "preprocess.onnx", data))
    with sdk.load(one_bundle) as task, pytest.raises(BundleError, match="reads its weights from"):
        task.use_lens(copy)


def test_what_is_no_lens_and_what_is_no_task_is_told(one_bundle, lens_bundles):
    with pytest.raises(BundleError, match=r"is a lens without a task\. Load a task with it"):
        sdk.load(lens_bundles / "night")
    with pytest.raises(BundleError, match=r"not the manifest of a lens bundle: its kind is 'task'"):
        sdk.load(one_bundle, lens=one_bundle)


def test_without_verification_links_are_refused(one_bundle, copy):
    shutil.move(copy / "preprocess.onnx", copy.parent / "elsewhere.onnx")
    (copy / "preprocess.onnx").symlink_to(copy.parent / "elsewhere.onnx")
    with sdk.load(one_bundle) as task:
        task.use_lens(copy)
    with sdk.load(one_bundle, verify_files=False) as task, pytest.raises(BundleError, match="is a link"):
        task.use_lens(copy)


def test_a_task_of_an_earlier_version_takes_no_lens_and_says_why(one_bundle, lens_bundles, tmp_path):
    old = shutil.copytree(one_bundle, tmp_path / "old")
    content = json.loads((old / "manifest.json").read_bytes())
    del content["pixels"], content["prompt"]
    (old / "manifest.json").write_bytes(seal(content))
    with sdk.load(old) as task:
        with pytest.raises(BundleError, match="exported by an earlier TVP"):
            task.use_lens(lens_bundles / "night")
        with pytest.raises(RequestError, match="what its pixel values mean"):
            task.prompted(PICTURE)
        task.ask(PICTURE, "What?")


def test_threads_ask_while_the_lens_is_swapped(one_bundle, lens_bundles):
    """Every answer is one of the two prompts'."""
    with sdk.load(one_bundle) as task:
        known = [task.pixel_values(PICTURE)]
        task.use_lens(lens_bundles / "night")
        known.append(task.pixel_values(PICTURE))
        seen, done = [], threading.Event()

        def look():
            while not done.is_set():
                seen.append(task.pixel_values(PICTURE))

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(20):
            task.use_lens(lens_bundles / "night" if i % 2 else None)
        done.set()
        for thread in threads:
            thread.join()
        assert seen
        assert all(any(np.array_equal(values, one) for one in known) for values in seen)


def test_what_the_model_is_shown_is_a_picture(one_bundle, lens_bundles, tmp_path):
    frame = random_prompt()
    picture = frame.geometry.shrink(PICTURE)
    for lens, prompt in ((None, frame), ("night", LENS), ("night-frame", compose(LENS, frame))):
        picture = prompt.geometry.shrink(PICTURE)
        shown = prompt.on(prompt.geometry.show([picture])).detach()[0].permute(1, 2, 0).clamp(0, 1).numpy()
        with sdk.load(one_bundle, lens=lens and lens_bundles / lens) as task:
            given = task.prompted(picture)
        assert given.dtype == np.uint8
        assert np.abs(given / 255 - shown).max() <= 0.51 / 255


def test_the_commands_take_a_lens(one_bundle, lens_bundles, tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(file)
    night = lens_bundles / "night-frame"
    for name, more in (("plain.png", ()), ("night.png", ("--lens", night))):
        done = tvp("ask", one_bundle, file, "What?", "--json", "--save-prompted", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
        with sdk.load(one_bundle, lens=night if more else None) as task:
            assert np.array_equal(np.asarray(Image.open(tmp_path / name)), task.prompted(file))
            assert json.loads(done.stdout)["tokens"] == list(task.ask(file, "What?").tokens)
    assert "4 of 4" in tvp("check", one_bundle, "--lens", night).stdout
    said = tvp("inspect", night).stdout
    assert "lens and frame" in said
    assert "64 px" in said
    assert "frame" in tvp("inspect", one_bundle).stdout
    refused = tvp("ask", one_bundle, file, "What?", "--lens", tmp_path)
    assert refused.returncode == 1
    assert "There is no lens" in refused.stderr
    unwritable = tvp("ask", one_bundle, file, "What?", "--save-prompted", tmp_path / "none" / "x.png")
    assert (unwritable.returncode, unwritable.stderr.count("\n")) == (1, 1)


def test_a_lens_is_swapped_without_torch(one_bundle, lens_bundles):
    code = (
        "import sys\nfrom tvp import sdk\n"
        "with sdk.load(sys.argv[1], lens=sys.argv[2]) as task:\n"
        "    task.use_lens(None); task.use_lens(sys.argv[2]); task.check()\n"
        "assert not {'torch', 'onnx', 'transformers', 'safetensors'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, one_bundle, lens_bundles / "night-frame"], check=True, timeout=120)


def test_the_bundle_is_small_and_says_where_it_comes_from(lens_bundles):
    files = [file for file in (lens_bundles / "night").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 100_000
    manifest = read_lens_manifest(lens_bundles / "night" / "manifest.json")
    assert manifest.provenance.prompt == {"camera": "planted"}
    assert set(manifest.files) == {"preprocess.onnx", "golden/0.png", "golden/pixels.json"}
    assert manifest.parity.pixels_within_a_level >= 0.999


def test_the_page_is_enough_for_a_client(one_bundle, lens_bundles, copy, tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(file)
    client = Client(one_bundle)
    before = client.ask(file, "What?", 6)
    client.use_lens(lens_bundles / "night")
    tokens, scores, _ = client.ask(file, "What?", 6)
    with sdk.load(one_bundle, lens=lens_bundles / "night") as task:
        answer = task.ask(file, "What?", max_new_tokens=6)
    assert tokens == list(answer.tokens)
    assert np.allclose(scores, answer.log_probabilities, atol=1e-3)
    assert not np.allclose(scores, before[1], atol=1e-2)  # of another picture
    manifest = copy / "manifest.json"
    content = json.loads(manifest.read_bytes())
    manifest.write_bytes(seal({**content, "pixels": content["pixels"] | {"std": [0.5] * 3}}))
    with pytest.raises(ValueError, match="the std is another"):
        client.use_lens(copy)
