"""Data sources: what they give, and that every bad row is named."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tvp.sdk.errors import DataError, RequestError
from tvp.trainer import tasks
from tvp.trainer.data import Jsonl, Parquet, Scenes, split


def write_jsonl(folder, rows):
    file = folder / "data.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (5, 4), (10, 20, 30)).save(tmp_path / "a.png")
    return "a.png"


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder, images, labels, names=("cat", "dog"), split="train"):
    about = {"info": {"features": {"label": {"names": list(names)}}}}
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": data, "path": None} for data in images],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": pa.array(labels, pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, folder / f"{split}-00000.parquet")


def test_jsonl_rows_come_as_written(tmp_path, picture):
    file = write_jsonl(
        tmp_path,
        [
            {"image": picture, "question": "What?", "answer": "a dog", "labels": ["a dog", "a cat"]},
            "",
            {"image": picture, "question": "Why?", "answer": "x", "caption": "a red x"},
        ],
    )
    data = Jsonl(file)
    assert len(data) == 2
    assert data[0].picture.shape == (4, 5, 3)
    assert data[0].questions[0].labels == ("a dog", "a cat")
    assert (data[0].caption, data[1].caption) == ("a a dog", "a red x")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{nonsense", "is not JSON"),
        ("[1]", "not a JSON object"),
        ({"image": "a.png", "question": "What?"}, "answer"),
        ({"image": "a.png", "question": " ", "answer": "x"}, "question"),
        ({"image": "a.png", "question": "q", "answer": "x", "lables": []}, "lables"),
        ({"image": "a.png", "question": "q", "answer": "x", "labels": ["y"]}, "none of its labels"),
        ({"image": "gone.png", "question": "q", "answer": "x"}, "gone.png.*no file"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(tmp_path, picture, row, says):
    good = {"image": picture, "question": "What?", "answer": "x"}
    with pytest.raises(DataError, match=rf"data\.jsonl, line 2.*{says}"):
        Jsonl(write_jsonl(tmp_path, [good, row]))


def test_an_unreadable_picture_is_named_when_it_is_read(tmp_path):
    (tmp_path / "b.jpg").write_text("this is no picture")
    data = Jsonl(write_jsonl(tmp_path, [{"image": "b.jpg", "question": "What?", "answer": "x"}]))
    with pytest.raises(DataError, match=r"line 1: .*b\.jpg"):
        data[0]


def test_an_empty_jsonl_says_what_a_row_is(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        Jsonl(write_jsonl(tmp_path, []))


def test_parquet_folders_give_pictures_labels_and_names(tmp_path):
    write_parquet(tmp_path, [png((255, 0, 0)), png((0, 255, 0))], [1, 0])
    data = Parquet(tmp_path, "train", "What is it?")
    assert len(data) == 2
    assert (data[0].picture == [255, 0, 0]).all()
    assert (data[0].questions[0].answer, data[0].questions[0].labels) == ("dog", ("cat", "dog"))
    assert data[1].caption == "a cat"


def test_bad_parquet_rows_and_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no test\*\.parquet"):
        Parquet(tmp_path, "test", "q")
    write_parquet(tmp_path, [b"no picture"], [0])
    with pytest.raises(DataError, match=r"train-00000\.parquet, row 0"):
        Parquet(tmp_path, "train", "q")[0]
    write_parquet(tmp_path, [png((0, 0, 0))], [7])
    with pytest.raises(DataError, match="row 0: the label 7"):
        Parquet(tmp_path, "train", "q")
    (tmp_path / "train-00000.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a parquet file"):
        Parquet(tmp_path, "train", "q")


def test_train_and_validation_share_no_sample():
    data = Scenes(40, seed=1, n_questions=1)
    train, validation = split(data, 10, seed=0)
    assert (len(train), len(validation)) == (30, 10)
    pictures = {sample.picture.tobytes() for sample in (train[i] for i in range(30))}
    assert not any(validation[i].picture.tobytes() in pictures for i in range(10))
    with pytest.raises(DataError, match="cannot be split"):
        split(Scenes(1, 0), 1, 0)


@pytest.mark.parametrize("seed", range(5))
def test_each_answer_has_its_share_of_the_validation(tmp_path, seed):
    answers = ["cat"] * 20 + ["dog"] * 10 + ["eel"] * 10
    for i in range(40):
        Image.new("RGB", (5, 4), (i, 20, 30)).save(tmp_path / f"{i}.png")
    rows = [{"image": f"{i}.png", "question": "What?", "answer": answer} for i, answer in enumerate(answers)]
    train, validation = split(Jsonl(write_jsonl(tmp_path, rows)), 8, seed=seed)
    drawn = sorted(validation[i].questions[0].answer for i in range(8))
    assert drawn == ["cat"] * 4 + ["dog"] * 2 + ["eel"] * 2
    others = split(Jsonl(write_jsonl(tmp_path, rows)), 8, seed=seed + 1)[1]
    assert {validation[i].picture.tobytes() for i in range(8)} != {others[i].picture.tobytes() for i in range(8)}
    assert len(train) == 32


def test_an_index_always_gives_the_same_scene_and_splits_differ():
    a, b = (tasks.open_data("scenes", tasks.get("bad-camera"), "train", 9, 3) for _ in range(2))
    test = tasks.open_data("scenes", tasks.get("bad-camera"), "test", 9, 3)
    assert (a[4].picture == b[4].picture).all()
    assert a[4].questions == b[4].questions
    assert not np.array_equal(a[4].picture, test[4].picture)
    with pytest.raises(IndexError):
        a[9]


def test_unknown_tasks_and_sources_are_named():
    with pytest.raises(RequestError, match="Did you mean bad-camera"):
        tasks.get("bad-camra")
    with pytest.raises(DataError, match="no data source"):
        tasks.open_data("nowhere", tasks.get("count"), "train", 1, 0)


def test_a_picture_is_trained_on_or_validated_on_whatever_is_asked_about_it(tmp_path):
    for i in range(10):
        Image.new("RGB", (5, 4), (i, 20, 30)).save(tmp_path / f"{i}.png")
    rows = [{"image": f"{i}.png", "question": f"What {j}?", "answer": "x"} for j in range(3) for i in range(10)]
    train, validation = split(Jsonl(write_jsonl(tmp_path, rows)), 6, seed=0)
    assert (len(train), len(validation)) == (24, 6)
    seen = {sample.picture.tobytes() for sample in (train[i] for i in range(24))}
    held = [sample.picture.tobytes() for sample in (validation[i] for i in range(6))]
    assert len(seen) == 8
    assert not seen.intersection(held)
    with pytest.raises(DataError, match="1 picture"):
        split(Jsonl(write_jsonl(tmp_path, rows[::10])), 1, seed=0)


def test_jsonl_rows_have_the_labels_and_the_caption_of_their_task(tmp_path, picture):
    rows = [
        {"image": picture, "question": "How many?", "answer": "5"},
        {"image": picture, "question": "Two?", "answer": "no", "labels": ["yes", "no"], "caption": "two cats"},
    ]
    task = tasks.get("clevr-count")
    data = tasks.open_usable(str(write_jsonl(tmp_path, rows)), task, "train", 2, 0)
    assert (data[0].questions[0].labels, data[0].caption) == (task.labels, "5 objects")
    assert (data[1].questions[0].labels, data[1].caption) == (("yes", "no"), "two cats")
    file = write_jsonl(tmp_path, [{**rows[0], "answer": "99"}])
    with pytest.raises(DataError, match=r"line 1: the answer '99' is none of its labels"):
        tasks.open_usable(str(file), task, "train", 2, 0)
