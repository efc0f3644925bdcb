"""Data sets in the layouts that they are published in, written here small; class folders; bad rows left out.

It is long because each published set is built as its makers lay it out, and all share the same checks.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from tvp.sdk.errors import DataError, RequestError
from tvp.trainer import tasks
from tvp.trainer.data import IMAGENETTE, ClassFolder, HatefulMemes, Jsonl, Parquet, Pope, Scenes

TEXT = 'café "naïve" \u2028 日本 {label}'  # quotes, accents, a line separator and braces


def opened(folder, task, split="train", **options):
    return tasks.open_data(str(folder), tasks.get(task), split, 0, 0, **options)


def save(file, colour=(9, 9, 9), size=(4, 3)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)
    return file


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def answers(data):
    return [data[i].questions[0].answer for i in range(len(data))]


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


# What torchvision loads. It checks CIFAR-10 and SVHN by the MD5 of the published files, so theirs are replaced by
# those of the files written here; nothing else of its loaders is.


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5(folder / name)]

    rng = np.random.default_rng(0)
    batches = [
        write(name, {"data": rng.integers(0, 256, (2, 3072), np.uint8), "labels": [i, 9 - i]})
        for i, name in enumerate(["data_batch_1", "data_batch_2", "test_batch"])
    ]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", batches[:2])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", batches[2:])
    name, digest = write("batches.meta", {"label_names": list(tasks.CIFAR10)})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return tmp_path


def test_cifar10_as_published(cifar):
    train, test = opened(cifar, "cifar10"), opened(cifar, "cifar10", "test")
    assert answers(train) == ["airplane", "truck", "automobile", "ship"]
    assert answers(test) == ["bird", "horse"]
    stored = pickle.loads((cifar / "cifar-10-batches-py" / "test_batch").read_bytes())["data"][1]
    assert (test[1].picture == stored.reshape(3, 32, 32).transpose(1, 2, 0)).all()
    assert test[1].questions[0].text == "This is a photo of a"
    assert test[1].questions[0].labels == tasks.CIFAR10
    assert test[1].caption == "a horse"


def test_damaged_cifar10_is_told(cifar):
    (cifar / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"CIFAR10 cannot load .*corrupted"):
        opened(cifar, "cifar10")


def test_svhn_as_published(tmp_path, monkeypatch):
    pictures = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 3), np.uint8)
    entries = {}
    for split, labels in (("train", [1, 10, 9]), ("test", [10, 2, 3])):  # 10 is how the set writes 0
        file = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(file, {"X": pictures, "y": np.array(labels, np.uint8)[:, None]})
        entries[split] = ["", file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", entries)
    assert answers(opened(tmp_path, "svhn")) == ["1", "0", "9"]
    test = opened(tmp_path, "svhn", "test")
    assert answers(test) == ["0", "2", "3"]
    assert (test[1].picture == pictures[..., 1]).all()
    assert test[0].questions[0].labels == tuple("0123456789")
    assert test[0].caption == "the digit 0"


@pytest.fixture
def imagenette(tmp_path):
    for split in ("train", "val"):
        for wnid in IMAGENETTE:
            save(tmp_path / "imagenette2-160" / split / wnid / f"{wnid}_1.JPEG")
    return tmp_path


def test_imagenette_as_published_has_natural_names(imagenette):
    for split in ("train", "test"):
        data = opened(imagenette, "imagenette", split)
        assert answers(data) == list(IMAGENETTE.values())
        assert data[5].questions[0].labels[5] == "French horn"
        assert (data[5].caption, data[5].picture.shape) == ("a French horn", (3, 4, 3))


def test_imagenette_names_are_those_of_torchvision():
    assert {wnid: names[0] for wnid, names in datasets.Imagenette._WNID_TO_CLASS.items()} == IMAGENETTE


def test_imagenette_without_a_class_is_told_instead_of_misnamed(imagenette):
    shutil.rmtree(imagenette / "imagenette2-160" / "train" / "n02102040")
    with pytest.raises(DataError, match=r"has no folder train.n02102040, with pictures of English springer"):
        opened(imagenette, "imagenette")


def test_the_folder_in_an_imagenette_archive_is_read_as_class_folders(imagenette):
    data = opened(imagenette / "imagenette2-160", "imagenette", "test")
    assert answers(data) == list(IMAGENETTE.values())


def test_an_unreadable_picture_of_a_published_set_is_named_or_left_out(imagenette):
    bad = imagenette / "imagenette2-160" / "val" / "n03000684" / "n03000684_1.JPEG"
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"n03000684_1\.JPEG is not a picture"):
        opened(imagenette, "imagenette", "test")[3]
    messages: list[str] = []
    data = opened(imagenette, "imagenette", "test", skip_bad=messages)
    assert answers(data) == [name for name in IMAGENETTE.values() if name != "chain saw"]
    assert len(messages) == 1
    assert str(bad) in messages[0]


def write_clevr(root, split, counts):
    base = root / "clevr" / "CLEVR_v1.0"
    scenes = []
    for i, count in enumerate(counts):
        name = f"CLEVR_{split}_{i:06}.png"
        save(base / "images" / split / name, size=(48, 32))
        scenes.append({"image_filename": name, "objects": [{}] * count})
    write_lines(base / "scenes" / f"CLEVR_{split}_scenes.json", [{"scenes": scenes}])


def test_clevr_as_published_is_counted(tmp_path):
    write_clevr(tmp_path, "train", [10, 3, 7])
    write_clevr(tmp_path, "val", [4])
    train, test = opened(tmp_path, "clevr-count"), opened(tmp_path, "clevr-count", "test")
    assert (answers(train), answers(test)) == (["10", "3", "7"], ["4"])
    assert train[0].questions[0].labels == ("3", "4", "5", "6", "7", "8", "9", "10")
    assert train[0].questions[0].text == "How many objects are there in this image? Answer with a single number."
    assert (train[0].caption, train[0].picture.shape) == ("10 objects", (32, 48, 3))
    assert tasks.get("clevr-count").fit == "pad"


def test_a_clevr_count_out_of_range_is_a_bad_row(tmp_path):
    write_clevr(tmp_path, "train", [3, 2, 11])
    data = opened(tmp_path, "clevr-count")
    for i, count in ((1, 2), (2, 11)):
        with pytest.raises(DataError, match=rf"picture {i} of CLEVRClassification: the label {count} is none of 3, 4"):
            data[i]
    messages: list[str] = []
    assert answers(opened(tmp_path, "clevr-count", skip_bad=messages)) == ["3"]
    assert len(messages) == 2


def test_clevr_without_its_scenes_is_told(tmp_path):
    write_clevr(tmp_path, "train", [3])
    with pytest.raises(DataError, match=r"CLEVRClassification cannot load .*CLEVR_val_scenes"):
        opened(tmp_path, "clevr-count", "test")


def test_torchvision_downloads_only_when_asked_to(tmp_path, monkeypatch):
    asked = []

    class Remote(datasets.CIFAR10):
        def __init__(self, root, train, download):
            asked.append((root, download))
            raise OSError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", Remote)
    with pytest.raises(DataError, match="no network"):
        opened(tmp_path / "new", "cifar10", download=True)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="no network"):
        opened(tmp_path, "cifar10")
    assert asked == [(tmp_path / "new", True), (tmp_path, False)]
    with pytest.raises(RequestError, match="cannot be downloaded; torchvision fetches cifar10, svhn"):
        opened(tmp_path, "hateful-memes", download=True)


# Hateful Memes


@pytest.fixture
def memes(tmp_path):
    for i in (1, 2, 3):
        save(tmp_path / "img" / f"0{i}.png")
    rows = [
        {"id": 1, "img": "img/01.png", "label": 0, "text": "cats rule"},
        {"id": 2, "img": "img/02.png", "label": 1, "text": TEXT},
    ]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "dev_seen.jsonl", rows[:1])
    write_lines(tmp_path / "test_seen.jsonl", [{"id": "03", "img": "img/03.png", "label": 1, "text": "x"}])
    return tmp_path


def test_hateful_memes_as_published(memes):
    train, test = opened(memes, "hateful-memes"), opened(memes, "hateful-memes", "test")
    assert (answers(train), answers(test)) == (["no", "yes"], ["yes"])
    assert train[1].questions[0].text == f'This is an image with: "{TEXT}" written on it. Is it hateful?'
    assert train[1].questions[0].labels == tasks.get("hateful-memes").labels == ("no", "yes")
    assert (train[0].caption, train[1].caption) == ("a harmless meme", "a hateful meme")


def test_a_file_of_a_published_set_may_be_named(memes):
    assert answers(opened(memes / "dev_seen.jsonl", "hateful-memes", "test")) == ["no"]
    own = {"image": "img/01.png", "question": "Is it?", "answer": "yes", "labels": ["no", "yes"]}
    file = write_lines(memes / "mine.jsonl", [own])
    assert answers(opened(file, "hateful-memes", "test")) == ["yes"]


def test_memes_without_a_seen_test_are_tested_on_dev_seen_and_say_so(memes, caplog):
    (memes / "test_seen.jsonl").unlink()
    assert answers(opened(memes, "hateful-memes", "test")) == ["no"]
    assert "no test_seen.jsonl; the test is on dev_seen.jsonl" in caplog.text
    (memes / "dev_seen.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no test_seen.jsonl or dev_seen.jsonl"):
        opened(memes, "hateful-memes", "test")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"img": "img/01.png", "text": "x"}, "no label. The first release kept"),
        ({"img": "img/01.png", "text": "x", "label": 2}, "label 2; it must be 0"),
        ({"img": "img/01.png", "text": "x", "label": True}, "label True"),
        ({"img": "img/01.png", "text": "x", "label": "1"}, "label '1'"),
        ({"img": "img/01.png", "label": 1}, "no text under 'text'"),
        ({"img": "img/99.png", "text": "x", "label": 1}, "img/99.png.*no file"),
        ({"text": "x", "label": 1}, "no text under 'img'"),
        ("[", "is not JSON"),
    ],
)
def test_bad_memes_are_named_or_left_out(memes, row, says):
    good = {"img": "img/01.png", "text": "x", "label": 1}
    file = write_lines(memes / "train.jsonl", [good, "", row, good])
    with pytest.raises(DataError, match=rf"train\.jsonl, line 3.*{says}"):
        HatefulMemes(file)
    messages: list[str] = []
    assert len(opened(memes, "hateful-memes", skip_bad=messages)) == 2
    assert len(messages) == 1
    assert "train.jsonl, line 3" in messages[0]


# POPE


@pytest.fixture
def pope(tmp_path):
    name = "COCO_val2014_000000000001.jpg"
    save(tmp_path / "val2014" / name)
    for kind in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": 1, "image": name, "text": "Is there a snowboard in the image?", "label": "yes"},
            {"question_id": 2, "image": name, "text": "Is there an umbrella in the imange?", "label": "no"},
            {"question_id": 3, "image": name, "text": f"{kind}?", "label": "no"},
        ]
        write_lines(tmp_path / f"coco_pope_{kind}.json", rows)
    return tmp_path


@pytest.mark.parametrize("kind", ["random", "popular", "adversarial"])
def test_pope_as_published(pope, kind):
    data = opened(pope, f"pope-{kind}", "test")
    assert answers(data) == ["yes", "no", "no"]
    assert data[2].questions[0].text == f"{kind}?"
    assert data[0].questions[0].labels == ("yes", "no")
    assert [data[i].caption for i in range(3)] == ["a snowboard", "a scene without an umbrella", "a scene"]
    with pytest.raises(DataError, match="questions for the test only"):
        opened(pope, f"pope-{kind}", "train")


def test_a_file_of_pope_may_be_named(pope):
    assert answers(opened(pope / "coco_pope_popular.json", "pope-random", "test")) == ["yes", "no", "no"]
    with pytest.raises(DataError, match="questions for the test only"):
        opened(pope / "coco_pope_popular.json", "pope-random", "train")


@pytest.mark.parametrize("folder", ["images", "."])
def test_pope_finds_its_pictures_in_other_folders(pope, folder):
    (pope / "val2014").rename(pope / "images")
    if folder == ".":
        for file in (pope / "images").iterdir():
            file.rename(pope / file.name)
    assert len(Pope(pope / "coco_pope_random.json")) == 3


def test_bad_pope_rows_are_named_or_left_out(pope):
    name = "COCO_val2014_000000000001.jpg"
    rows = [
        {"image": name, "text": "Is there a cat in the image?", "label": "maybe"},
        {"image": "gone.jpg", "text": "Is there a cat in the image?", "label": "no"},
        {"image": name, "text": "Is there a cat in the image?", "label": "no"},
    ]
    file = write_lines(pope / "coco_pope_random.json", rows)
    with pytest.raises(DataError, match=r"coco_pope_random\.json, line 1 has the label 'maybe'; it must be yes or no"):
        Pope(file)
    messages: list[str] = []
    assert len(opened(pope, "pope-random", "test", skip_bad=messages)) == 1
    assert [message.split(",")[1][:7] for message in messages] == [" line 1", " line 2"]
    assert "val2014" in messages[1]


# Class folders


def write_classes(root, **n_pictures):
    for name, n in n_pictures.items():
        for i in range(n):
            save(root / name / f"{i:02}.png", (i, 0, 0))
    return root


def test_class_folders_in_splits(tmp_path):
    write_classes(tmp_path / "train", red_fox=2, café=1, zebra=1)
    write_classes(tmp_path / "val", red_fox=1)
    save(tmp_path / "train" / "zebra" / "deep" / "er.JPG")
    train, test = opened(tmp_path, "custom"), opened(tmp_path, "custom", "test")
    assert answers(train) == ["café", "red fox", "red fox", "zebra", "zebra"]
    assert answers(test) == ["red fox"]
    assert train[0].questions[0].labels == test[0].questions[0].labels == ("café", "red fox", "zebra")
    assert (test[0].questions[0].text, test[0].caption) == ("What is in the photo?", "a red fox")
    write_classes(tmp_path / "test", zebra=1)
    assert answers(opened(tmp_path, "custom", "test")) == ["zebra"]


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("Training", "Testing"), ("train", "valid")])
def test_splits_may_be_called_otherwise(tmp_path, train, test):
    for split in (train, test):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / split / name / "0.png")
    for split in ("train", "test"):
        data = tasks.open_data(str(tmp_path), tasks.get("custom"), split, 0, 0)
        assert data[0].questions[0].labels == ("cat", "dog")
        assert len(data) == 2


def test_class_folders_without_splits_are_split_the_same_way_always(tmp_path):
    write_classes(tmp_path, cat=10, dog=3, eel=1, train=2)  # a class may be called train: its folder holds no folders
    train, test = opened(tmp_path, "custom"), opened(tmp_path, "custom", "test")
    assert sorted(answers(test)) == ["cat", "cat", "dog", "train"]
    assert sorted(answers(train)) == ["cat"] * 8 + ["dog"] * 2 + ["eel", "train"]
    shown = [
        [(s.questions[0].answer, s.picture[0, 0, 0]) for s in map(d.__getitem__, range(len(d)))] for d in (train, test)
    ]
    assert not set(shown[0]) & set(shown[1])
    again = tasks.open_data(str(tmp_path), tasks.get("custom"), "test", 0, seed=99)
    assert [again[i].picture[0, 0, 0] for i in range(4)] == [red for _, red in shown[1]]


def test_class_folders_of_a_task_with_labels_must_be_among_them(tmp_path):
    write_classes(tmp_path, French_horn=2, tench=2)
    assert opened(tmp_path, "imagenette")[0].questions[0].labels == tuple(IMAGENETTE.values())
    write_classes(tmp_path, golf_bal=2)
    with pytest.raises(DataError, match=r"class 'golf bal', which is none.*Did you mean golf ball"):
        opened(tmp_path, "imagenette")


def test_bad_class_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no layout.*Looked for: train"):
        opened(tmp_path, "custom")
    with pytest.raises(DataError, match="holds no class folders"):
        ClassFolder(tmp_path, "train", "?")
    write_classes(tmp_path, gas_pump=2, cat=2)
    write_classes(tmp_path, **{"gas pump": 2})
    with pytest.raises(DataError, match="2 classes that are called 'gas pump'"):
        opened(tmp_path, "custom")
    shutil.rmtree(tmp_path / "gas_pump")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"class folder .*empty holds no pictures"):
        opened(tmp_path, "custom")
    write_classes(tmp_path / "train", dog=1, cat=1)
    with pytest.raises(DataError, match="class folders in train, and none in test or testing or val or valid"):
        opened(tmp_path, "custom", "test")
    write_classes(tmp_path / "test", cow=1)
    with pytest.raises(DataError, match=r"no training pictures of .*cow, but of cat, dog"):
        opened(tmp_path, "custom", "test")


def test_a_phones_pictures_in_class_folders_are_read_or_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    write_classes(tmp_path / "train", cat=1, dog=1)
    (tmp_path / "train" / "dog" / "00.png").unlink()
    (tmp_path / "train" / "dog" / "00.HEIC").write_bytes(b"\0\0\0\x0cftypheic" + bytes(99))
    with pytest.raises(DataError, match=r"00\.HEIC.*pip install 'tvp-edge\[heif\]'"):
        opened(tmp_path, "custom")[1]


def test_bad_pictures_in_class_folders_are_named_or_left_out(tmp_path):
    write_classes(tmp_path / "train", cat=2, dog=2)
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"?")
    (tmp_path / "train" / "dog" / "00.png").write_bytes(b"no picture")
    data = opened(tmp_path, "custom")
    with pytest.raises(DataError, match=r"dog.00\.png"):
        data[2]
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes\.txt is no picture by its name"):
        opened(tmp_path, "custom")
    messages: list[str] = []
    assert answers(opened(tmp_path, "custom", skip_bad=messages)) == ["cat", "cat", "dog"]
    assert [m for m in messages if "notes.txt" in m]
    assert [m for m in messages if "00.png" in m]
    assert len(messages) == 2


# Parquet and JSONL


def png(colour=(0, 0, 0)):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(file, labels, names=("cat", "dog"), images=None, column="image"):
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(), "path": None} for _ in labels] if images is None else images
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.float64() if any(isinstance(label, float) for label in labels) else pa.int64()
    table = pa.table({column: pa.array(images, struct), "label": pa.array(labels, kind)})
    about = {"info": {"features": {"label": {"names": list(names)}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), file)
    return file


def test_parquet_as_hubs_lay_it_out(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [1, 0], column="img")
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [1], column="img")
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [0], column="img")
    assert answers(opened(tmp_path, "custom")) == ["dog", "cat", "dog"]
    assert answers(opened(tmp_path, "custom", "test")) == ["cat"]


def test_bad_parquet_rows_are_named_by_their_own_file_or_left_out(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [0, 1])
    images = [{"bytes": data, "path": "a.png"} for data in (png(), b"no picture", None, png(), png())]
    write_parquet(tmp_path / "train-1.parquet", [1, 0, 0, 2, None], images=[*images[:4], None])
    with pytest.raises(DataError, match=r"train-1\.parquet, row 3: the label 2 is none of the 2 classes"):
        opened(tmp_path, "custom")
    messages: list[str] = []
    assert answers(opened(tmp_path, "custom", skip_bad=messages)) == ["cat", "dog", "dog"]
    assert [message.split("parquet, ")[1].split(" ")[1].rstrip(":") for message in messages] == ["3", "4", "1", "2"]
    assert "label None" in messages[1]
    assert "A path alone is not followed" in messages[3]


def test_parquet_files_that_cannot_be_right_are_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0], names=("cat", "cat"))
    with pytest.raises(DataError, match="2 classes that are called 'cat'"):
        Parquet(tmp_path, "train", "?")
    write_parquet(tmp_path / "train.parquet", [0], names=("cat", " "))
    with pytest.raises(DataError, match="class without a name"):
        Parquet(tmp_path, "train", "?")
    write_parquet(tmp_path / "train.parquet", [0.5])
    with pytest.raises(DataError, match="labels of type double"):
        Parquet(tmp_path, "train", "?")
    write_parquet(tmp_path / "train.parquet", [])
    with pytest.raises(DataError, match="has 0 rows"):
        Parquet(tmp_path, "train", "?")
    write_parquet(tmp_path / "train.parquet", [0])
    write_parquet(tmp_path / "train2.parquet", [0], names=("dog", "cat"))
    with pytest.raises(DataError, match=r"train2\.parquet has the classes"):
        Parquet(tmp_path, "train", "?")
    with pytest.raises(DataError, match="class 'cow', which is none of the task's labels"):
        opened(write_parquet(tmp_path / "other" / "train.parquet", [0], names=("cow", "cat")).parent, "cifar10")


def test_real_photos_are_read_as_the_task_has_them(cifar10):
    data = opened(cifar10, "cifar10", "test")
    assert len(data) == 10_000
    assert data[0].picture.shape == (32, 32, 3)
    assert {data[i].questions[0].answer for i in range(50)} <= set(tasks.CIFAR10)
    assert data[0].questions[0].labels == tasks.CIFAR10


def test_jsonl_takes_label_for_answer(tmp_path):
    save(tmp_path / "á.png")
    row = {"image": "á.png", "question": TEXT, "label": "a dog"}
    data = Jsonl(write_lines(tmp_path / "a.jsonl", [row, json.dumps(row, ensure_ascii=False)]))
    assert [data[i].questions[0].text for i in (0, 1)] == [TEXT, TEXT]
    assert answers(data) == ["a dog", "a dog"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"answer": "x", "label": "x"}, "both 'answer' and 'label'"),
        ({"label": 3}, "no text under 'label'"),
        ({"answer": "x", "labels": ["x", "y", " x"]}, "a label twice"),
        ({"answer": "x", "labels": "x"}, "labels must be a list"),
        ({"answer": "x", "caption": 5}, "no text under 'caption'"),
        ({"answer": "\ud800"}, "half a character"),
        ({"answer": "x", "image": "a\0.png"}, "there is no file"),
    ],
)
def test_bad_jsonl_rows_are_named(tmp_path, more, says):
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.jsonl, line 1.*{says}"):
        Jsonl(write_lines(tmp_path / "a.jsonl", [{"image": "a.png", "question": "?", **more}]))


def test_bad_rows_of_all_kinds_are_listed_and_left_out(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    good = json.dumps({"image": "a.png", "question": "?", "answer": "x"}).encode()
    lines = [
        b"\xef\xbb\xbf" + good,
        b"nonsense",
        good.replace(b"x", b"\xff"),
        good.replace(b"a.png", b"b.png"),
        b"",
        good,
    ]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\r\n".join(lines))
    messages: list[str] = []
    assert len(opened(file, "custom", skip_bad=messages)) == 2
    assert [message.split("a.jsonl, ")[1][:6] for message in messages] == ["line 2", "line 3", "line 4"]
    assert "not UTF-8" in messages[1]
    file.write_bytes(b"\r\n".join(lines[3:4]))
    with pytest.raises(DataError, match="No row is left: all 1 are bad"):
        opened(file, "custom", skip_bad=[])
    file.write_bytes(lines[1])
    with pytest.raises(DataError, match=r"has no rows\..*1 are bad; the last: .*line 1"):
        opened(file, "custom", skip_bad=[])


def test_a_list_for_bad_rows_stays_empty_where_all_are_good(tmp_path):
    messages: list[str] = []
    write_parquet(tmp_path / "train.parquet", [0, 1])
    assert answers(opened(tmp_path, "custom", skip_bad=messages)) == ["cat", "dog"]
    assert isinstance(tasks.open_data("scenes", tasks.get("count"), "test", 5, 0, skip_bad=messages), Scenes)
    assert messages == []


# Which source a folder is


def test_the_layout_of_the_task_goes_before_the_others(memes):
    write_parquet(memes / "train.parquet", [0])
    assert answers(opened(memes, "hateful-memes")) == ["no", "yes"]
    assert answers(opened(memes, "custom")) == ["cat"]


def test_a_folder_of_another_set_is_told(memes):
    with pytest.raises(
        DataError, match=r"Looked for: cifar-10-batches-py \(cifar10\); train.*looks like .*name the file: dev"
    ):
        opened(memes, "cifar10")
    with pytest.raises(RequestError, match="no split 'dev'"):
        opened(memes, "hateful-memes", "dev")
    with pytest.raises(RequestError, match="no data of its own"):
        opened("", "svhn")


def test_pictures_beside_a_jsonl_file_are_no_classes(tmp_path):
    write_classes(tmp_path, day=1, night=1)
    write_lines(tmp_path / "mine.jsonl", [{"image": "day/00.png", "question": "?", "answer": "x"}])
    with pytest.raises(DataError, match=r"name the file: mine\.jsonl"):
        opened(tmp_path, "custom")


# Tasks


def test_tasks_allow_only_what_leaves_their_answers_as_they_are():
    allowed = {name: set(task.augment) for name, task in tasks.TASKS.items()}
    assert allowed["cifar10"] == allowed["imagenette"] == {"crop", "flip", "colour"}
    assert allowed["svhn"] == {"crop", "colour"}
    assert allowed["hateful-memes"] == {"colour"}
    assert allowed["custom"] == set()
    for task in tasks.TASKS.values():
        assert not (task.fit == "pad" and "crop" in task.augment), task.name
        assert task.source != "scenes" or task.augment == ("flip",), task.name
    assert {tasks.get(f"pope-{kind}").metric for kind in ("random", "popular", "adversarial")} == {"pope"}
    assert tasks.get("hateful-memes").metric == "auc"


def test_tasks_of_unknown_metrics_and_augmentations_are_refused():
    with pytest.raises(RequestError, match="metric 'f1'"):
        tasks.TaskDefinition("mine", metric="f1")
    with pytest.raises(RequestError, match="augmentation 'color'"):
        tasks.TaskDefinition("mine", augment=("color",))


def test_a_camera_changes_pictures_alone_and_each_in_its_own_way(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (200, 200, 200)).save(tmp_path / "train" / name / f"{i}.png")
    plain = tasks.get("cifar10")
    clean = tasks.open_data(str(tmp_path), plain, "train", 0, 3)
    bad = tasks.open_data(str(tmp_path), tasks.get("bad-camera-cifar10"), "train", 0, 3)
    assert len(clean) == len(bad) == 4
    expected, noise = 200 * 0.32 * np.array([1, 0.62, 0.38]), 0.04  # of the bad camera
    for i in range(4):
        assert (bad[i].questions, bad[i].caption) == (clean[i].questions, clean[i].caption)
        assert np.abs(bad[i].picture.mean((0, 1)) - expected).max() < 3 * 255 * noise / 8
    assert np.array_equal(bad[1].picture, bad[1].picture)
    assert not np.array_equal(bad[0].picture, bad[1].picture)  # its noise is not that of the next
