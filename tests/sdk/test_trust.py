"""Whose files are trusted: what other users planted, what hub clients link, and what ended programs left."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from tests.bundles import seal
from tvp import sdk
from tvp.sdk._runtime.sessions import _make_folders
from tvp.sdk.cli import cli
from tvp.sdk.errors import BundleError, ProviderError
from tvp.sdk.formats import archive, temporary
from tvp.sdk.formats.integrity import linked, private_folder


@pytest.fixture
def packed(one_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("TVP_HOME", str(tmp_path / "home"))
    archive.pack(one_bundle, tmp_path / "count.tvp")
    return tmp_path / "count.tvp"


def cached(packed):
    return sdk.home() / "cache" / archive.digest(packed)


# The cache.


def test_a_planted_bundle_is_not_loaded_in_place_of_the_file(packed, one_bundle, caplog):
    """Its manifest is whole, and says another thing."""
    shutil.copytree(one_bundle, cached(packed))
    planted = cached(packed) / "manifest.json"
    planted.write_bytes(seal(json.loads(planted.read_bytes()) | {"name": "planted"}))
    sdk.load(cached(packed)).close()
    with sdk.load(packed) as task:
        assert task.folder == cached(packed)
        assert task.name == "count"
    assert "is not what it is named after" in caplog.text


def test_a_link_in_the_cache_is_not_followed(packed, one_bundle):
    (sdk.home() / "cache").mkdir(parents=True)
    cached(packed).symlink_to(one_bundle)
    with sdk.load(packed):
        assert not cached(packed).is_symlink()
    assert (one_bundle / "manifest.json").exists()


def test_planted_weights_in_the_cache_are_found(packed):
    sdk.load(packed).close()
    file = cached(packed) / "base" / "vision_encoder.onnx"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(BundleError, match=r"damaged.*delete the folder"):
        sdk.load(packed)


def test_the_cache_is_for_its_user_alone(packed):
    sdk.load(packed).close()
    assert stat.S_IMODE((sdk.home() / "cache").stat().st_mode) == 0o700
    (sdk.home() / "cache").chmod(0o777)
    sdk.load(packed).close()
    assert stat.S_IMODE((sdk.home() / "cache").stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to somebody else")
def test_a_cache_of_another_user_is_refused(packed, tmp_path):
    (sdk.home() / "cache").mkdir(parents=True)
    os.chown(sdk.home() / "cache", 12345, 12345)
    with pytest.raises(BundleError, match="belongs to another user"):
        sdk.load(packed)
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(ProviderError, match="belongs to another user"):  # TensorRT's engines
        _make_folders({"trt_engine_cache_path": str(tmp_path), "trt_timing_cache_path": str(tmp_path)})


def test_a_folder_that_others_may_write_to_is_made_private(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o775)
    assert stat.S_IMODE(private_folder(tmp_path / "open").stat().st_mode) == 0o700


def test_inspect_leaves_no_copy(packed):
    result = CliRunner().invoke(cli, ["inspect", str(packed)])
    assert result.exit_code == 0
    assert "precision     fp32" in result.output
    assert not sdk.home().exists()


# Hard links.


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_of_another_user_is_not_linked(tmp_path):
    (tmp_path / "w").write_bytes(b"weights")
    os.chown(tmp_path / "w", 12345, 12345)
    assert not linked(tmp_path / "w", tmp_path / "there" / "w")
    assert not (tmp_path / "there" / "w").exists()


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_to_is_not_linked(tmp_path, mode):
    (tmp_path / "w").write_bytes(b"weights")
    (tmp_path / "w").chmod(mode)
    assert not linked(tmp_path / "w", tmp_path / "v")
    assert not (tmp_path / "v").exists()
    (tmp_path / "w").chmod(0o644)
    assert linked(tmp_path / "w", tmp_path / "v")


def test_a_changed_file_of_another_bundle_is_not_linked(packed, one_bundle, tmp_path):
    archive.unpack(packed, tmp_path / "a")
    name = "base/embed_tokens.npy"
    changed = bytearray((tmp_path / "a" / name).read_bytes())
    changed[-1] ^= 1  # as many bytes as before
    (tmp_path / "a" / name).write_bytes(changed)
    archive.unpack(packed, tmp_path / "b")
    assert (tmp_path / "b" / name).read_bytes() == (one_bundle / name).read_bytes()
    assert (tmp_path / "b" / name).stat().st_nlink == 1
    assert (tmp_path / "b/base/tokenizer.json").samefile(tmp_path / "a/base/tokenizer.json")


# Links of a hub client.


@pytest.fixture
def downloaded(one_bundle, tmp_path):
    """A bundle as a hub client keeps it: its files are links to others, which are named after their content."""
    for number, file in enumerate(sorted(path for path in one_bundle.rglob("*") if path.is_file())):
        blob, link = tmp_path / "blobs" / str(number), tmp_path / "snapshot" / file.relative_to(one_bundle)
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return tmp_path / "snapshot"


def test_a_bundle_of_links_answers(downloaded, one_bundle, tmp_path):
    with sdk.load(downloaded) as task:
        assert task.check()["different"] == 0
    archive.pack(downloaded, tmp_path / "a.tvp")
    archive.pack(one_bundle, tmp_path / "b.tvp")
    assert (tmp_path / "a.tvp").read_bytes() == (tmp_path / "b.tvp").read_bytes()


def test_a_link_to_something_else_is_found(downloaded, tmp_path):
    file = downloaded / "base" / "tokenizer.json"
    size = file.stat().st_size
    file.unlink()
    (tmp_path / "secret").write_bytes(b"x" * size)
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged"):
        sdk.load(downloaded)


@pytest.mark.parametrize("name", ["preprocess.onnx", "base/embed_tokens.npy"])
def test_without_digests_no_link_is_followed(downloaded, name):
    for file in [path for path in downloaded.rglob("*") if path.is_symlink()]:
        if file.relative_to(downloaded).as_posix() != name:
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is a link"):
        sdk.load(downloaded, verify_files=False)


# What a killed program left.


def killed(tmp_path, code):
    """Start a program that makes a temporary folder or file for `out` and then says so; returns it."""
    call = (
        f"from pathlib import Path; from tvp.sdk.formats.temporary import *\nwith {code}: print(1, flush=True); input()"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", call], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert program.stdout.readline()
    return program


@pytest.mark.parametrize("make", ["temporary_folder", "temporary_file"])
def test_what_a_killed_program_left_is_swept(tmp_path, monkeypatch, make):
    monkeypatch.setattr(temporary, "YOUNG", 0)
    program = killed(tmp_path, f"{make}(Path('out').resolve())")
    temporary.sweep(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 1  # it lives
    program.kill()
    program.communicate()
    (tmp_path / ".out.partial").touch()  # other names
    (tmp_path / ".other.12345678.partial").touch()
    temporary.sweep(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.12345678.partial", ".out.partial"]


def test_a_young_one_is_left_alone(tmp_path):
    young = tmp_path / ".out.12345678.partial"
    young.mkdir()
    temporary.sweep(tmp_path / "out")
    assert young.exists()
    os.utime(young, (time.time() - 100,) * 2)
    descriptor = os.open(young, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    temporary.sweep(tmp_path / "out")
    assert young.exists()
    os.close(descriptor)
    temporary.sweep(tmp_path / "out")
    assert not young.exists()


def test_an_interrupted_replacement_is_named(one_bundle, tmp_path):
    shutil.copytree(one_bundle, tmp_path / ".count.replaced")
    with pytest.raises(BundleError, match=r"was interrupted.*\.count\.replaced"):
        sdk.load(tmp_path / "count")


# Files that change under a loaded task.


@pytest.mark.parametrize("how", ["shortened", "overwritten", "emptied"])
def test_embeddings_that_change_under_a_task_are_an_error(one_bundle, tmp_path, how):
    """In a program of its own: where the file was mapped, the system ended it."""
    copy = tmp_path / "bundle"
    shutil.copytree(one_bundle, copy)
    code = """
import sys, numpy as np
from pathlib import Path
from tvp import sdk
task, how = sdk.load(sys.argv[1]), sys.argv[2]
picture = np.zeros((64, 64, 3), np.uint8)
view = task.see(picture)
view.ask("How many?", max_new_tokens=3)
file = Path(sys.argv[1]) / "base" / "embed_tokens.npy"
size = file.stat().st_size
with open(file, "r+b") as stream:
    if how == "overwritten":
        stream.write(bytes(size))
    else:
        stream.truncate(200 if how == "shortened" else 0)
for ask in (view.ask, lambda *a, **o: task.ask(picture, *a, **o), view.rank):
    try:
        ask("What is it then?", **({"labels": ["a", "b"]} if ask == view.rank else {"max_new_tokens": 3}))
    except sdk.errors.BundleError as error:
        assert "was changed under the loaded task" in str(error), error
        print("told")
"""
    done = subprocess.run([sys.executable, "-c", code, str(copy), how], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["told"] * 3), done.stderr


def test_another_link_to_the_file_is_no_change(one_bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(one_bundle, copy)
    with sdk.load(copy) as task:
        os.link(copy / "base" / "embed_tokens.npy", tmp_path / "shared.npy")
        assert task.check()["different"] == 0
