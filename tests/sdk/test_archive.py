"""A bundle as one file: the same bundle comes out, and nothing else ever does."""

from __future__ import annotations

import json
import shutil
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from tests.bundles import listed_anew, reads_weights_from, seal
from tvp import sdk
from tvp.sdk.errors import BundleError
from tvp.sdk.formats import archive

PICTURE = np.full((20, 30, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def packed(one_bundle, tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "count.tvp"
    archive.pack(one_bundle, file)
    return file


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rewrite(packed, to, change=lambda infos: infos, data=lambda name, content: content):
    """Another archive: `change` the list of its entries, or the `data` of one."""
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(to, "w") as target:
        contents = {info.filename: source.read(info) for info in source.infolist()}
        for info in change([zipfile.ZipInfo(name) for name in contents]):
            target.writestr(info, data(info.filename, contents.get(info.orig_filename, b"evil")))
    return to


def test_what_is_packed_comes_out_again(one_bundle, packed, tmp_path):
    archive.unpack(packed, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(one_bundle)
    archive.pack(tmp_path / "out", tmp_path / "again.tvp")
    assert (tmp_path / "again.tvp").read_bytes() == packed.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.tvp", "out"]


def test_a_file_is_loaded_and_unpacked_once(one_bundle, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    with sdk.load(one_bundle) as a, sdk.load(packed) as b:
        assert b.ask(PICTURE, "What?").tokens == a.ask(PICTURE, "What?").tokens
        assert a.model is b.model
    (folder,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr("tvp.sdk.formats.archive.unpack", pytest.fail)
    with sdk.load(packed) as b:
        assert b.folder == folder


def test_a_base_takes_its_space_once(one_bundle, packed, tmp_path):
    for name in ("a", "b"):
        archive.unpack(packed, tmp_path / name)
    base = sorted(p.name for p in (tmp_path / "a" / "base").iterdir() if p.name != "manifest.json")
    assert all((tmp_path / "a" / "base" / n).samefile(tmp_path / "b" / "base" / n) for n in base)
    assert not (tmp_path / "a" / "preprocess.onnx").samefile(tmp_path / "b" / "preprocess.onnx")
    damaged = tmp_path / "a" / "base" / "tokenizer.json"
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[::-1])
    archive.unpack(packed, tmp_path / "c")
    assert files_of(tmp_path / "b") == files_of(tmp_path / "c") == files_of(one_bundle)
    assert [n for n in base if not (tmp_path / "a" / "base" / n).samefile(tmp_path / "c" / "base" / n)] == [
        damaged.name
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_what_an_ended_program_left_is_not_shared(packed, tmp_path):
    archive.unpack(packed, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / ".a.1234.partial")
    archive.unpack(packed, tmp_path / "b")
    assert (tmp_path / "b/base/tokenizer.json").stat().st_nlink == 1


def test_a_disk_without_links_has_copies(packed, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links")

    monkeypatch.setattr("os.link", refuse)
    for name in ("a", "b"):
        archive.unpack(packed, tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert not (tmp_path / "a/base/tokenizer.json").samefile(tmp_path / "b/base/tokenizer.json")


def test_nothing_is_overwritten(one_bundle, packed, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(BundleError, match="exists already"):
        archive.pack(one_bundle, tmp_path / "mine")
    with pytest.raises(BundleError, match="exists already"):
        archive.unpack(packed, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_damaged_bundle_is_not_packed(one_bundle, tmp_path):
    copy = shutil.copytree(one_bundle, tmp_path / "copy")
    (copy / "base" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged"):
        archive.pack(copy, tmp_path / "x.tvp")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def moved(name, to):
    def change(infos):
        for info in infos:
            if info.filename == name:
                info.filename = to
        return infos

    return change


def as_link(infos):
    infos[-1].external_attr = (stat.S_IFLNK | 0o777) << 16
    return infos


def compressed(infos):
    infos[-1].compress_type = zipfile.ZIP_DEFLATED
    return infos


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (moved("preprocess.onnx", "../preprocess.onnx"), r"'\.\./preprocess\.onnx', which its manifests do not list"),
        (moved("preprocess.onnx", "/tmp/preprocess.onnx"), "which its manifests do not list"),
        (moved("manifest.json", "other.json"), r"has no manifest\.json"),
        (lambda infos: [i for i in infos if i.filename != "preprocess.onnx"], r"lacks 'preprocess\.onnx'"),
        (lambda infos: [*infos, zipfile.ZipInfo("more.txt")], r"'more\.txt', which its manifests do not list"),
        (lambda infos: [*infos, zipfile.ZipInfo(infos[0].filename)], "holds a file twice"),
        (lambda infos: [*infos, *(zipfile.ZipInfo(f"{i}") for i in range(2000))], "at most 1,024"),
        (as_link, "a link or a device"),
        (compressed, "compressed or encrypted"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unusual_archives_are_refused_and_nothing_is_written(packed, tmp_path, change, says):
    evil = rewrite(packed, tmp_path / "evil.tvp", change)
    with pytest.raises(BundleError, match=says):
        archive.unpack(evil, tmp_path / "out" / "inner")
    assert not list((tmp_path / "out").iterdir())


def test_a_manifest_that_lists_files_elsewhere_is_refused(packed, tmp_path):
    def data(name, content):
        if name != "manifest.json":
            return content
        manifest = json.loads(content)
        manifest["files"]["../evil"] = {"size": 4, "sha256": "0"}
        return seal(manifest)

    evil = rewrite(packed, tmp_path / "evil.tvp", lambda infos: [*infos, zipfile.ZipInfo("../evil")], data)
    with pytest.raises(BundleError, match="outside of the bundle"):
        archive.unpack(evil, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tvp"]


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "not_listed.bin", "*/_ORT_MEM_ADDR_/*", ""])
def test_a_graph_that_reads_weights_from_elsewhere_is_refused(packed, tmp_path, place):
    model = reads_weights_from(place)

    def data(name, content):
        if name == "preprocess.onnx":
            return model
        if name == "manifest.json":
            content = listed_anew(content, "preprocess.onnx", model)
            return listed_anew(content, place, b"evil") if "*" in place else content
        return content

    def change(infos):  # a file may even be called as onnxruntime calls an address in memory
        return [*infos, zipfile.ZipInfo(place)] if "*" in place else infos

    evil = rewrite(packed, tmp_path / "evil.tvp", change, data)
    with pytest.raises(BundleError, match=r"preprocess\.onnx reads its weights from .* not a file that its"):
        archive.unpack(evil, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tvp"]


def test_sizes_that_the_archive_cannot_hold_are_refused(packed, tmp_path):
    """In the zip's table and in the manifest alike, so that only the file's own length speaks against them."""
    whole = bytearray(packed.read_bytes())
    entry = whole.rindex(b"preprocess.onnx") - 46  # of the table at the end, whose sizes stand at its bytes 20 and 24
    assert whole[entry : entry + 4] == b"PK\x01\x02"
    whole[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "evil.tvp").write_bytes(whole)
    with pytest.raises(BundleError, match=r"evil\.tvp is not an intact \.tvp file: it has .* bytes, and its files 2,1"):
        archive.unpack(tmp_path / "evil.tvp", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tvp"]


def test_every_changed_byte_is_noticed(packed, tmp_path):
    """Two hundred of them; the only bytes that say nothing are in the zip's own tables."""
    rng = np.random.default_rng(0)
    whole = packed.read_bytes()
    # Not a neighbour: its base would take a damaged one's place.
    archive.unpack(packed, tmp_path / "elsewhere" / "intact")
    intact = files_of(tmp_path / "elsewhere" / "intact")
    noticed = []
    for _ in range(200):
        broken = bytearray(whole)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        (tmp_path / "x.tvp").write_bytes(broken)
        try:
            archive.unpack(tmp_path / "x.tvp", tmp_path / "out")
        except BundleError as error:
            noticed.append(str(error))
        else:  # a time stamp, say
            assert files_of(tmp_path / "out") == intact
            shutil.rmtree(tmp_path / "out")
    assert len(noticed) > 190
    inside = sum(any(name in said for name in intact) for said in noticed)
    assert inside > 180  # the others are in the zip's tables
    assert all("x.tvp" in said or "manifest.json" in said for said in noticed)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_file_is_refused(packed, tmp_path, share):
    whole = packed.read_bytes()
    (tmp_path / "x.tvp").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BundleError, match=r"x\.tvp is not an intact"):
        sdk.load(tmp_path / "x.tvp")


def test_the_commands(one_bundle, tmp_path):
    def tvp(*arguments):
        command = [sys.executable, "-m", "tvp.sdk.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert "MB" in tvp("pack", one_bundle, tmp_path / "a.tvp").stdout
    assert tvp("unpack", tmp_path / "a.tvp", tmp_path / "a").returncode == 0
    again = tvp("unpack", tmp_path / "a.tvp", tmp_path / "a")
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    assert "tokens a second" in (timed := tvp("bench", tmp_path / "a", "--runs", 2)).stdout, timed
    facts = json.loads(tvp("bench", tmp_path / "a", "--runs", 2, "--json").stdout)
    assert 0 < facts["token"] < facts["ask"] < 60
    assert facts["see"] < facts["ask"]
    assert facts["peak_mib"] > 10
    assert facts["providers"]["decoder"] == "CPUExecutionProvider"


def test_a_cache_that_cannot_be_made_is_a_bundle_error(packed, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TVP_HOME", str(tmp_path / "file"))
    with pytest.raises(BundleError, match="set TVP_HOME to a folder that can be written"):
        sdk.load(packed)


def test_a_damaged_cache_of_a_file_says_what_to_delete(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("TVP_HOME", str(tmp_path))
    sdk.load(packed).close()
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "preprocess.onnx").unlink()
    with pytest.raises(BundleError, match=r"unpacked from .*delete the folder"):
        sdk.load(packed)
    shutil.rmtree(folder)
    with sdk.load(packed) as task:
        assert task.check()["cases"]


def test_a_file_that_is_all_table_is_refused_in_no_memory(tmp_path):
    """zipfile makes an object of each entry of the table before any can be counted."""
    entry = b"PK\x01\x02" + bytes(42)
    table = entry * 200_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, len(table), 0, 0)
    (tmp_path / "evil.tvp").write_bytes(table + end)
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"evil\.tvp is not an intact \.tvp file"):
        archive.unpack(tmp_path / "evil.tvp", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_that_is_replaced_while_it_is_read_is_not_filed_under_the_old_one(packed, tmp_path):
    with pytest.raises(BundleError, match="was replaced"):
        archive.unpack(packed, tmp_path / "out", "0" * 64)
    archive.unpack(packed, tmp_path / "out", archive.digest(packed))


def test_what_others_may_write_to_is_not_linked(packed, tmp_path):
    archive.unpack(packed, tmp_path / "a")
    (tmp_path / "a" / "base" / "tokenizer.json").chmod(0o666)
    archive.unpack(packed, tmp_path / "b")
    assert (tmp_path / "b" / "base" / "tokenizer.json").stat().st_nlink == 1
    assert (tmp_path / "b" / "base" / "embed_tokens.npy").stat().st_nlink == 2
