"""Data that a stranger wrote: what leads out of its folder, what is no data, and what is made to fill the memory."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from tvp.sdk.errors import DataError
from tvp.trainer import matrix, tasks
from tvp.trainer.data import Jsonl, parquet, split
from tvp.trainer.data.pages import unpacked_sizes


def opened(folder, task="custom", part="train", **options):
    return tasks.open_data(str(folder), tasks.get(task), part, 0, 0, **options)


def save(file, colour=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (colour, 9, 9)).save(file)
    return file


def write_rows(file, *images):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"image": str(i), "question": "?", "answer": "x"}) + "\n" for i in images))
    return file


# Out of the folder


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "link to a folder", "memes", "pope"])
def test_a_row_leads_out_of_its_folder_only_where_that_is_allowed(tmp_path, kind):
    secret = save(tmp_path / "secret" / "a.png")
    inside = save(tmp_path / "data" / "img" / "in.png").parent.parent
    (inside / "link.png").symlink_to(secret)
    (inside / "folder").symlink_to(secret.parent)
    named = {"above": "../secret/a.png", "absolute": str(secret), "link": "link.png"}.get(kind, "folder/a.png")
    file, task = inside / "a.jsonl", "custom"
    write_rows(file, "img/in.png", named)
    if kind == "memes":
        file, task = inside / "train.jsonl", "hateful-memes"
        file.write_text(json.dumps({"img": named, "label": 0, "text": "x"}))
    if kind == "pope":
        file, task = inside / "coco_pope_random.json", "pope-random"
        file.write_text(json.dumps({"image": named, "label": "no", "text": "Is there a cat in the image?"}))
    with pytest.raises(DataError, match=r"line [12] names the picture .* outside of the data folder .*--allow-outside"):
        opened(file, task, "test")
    data = opened(file, task, "test", allow_outside=True)
    assert data[len(data) - 1].picture.shape == (3, 4, 3)
    if kind == "above":
        messages: list[str] = []
        assert len(opened(file, task, skip_bad=messages)) == 1
        assert "line 2" in messages[0]


def test_links_inside_the_folder_are_followed(tmp_path):
    save(tmp_path / "a" / "in.png")
    (tmp_path / "link.png").symlink_to("a/in.png")
    (tmp_path / "folder").symlink_to("a")
    file = write_rows(tmp_path / "a.jsonl", "link.png", "folder/in.png", tmp_path / "a" / "in.png")
    assert len(Jsonl(file)) == 3
    (tmp_path / "elsewhere").symlink_to(tmp_path)  # the folder itself may be a link
    assert len(Jsonl(tmp_path / "elsewhere" / "a.jsonl")) == 3


def test_only_regular_files_are_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    for name, says in (
        ("pipe.png", "a pipe, a device"),
        ("/dev/zero", "a pipe, a device"),
        ("/proc/self/environ", "no regular file"),
        ("circle.png", "no file"),
        ("x" * 5000, "no file"),
        (".", "a folder"),
    ):
        with pytest.raises(DataError, match=rf"line 1.*{says}"):
            Jsonl(write_rows(tmp_path / "a.jsonl", name), allow_outside=True)
    os.mkfifo(tmp_path / "coco_pope_random.json")
    with pytest.raises(DataError, match="regular file"):
        opened(tmp_path, "pope-random", "test")


def test_class_folders_lead_nowhere_else(tmp_path):
    secret = save(tmp_path / "secret" / "a.png", 1)
    root = tmp_path / "data"
    for name in ("cat", "dog"):
        save(root / name / "1.png", 2)
    link = root / "cat" / "2.png"
    link.symlink_to(secret)
    with pytest.raises(DataError, match=r"'cat' hold .*2\.png, which is outside of the data folder"):
        opened(root)
    assert len(opened(root, allow_outside=True)) == 3 - 1  # one of the two cats is for the test
    messages: list[str] = []
    assert len(opened(root, skip_bad=messages)) == 2
    link.unlink()
    os.mkfifo(link)
    with pytest.raises(DataError, match=r"2\.png, which is no regular file"):
        opened(root)
    link.unlink()
    (root / "cow").symlink_to(secret.parent)
    with pytest.raises(DataError, match=r"class folder .*cow, which is outside"):
        opened(root)


# What is no data, and what is there twice


LEFTOVERS = (".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", ".Trash-1000", ".hidden")


def test_leftovers_of_other_programs_are_no_pictures_and_no_classes_at_any_depth(tmp_path):
    for name in ("cat", "dog"):
        for i in range(5):
            save(tmp_path / name / "deep" / f"{i}.png", i)
    plain = [str(file) for file in opened(tmp_path)._files]
    for leftover in LEFTOVERS:
        for place in (tmp_path, tmp_path / "cat", tmp_path / "cat" / "deep", tmp_path / "__MACOSX" / "cat"):
            save(place / leftover / "1-checkpoint.png", 99)
    for name in ("Thumbs.db", "desktop.ini", "._0.png", "ehthumbs.db"):
        (tmp_path / "cat" / "deep" / name).write_bytes(b"?")
    (tmp_path / "._mine.jsonl").write_bytes(b"?")
    assert [str(file) for file in opened(tmp_path)._files] == plain
    shutil.move(tmp_path / "cat", tmp_path / "train" / "cat")
    shutil.move(tmp_path / "dog", tmp_path / "train" / "dog")
    save(tmp_path / "test" / "@eaDir" / "cat" / "1.png")
    assert opened(tmp_path).names == ("cat", "dog")


def test_leftovers_in_imagenette_are_no_pictures(tmp_path):
    from tvp.trainer.data import IMAGENETTE

    for part in ("train", "val"):
        for code in IMAGENETTE:
            save(tmp_path / "imagenette2-160" / part / code / "1.JPEG")
            save(tmp_path / "imagenette2-160" / part / code / ".ipynb_checkpoints" / "1-checkpoint.JPEG")
        save(tmp_path / "imagenette2-160" / part / ".ipynb_checkpoints" / "1.JPEG")
    assert len(opened(tmp_path, "imagenette")) == len(IMAGENETTE)


def test_one_file_under_several_names_is_one_picture(tmp_path):
    for i in range(6):
        save(tmp_path / "a" / f"{i}.png", i)
        (tmp_path / f"link-{i}.png").symlink_to(f"a/{i}.png")
    names = [f"{place}{i}.png" for i in range(6) for place in ("a/", "./a/", "a/../a/", "link-")]
    train, validation = split(Jsonl(write_rows(tmp_path / "a.jsonl", *names)), 4, seed=0)
    assert (len(train), len(validation)) == (20, 4)
    seen, held = ({part[i].picture.tobytes() for i in range(len(part))} for part in (train, validation))
    assert (len(seen), len(held)) == (5, 1)
    assert not seen & held


def test_a_link_in_a_class_folder_is_no_second_picture(tmp_path):
    for name in ("cat", "dog"):
        for i in range(4):
            save(tmp_path / name / f"{i}.png", i)
            (tmp_path / name / f"copy-{i}.png").symlink_to(f"{i}.png")
    files = [set(opened(tmp_path, part=part)._files) for part in ("train", "test")]
    assert [len(part) for part in files] == [6, 2]
    assert not files[0] & files[1]
    (tmp_path / "dog" / "9.png").symlink_to("../cat/0.png")
    with pytest.raises(DataError, match=r"9\.png is a picture of 'cat' and of 'dog'"):
        opened(tmp_path)


def test_a_test_picture_that_is_a_training_picture_is_told(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / part / name / "1.png")
    (tmp_path / "test" / "cat" / "2.png").symlink_to("../../train/cat/1.png")
    with pytest.raises(DataError, match=r"2\.png is the picture .* of the other split too"):
        opened(tmp_path, part="test")
    assert len(opened(tmp_path)) == 2


# Parquet that is made to fill the memory


NAMES = json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})


def write_parquet(file, values, about=NAMES, **options):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([value if value is None else {"bytes": value, "path": None} for value in values], struct)
    table = pa.table({"image": images, "label": pa.array([0] * len(values))})
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), file, compression="zstd", **options)
    return file


@pytest.mark.parametrize("kind", ["repeated", "one value", "shared beginnings", "a footer that lies", "rows"])
def test_a_small_parquet_file_takes_no_large_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(parquet, "MOST_UNPACKED", (4, 2**20))
    monkeypatch.setattr(parquet, "AT_ONCE", 2**22)
    monkeypatch.setattr(parquet, "MOST_ROWS", 100_000)
    file, zeros = tmp_path / "train.parquet", bytes(2**20)
    if kind == "repeated":
        write_parquet(file, [zeros] * 64)
    elif kind == "shared beginnings":
        values = [zeros + str(i).encode() for i in range(64)]
        write_parquet(file, values, use_dictionary=False, column_encoding={"image.bytes": "DELTA_BYTE_ARRAY"})
    elif kind == "rows":
        write_parquet(file, [None] * 200_000)
    else:
        write_parquet(file, [zeros * 64], use_dictionary=False)
    if kind == "a footer that lies":
        size = pq.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size
        said = zigzag(size)
        assert file.read_bytes().count(said) == 1
        file.write_bytes(file.read_bytes().replace(said, b"\xd0" + b"\x80" * (len(said) - 2) + b"\x00"))
        assert pq.ParquetFile(file).metadata.row_group(0).column(0).total_uncompressed_size == 40
    says = "declares 200,000 rows" if kind == "rows" else "unpacks to more than"
    usual, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        with pytest.raises(DataError, match=rf"train\.parquet.*{says}"):
            opened(tmp_path)
    finally:
        pa.set_memory_pool(usual)
    assert counted.max_memory() < 2**24  # of 2**26


def zigzag(number):
    """A positive number as Thrift's compact protocol writes it."""
    number, written = number * 2, b""
    while number > 127:
        written += bytes([number & 127 | 128])
        number >>= 7
    return written + bytes([number])


def test_the_headers_of_pages_say_what_pyarrow_says(tmp_path):
    """Many pages, with a dictionary and without, with statistics, in both versions of the page header."""
    values = [os.urandom(300) for _ in range(500)]
    for version in ("1.0", "2.0"):
        for dictionary in (True, False):
            file = write_parquet(
                tmp_path / "train.parquet", values, use_dictionary=dictionary, data_page_version=version,
                data_page_size=1000, row_group_size=100, write_statistics=True, write_page_checksum=True,
            )  # fmt: skip
            about = pq.ParquetFile(file).metadata
            parts = [
                about.row_group(i).column(j) for i in range(about.num_row_groups) for j in range(about.num_columns)
            ]
            asked = [part for part in parts if part.path_in_schema != "image.path"]
            with open(file, "rb") as stream:
                sizes = unpacked_sizes(stream, {"image.bytes", "label"})
            assert len(sizes) == len(asked) == 10
            for size, part in zip(sizes, asked, strict=True):
                assert 0 < part.total_uncompressed_size - size < 2500  # the footer counts the headers too


@pytest.mark.parametrize(
    "footer", [b"", b"\x00", b"\xff" * 20, b"\x1c" * 50, b"\x19" * 50, b"\x15\x80" * 20, b"\x19\xfc" + b"\xff" * 9]
)
def test_a_damaged_footer_is_told(tmp_path, footer):
    file = io.BytesIO(footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ValueError, match=r"it (has no footer|is|lacks)|its footer"):
        unpacked_sizes(file, {"label"})


def test_a_damaged_parquet_file_is_told_and_ends_no_process(tmp_path):
    """pyarrow ends it where statistics are damaged and their column is asked for."""
    write_parquet(tmp_path / "train.parquet", [b"x"] * 20, use_dictionary=False)
    code = """if True:
        import random, sys
        from pathlib import Path
        from tvp.sdk.errors import DataError
        from tvp.trainer.data import Parquet
        file, rng = Path(sys.argv[1]), random.Random(0)
        whole, told = file.read_bytes(), 0
        for _ in range(1500):
            data = bytearray(whole)
            data[rng.randrange(len(data))] = rng.randrange(256)
            file.write_bytes(data)
            try:
                Parquet(file.parent, "train", "?")
            except DataError:
                told += 1
        assert told > 100
    """
    subprocess.run([sys.executable, "-c", code, tmp_path / "train.parquet"], check=True, timeout=120)


def test_the_commands_stay_in_the_folder_unless_they_are_told_otherwise(tmp_path, monkeypatch):
    """What a row names would travel in the golden pictures of an exported bundle."""
    from tvp.export import bundle
    from tvp.export.cli import export
    from tvp.trainer import preparation
    from tvp.trainer.cli import train
    from tvp.trainer.eval_cli import evaluate

    save(tmp_path / "secret.png")
    file = write_rows(tmp_path / "data" / "a.jsonl", "../secret.png")

    def reached(*arguments, **options):
        raise RuntimeError("the data is open")

    monkeypatch.setattr(bundle, "export", reached)
    monkeypatch.setattr(preparation, "split", reached)
    monkeypatch.setattr(matrix, "evaluate_matrix", reached)
    out = ["-o", str(tmp_path / "out")]
    for command, more in ((export, out), (train, [*out, "--tse", "0"]), (evaluate, [])):
        order = ["-m", "zoo:llava", "--task", "custom", "--data", str(file), *more]
        assert "outside of the data folder" in str(CliRunner().invoke(command, order).exception)
        assert "the data is open" in str(CliRunner().invoke(command, [*order, "--allow-outside"]).exception)
