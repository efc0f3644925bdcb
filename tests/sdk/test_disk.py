"""A full disk: its path is named, whoever noticed it, and nothing half written is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvp.sdk.errors import BundleError
from tvp.sdk.formats import disk, moments, temporary
from tvp.sdk.formats.archive import pack, unpack
from tvp.trainer.files import write_whole


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        OSError("1024 requested and 0 written"),  # numpy
        RuntimeError("[enforce fail at inline_container.cc] . No space left on device"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_way_to_say_it_is_known(error, wrapped, tmp_path):
    target = tmp_path / "out.bin"

    def fails(file):
        file.write_bytes(b"half")
        if not wrapped:
            raise error
        try:
            raise error
        except Exception as cause:
            raise ValueError("cannot be written") from cause

    with pytest.raises(OSError, match=r"out\.bin") as caught, temporary.temporary_file(target) as file:
        fails(file)
    assert caught.value.errno in disk.FULL
    assert caught.value.filename == str(target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "x"), ValueError("no space"), KeyboardInterrupt()])
def test_other_errors_stay_as_they_are(error, tmp_path):
    def fails(file):
        file.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)) as caught, temporary.temporary_folder(tmp_path / "out") as folder:
        fails(folder / "half")
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_it_is_told_in_plain_words():
    said = disk.told(OSError(errno.ENOSPC, "No space left on device", "runs/a.bin"))
    assert said == (
        "The disk is full: there is no room for runs/a.bin. Nothing half written is left. Free some room, "
        "and try again."
    )
    assert disk.told(OSError(errno.EDQUOT, "x", "a")).startswith(
        "Your share of the disk is full: there is no room for a."
    )
    assert disk.told(OSError(errno.EACCES, "Permission denied", "a")) == "[Errno 13] Permission denied: 'a'"


def test_what_is_written_names_its_own_path(one_bundle, tmp_path, monkeypatch):
    """Prompts, settings, checkpoints and figures go through `write_whole`; bundles through a folder; .tvp files."""
    packed = tmp_path / "a.tvp"
    pack(one_bundle, packed)
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr("shutil.copyfileobj", full)
    for name, write in (
        ("prompt.safetensors", lambda: write_whole(tmp_path / "prompt.safetensors", b"x")),
        ("b.tvp", lambda: pack(one_bundle, tmp_path / "b.tvp")),
    ):
        with pytest.raises(OSError, match="No space left") as caught:
            write()
        assert Path(caught.value.filename) == tmp_path / name
    with pytest.raises(BundleError, match=r"cannot be unpacked to \S+c: No space left on device. Choose another"):
        unpack(packed, tmp_path / "c")
    assert list(tmp_path.iterdir()) == [packed]


def test_an_export_names_its_output(tmp_path, monkeypatch):
    from tvp.export.output import written_whole

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="bundle") as caught, written_whole(tmp_path / "bundle", False) as work:
        moments.Moments(np.ones(2), np.ones(2)).write(work)
    assert caught.value.filename == str(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


TINY = """
set -e
mount -t tmpfs -o size=256k none "$1"
cd "$1"
"$2" -m tvp.sdk.cli ask "$3" "$4" "What?" --save-prompted shown.png && exit 9
ls -A "$1" | grep -v filler && exit 8
exit 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's namespaces")
def test_a_disk_that_is_really_full(one_bundle, tmp_path):
    """A disk of 256 kB, of which a file leaves nothing."""
    place, picture = tmp_path / "tiny", tmp_path / "picture.png"
    place.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(picture)
    script = TINY.replace('cd "$1"', 'cd "$1"; head -c 262144 /dev/zero > filler 2>/dev/null || true')
    script = script.replace("set -e\nmount", "mount", 1).replace('none "$1"', 'none "$1" || exit 77', 1)
    command = ["unshare", "-Urm", "sh", "-c", script, "sh", str(place), sys.executable, str(one_bundle), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine makes no small disk")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Error: The disk is full: there is no room for shown.png." in done.stderr
