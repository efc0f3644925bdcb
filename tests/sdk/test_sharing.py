"""Tasks that share a base: opened once, verified once, and let go of with the last that uses it."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import seal
from tvp import sdk
from tvp.sdk._runtime import sessions, sharing
from tvp.sdk.errors import BundleError, RequestError
from tvp.sdk.formats import integrity

PICTURE = np.zeros((10, 10, 3), np.uint8)
DECODER = "decoder_model_merged.onnx"


@pytest.fixture
def copy(one_bundle, tmp_path):
    return shutil.copytree(one_bundle, tmp_path / "copy")


@pytest.fixture
def linked(copy, tmp_path):
    """A second task whose base is hard links to the first's, as `tvp export` makes it."""
    folder = shutil.copytree(copy, tmp_path / "linked")
    for file in (copy / "base").iterdir():
        (folder / "base" / file.name).unlink()
        os.link(file, folder / "base" / file.name)
    return folder


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed, as they are; files count as settled at once."""
    names: list[str] = []
    digest = hashlib.file_digest

    def noted(stream, kind):
        names.append(Path(stream.name).name)
        return digest(stream, kind)

    monkeypatch.setattr(integrity.hashlib, "file_digest", noted)
    monkeypatch.setattr(integrity, "SETTLED", -(10**18))
    return names


def reseal(bundle, base):
    """Give a bundle's base another manifest."""
    (bundle / "base" / "manifest.json").write_bytes(seal(base))
    task = json.loads((bundle / "manifest.json").read_text())
    task["base"] = json.loads((bundle / "base" / "manifest.json").read_text())["sha256"]
    (bundle / "manifest.json").write_bytes(seal(task))


def test_two_tasks_on_one_base_share_itssessions(one_bundle, copy):
    with sdk.load(one_bundle) as a, sdk.load(copy) as b:
        assert a.model is b.model
        assert a._own.preprocess is not b._own.preprocess


def test_a_loaded_base_is_not_hashed_again(copy, linked, hashed):
    with sdk.load(copy) as first:
        assert DECODER in hashed
        for folder in (copy, linked):
            hashed.clear()
            sdk.load(folder).close()
            assert set(hashed) == {Path(name).name for name in first.manifest.files}  # the task's own are
    hashed.clear()
    sdk.load(copy).close()
    assert DECODER in hashed  # nobody has it open any more


def test_what_is_not_verified_at_first_is_verified_when_asked(copy, hashed):
    with sdk.load(copy, verify_files=False):
        assert not hashed
        sdk.load(copy).close()
        assert DECODER in hashed


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_a_file_that_changed_since_is_noticed_even_with_its_times_set_back(copy, linked, hashed, how):
    file = linked / "base" / DECODER
    data, times = bytearray(file.read_bytes()), file.stat()
    time.sleep(0.05)  # some ticks of the file system's clock
    with sdk.load(copy) as first:
        data[100] ^= 1
        if how == "another file":
            file.unlink()
        file.write_bytes(data)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(BundleError, match=rf"linked/base/{DECODER} is damaged"):
            sdk.load(linked)
        if how == "another file":
            sdk.load(copy).close()
        assert first.ask(PICTURE, "What?").tokens


def test_a_file_that_is_newer_than_its_clock_tells_is_hashed_again(copy, hashed, monkeypatch):
    monkeypatch.setattr(integrity, "SETTLED", 10**18)
    with sdk.load(copy):
        hashed.clear()
        sdk.load(copy).close()
        assert DECODER in hashed


def test_threads_that_load_a_base_open_it_once(copy, monkeypatch):
    opened = []
    open_base = sharing.open_parts

    def slowly(*arguments):
        opened.append(1)
        time.sleep(0.2)
        return open_base(*arguments)

    monkeypatch.setattr(sharing, "open_parts", slowly)
    start = threading.Barrier(8)

    def load(_):
        start.wait()
        return sdk.load(copy)

    with ThreadPoolExecutor(8) as pool:
        tasks = list(pool.map(load, range(8)))
    assert len(opened) == 1
    assert len({id(task.model) for task in tasks}) == 1


def test_another_base_does_not_wait(copy, tmp_path, monkeypatch):
    other = shutil.copytree(copy, tmp_path / "other")
    base = json.loads((other / "base" / "manifest.json").read_text())
    reseal(other, {**base, "made_from": "elsewhere"})

    slow, done, open_base = threading.Event(), threading.Event(), sharing.open_parts

    def waits(folder, *arguments):
        if folder.parent == copy:
            slow.set()
            assert done.wait(60)
        return open_base(folder, *arguments)

    monkeypatch.setattr(sharing, "open_parts", waits)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(sdk.load, copy)
        assert slow.wait(60)
        with sdk.load(other) as quick:  # while the first is being opened
            done.set()
            assert quick.model is not first.result().model


def test_threads_load_ask_and_close_at_once(copy):
    with sdk.load(copy) as task:
        expected = task.ask(PICTURE, "What?").tokens

    def once(_):
        with sdk.load(copy) as task:
            return task.ask(PICTURE, "What?").tokens

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(once, range(24))) == {expected}


def test_a_base_is_let_go_of_with_the_last_task_and_view(copy):
    a, b = sdk.load(copy), sdk.load(copy)
    view = a.see(PICTURE)
    expected = view.ask("What?").tokens
    base = weakref.ref(a.model)
    gc.collect()
    gc.disable()  # references alone must do
    try:
        a.close()
        b.close()
        b.close()
        assert base() is not None
        assert view.ask("What?").tokens == expected  # a view keeps what it needs
        with pytest.raises(RequestError, match="is closed"):
            a.see(PICTURE)
        with pytest.raises(RequestError, match="is closed"):
            a.providers  # noqa: B018
        del view
        assert base() is None
    finally:
        gc.enable()


def test_a_base_that_goes_is_not_found_and_its_sessions_go_first(copy, monkeypatch):
    """What another thread would see at the moment when memory is given back."""
    seen = []
    task = sdk.load(copy)
    digest, decoder = task.manifest.base, weakref.ref(task.model.decoder.session)
    monkeypatch.setattr(
        sessions, "_trim", lambda pad: seen.append((digest in [key for key, _ in sharing._opened], decoder()))
    )
    task.close()
    assert seen == [(False, None)]


MEMORY = """
import pathlib, sys
import numpy as np
from tvp import sdk

def resident():  # MiB
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

picture = np.zeros((10, 10, 3), np.uint8)
small, large = sys.argv[1:]
with sdk.load(small) as task:
    task.ask(picture, "What?")
print(resident())
for n in range(3):
    with sdk.load(large) as task, sdk.load(large) as again:
        view = task.see(picture)
        print(view.ask("What?").tokens and resident())
    if n == 2:
        print(resident())  # the view holds the base
    del view, task, again
    print(resident())
"""
N_MIB = 256  # what is added to a base to see it come and go


def enlarge(bundle):
    """Give the bundle's vision encoder N_MIB of numbers, in tensors of a size that is usual, that count for nothing."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    file = bundle / "base" / "vision_encoder.onnx"
    model = onnx.load(file)
    graph = model.graph
    rng = np.random.default_rng(0)
    tables = [f"table.{n}" for n in range(N_MIB // 4)]
    graph.initializer.extend(numpy_helper.from_array(rng.random((4, 2**18), np.float32), name) for name in tables)
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int64), "at"))
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["embeds_before" if name == output else name for name in node.output]
    graph.node.extend(
        [
            helper.make_node("Shape", ["pixel_values"], ["shape"]),
            helper.make_node("Gather", ["shape", "at"], ["row"]),
            *[helper.make_node("Gather", [name, "row"], [f"{name}.row"]) for name in tables],
            helper.make_node("Sum", [f"{name}.row" for name in tables], ["numbers"]),
            helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
            helper.make_node("Add", ["embeds_before", "zero"], [output]),
        ]
    )
    onnx.save(model, file)
    base = json.loads((bundle / "base" / "manifest.json").read_text())
    data = file.read_bytes()
    base["files"][file.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reseal(bundle, base)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what is resident")
def test_closing_gives_the_memory_back(one_bundle, copy):
    enlarge(copy)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(one_bundle), str(copy)], capture_output=True, text=True, check=True
    )
    before, *rounds = map(float, done.stdout.split())
    assert len(rounds) == 7
    for number, loaded in enumerate(rounds[0:6:2]):
        assert loaded - before > N_MIB, number  # once: two tasks share it
        assert loaded - before < 2 * N_MIB, number
    held = rounds.pop(5)
    assert held - before > N_MIB
    for closed in rounds[1::2]:
        assert closed - before < N_MIB / 8, done.stdout


def test_what_was_opened_unseen_is_not_what_others_get(copy, linked, hashed):
    """A base whose weights were damaged, and loaded all the same, and an intact copy of it elsewhere."""
    with sdk.load(linked) as intact:
        expected = intact.ask(PICTURE, "What?").log_probabilities
    table = copy / "base" / "embed_tokens.npy"
    data = table.read_bytes()
    table.unlink()  # which was a link
    table.write_bytes(data[:-4000] + bytes(4000))
    with sdk.load(copy, verify_files=False) as unseen:
        with sdk.load(linked, verify_files=False) as other:
            assert other.model is not unseen.model
            assert other.ask(PICTURE, "What?").log_probabilities == expected
        with sdk.load(linked) as seen:
            assert seen.model is not unseen.model
            assert seen.ask(PICTURE, "What?").log_probabilities == expected
            with sdk.load(linked, verify_files=False) as other:
                assert other.model is seen.model
            with sdk.load(copy, verify_files=False) as other:
                assert other.model is unseen.model


@pytest.mark.parametrize("verified", [True, False])
def test_without_verification_what_is_in_the_folder_is_what_runs(copy, linked, tmp_path, hashed, verified):
    """Tasks that are open when a base's file is replaced, and put back later, keep what they opened."""
    away, table = tmp_path / "away.npy", copy / "base" / "embed_tokens.npy"

    def says(task):
        return task.ask(PICTURE, "What?").log_probabilities

    with sdk.load(copy, verify_files=verified) as before, sdk.load(linked, verify_files=False) as beside:
        assert beside.model is before.model  # the very same files, by hard links
        expected = says(before)
        data = table.read_bytes()
        table.rename(away)
        table.write_bytes(data[:256] + bytes(len(data) - 256))  # behind its header, all numbers are 0
        with sdk.load(copy, verify_files=False) as replaced, sdk.load(copy, verify_files=False) as again:
            assert replaced.model is again.model is not before.model
            assert says(replaced) != expected == says(before)
            with pytest.raises(BundleError, match=r"embed_tokens\.npy is damaged"):
                sdk.load(copy)
            table.unlink()
            away.rename(table)
            with sdk.load(copy, verify_files=False) as mended:
                assert mended.model is not replaced.model
                assert says(mended) == expected


def test_a_file_that_was_just_written_is_not_taken_for_the_same(copy, hashed, monkeypatch):
    with sdk.load(copy, verify_files=False) as first:
        monkeypatch.setattr(integrity, "SETTLED", 10**18)
        with sdk.load(copy, verify_files=False) as second, sdk.load(copy) as verified:
            assert len({first.model, second.model, verified.model}) == 3


@pytest.mark.parametrize(
    "content",
    [
        '{"type": "Precompiled", "precompiled_charsmap": null}',
        '{"type": "Replace", "pattern": {"Regex": "("}, "content": ""}',
    ],
)
def test_a_tokenizer_that_panics_is_a_bundle_error(copy, content):
    """Rust's panics are no Exceptions in Python."""
    file = copy / "base" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps({**tokenizer, "normalizer": json.loads(content)}))
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged"):
        sdk.load(copy, verify_files=False)
