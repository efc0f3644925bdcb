"""Pairs and pictures without questions, from folders, JSONL and cameras; and the guard that judges a lens."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.tiny import save_tiny
from tvp.sdk.errors import CheckError, DataError, RequestError
from tvp.trainer import guard, tasks
from tvp.trainer.cli import train as train_command
from tvp.trainer.config import TrainConfig, make_config
from tvp.trainer.data import Jsonl
from tvp.trainer.eval_cli import evaluate as evaluate_command
from tvp.trainer.evaluate import summarise
from tvp.trainer.train import train

N = 10


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Ten clean scenes as PNG, and the same half as bright as JPEG; in a folder below, too."""
    root = tmp_path_factory.mktemp("pictures")
    data = tasks.open_data("scenes", tasks.get("scenes"), "train", N, 0)
    for folder in ("bad/below", "good/below"):
        (root / folder).mkdir(parents=True)
    for i in range(N):
        name = f"below/{i}" if i % 2 else f"{i}"
        Image.fromarray(data[i].picture).save(root / "good" / f"{name}.png")
        Image.fromarray(data[i].picture // 2).save(root / "bad" / f"{name}.jpg", quality=95)
    return root


@pytest.fixture
def config(zoo):
    return TrainConfig(
        (str(zoo[0]),),
        method="lens",
        task="custom",
        lens="colour",
        frame=False,
        learn_from="auto",
        canvas=64,
        batch=32,
        steps=2,
        tse=0.0,
        fca=1.0,
        reference="clean",
        relative=True,
        n_validation=4,
        guard_model="none",
        keep="last",
    )


def lines_of(folders, *keys, **more):
    """A JSONL file's rows about the pictures."""
    rows = []
    for i in range(N):
        name = f"below/{i}" if i % 2 else f"{i}"
        row = {"image": f"bad/{name}.jpg", "clean": f"good/{name}.png", "question": "How many?", "answer": "2"}
        rows.append({key: value for key, value in (row | more).items() if key in keys})
    return rows


def write(folders, rows, name="rows.jsonl"):
    (folders / name).write_text("\n".join(map(json.dumps, rows)))
    return str(folders / name)


def test_two_folders_are_pairs_by_their_names(config, folders, tmp_path):
    config = replace(config, pairs=(str(folders / "bad"), str(folders / "good")))
    result = train(config, tmp_path, quiet=True)
    assert (result.learned_from, result.why) == ("pairs", "each picture has a clean one")
    assert result.prompt.facts["data"]["n"] == N
    assert result.prompt.facts["config"]["batch"] == 8  # ten less two for validation
    assert result.alignment.shift < 0.5


def test_names_in_one_folder_only_are_left_out_and_told(config, folders, tmp_path, caplog):
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        for i in range(9):
            (tmp_path / name / f"{i}.png").write_bytes((folders / "good" / "0.png").read_bytes())
    (tmp_path / "bad" / "8.png").rename(tmp_path / "bad" / "alone.png")
    pairs = replace(config, pairs=(str(tmp_path / "bad"), str(tmp_path / "good")))
    assert train(pairs, tmp_path / "run", quiet=True).prompt.facts["data"]["n"] == 8
    assert "2 pictures are in one folder only: 8, alone" in caplog.text
    (tmp_path / "bad" / "7.png").unlink()
    with pytest.raises(DataError, match="There are 7 pairs of pictures; a lens needs at least 8"):
        train(pairs, tmp_path / "few", quiet=True)
    with pytest.raises(DataError, match="are one folder"):
        train(replace(config, pairs=(str(tmp_path / "bad"),) * 2), tmp_path / "one", quiet=True)


def test_pictures_that_cannot_be_read_are_left_out_where_that_is_asked(config, folders, tmp_path, caplog):
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        for i in range(9):
            (tmp_path / name / f"{i}.png").write_bytes((folders / "good" / "0.png").read_bytes())
    (tmp_path / "good" / "3.png").write_bytes(b"no picture")
    pairs = replace(config, pairs=(str(tmp_path / "bad"), str(tmp_path / "good")))
    with pytest.raises(DataError, match=r"3\.png"):
        train(pairs, tmp_path / "run", quiet=True)
    assert train(pairs, tmp_path / "run", quiet=True, skip_bad=True).prompt.facts["data"]["n"] == 8
    assert "left 1 bad pictures out" in caplog.text


def test_rows_of_jsonl_name_clean_pictures_and_need_no_question(config, folders, tmp_path):
    data = write(folders, lines_of(folders, "image", "clean"))
    rows = Jsonl(folders / "rows.jsonl")
    assert rows.has_clean
    assert rows.row(0).questions == rows[0].questions == ()
    assert np.array_equal(rows[1].clean, np.asarray(Image.open(folders / "good" / "below" / "1.png")))
    result = train(replace(config, data=data), tmp_path / "a", quiet=True)
    folder = train(replace(config, pairs=(str(folders / "bad"), str(folders / "good"))), tmp_path / "b", quiet=True)
    assert result.learned_from == "pairs"
    assert result.without["distance"] == pytest.approx(folder.without["distance"], abs=0.2)


def test_rows_with_clean_pictures_and_answers_can_be_learned_from_both_ways(config, folders, tmp_path):
    data = write(folders, lines_of(folders, "image", "clean", "question", "answer"))
    assert train(replace(config, data=data), tmp_path / "a", quiet=True).learned_from == "pairs"
    both = train(replace(config, data=data, learn_from="answers", batch=4), tmp_path / "b", quiet=True)
    assert {"answer", "fca"} <= set(both.steps[0])


def test_rows_without_questions_are_not_evaluated(config, folders):
    data = write(folders, lines_of(folders, "image", "clean"))
    with pytest.raises(DataError, match="has no questions to ask"):
        CliRunner().invoke(
            evaluate_command, ["-m", config.models[0], "--task", "custom", "--data", data], catch_exceptions=False
        )


@pytest.mark.parametrize("key", ["clean", "question"])
def test_every_row_or_none_has_a_clean_picture_and_a_question(folders, key):
    rows = lines_of(folders, "image", "clean", "question", "answer")
    for name in (key, "answer") if key == "question" else (key,):
        del rows[4][name]
    write(folders, rows, "some.jsonl")
    with pytest.raises(DataError, match=f"line 5 has no '{key}', and line 1 has one. Every row or none has"):
        Jsonl(folders / "some.jsonl")
    bad = []
    assert len(Jsonl(folders / "some.jsonl", bad)) == N - 1
    assert len(bad) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "bad/0.jpg"}, "has no text under 'question'"),
        ({"image": "bad/0.jpg", "clean": "good/0.png", "question": "?"}, "has no text under 'answer'"),
        ({"image": "bad/0.jpg", "clean": "good/0.png", "answer": "2"}, "has no text under 'question'"),
        ({"image": "bad/0.jpg", "clean": ""}, "has no text under 'clean'"),
        ({"image": "bad/0.jpg", "clean": "good/none.png"}, "there is no file"),
        ({"image": "bad/0.jpg", "clean": "../outside.png"}, "there is no file|outside"),
    ],
)
def test_a_bad_row_is_named(folders, row, said):
    write(folders, [row], "bad.jsonl")
    with pytest.raises(DataError, match=rf"line 1.*({said})"):
        Jsonl(folders / "bad.jsonl")


def test_recorded_pairs_are_not_spoilt_a_second_time(config, folders, tmp_path):
    data = write(folders, lines_of(folders, "image", "clean"))
    with pytest.raises(DataError, match=r"would spoil its pictures a second time.*--camera none"):
        train(replace(config, data=data, camera="fog:3"), tmp_path, quiet=True)
    with pytest.raises(RequestError, match="own camera spoilt"):
        replace(config, pairs=(str(folders / "bad"), str(folders / "good")), camera="fog:3")


def test_good_pictures_and_a_camera_are_pairs(config, folders, tmp_path):
    good = replace(config, pictures=str(folders / "good"), camera="gain=0.5")
    result = train(good, tmp_path / "a", quiet=True)
    assert result.learned_from == "pairs"
    assert result.alignment.shift == 0
    # The task's own camera is of the task's own data, and a device's pictures are spoilt already.
    device = replace(config, task="bad-camera", pictures=str(folders / "bad"), like=str(folders / "good"))
    assert train(device, tmp_path / "b", quiet=True).learned_from == "unpaired"


def test_a_devices_pictures_and_other_good_ones_are_unpaired(config, folders, tmp_path):
    device = replace(config, pictures=str(folders / "bad"), like=str(folders / "good"))
    result = train(device, tmp_path / "folders", quiet=True)
    assert (result.learned_from, result.why) == ("unpaired", "there are other good pictures")
    assert result.alignment is None
    assert set(result.without) == {"distance"}
    drawn = train(replace(device, like="scenes", n_train=8), tmp_path / "scenes", quiet=True)
    assert drawn.prompt.facts["config"]["batch"] == 7  # eight scenes less one for validation


def test_few_pictures_are_refused_whichever_way_they_come(config, folders, tmp_path):
    (tmp_path / "few").mkdir()
    for i in range(7):
        (tmp_path / "few" / f"{i}.png").write_bytes((folders / "good" / "0.png").read_bytes())
    few, many = str(tmp_path / "few"), str(folders / "good")
    with pytest.raises(DataError, match="7 pairs of pictures"):
        train(replace(config, pictures=few, camera="fog:3"), tmp_path / "a", quiet=True)
    with pytest.raises(DataError, match="7 pictures; a lens needs"):
        train(replace(config, pictures=few, like=many), tmp_path / "b", quiet=True)
    with pytest.raises(DataError, match="7 good pictures"):
        train(replace(config, pictures=many, like=few), tmp_path / "c", quiet=True)
    data = write(folders, lines_of(folders, "image", "clean")[:7], "seven.jsonl")
    with pytest.raises(DataError, match="7 pairs of pictures"):
        train(replace(config, data=data), tmp_path / "d", quiet=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pictures": "good"}, "no questions and answers to learn from"),
        ({"pictures": "good", "learn_from": "pairs"}, "There are no clean pictures"),
        ({"pictures": "good", "learn_from": "pixels"}, "There are no clean pictures"),
        ({"data": "pairs", "learn_from": "answers"}, "Learn from the clean pictures instead"),
        ({"data": "pairs", "tse": 0.1, "learn_from": "pairs"}, "TSE makes pictures fit their captions"),
    ],
)
def test_data_without_what_is_asked_of_it_is_told_before_a_model_is_loaded(config, folders, tmp_path, change, said):
    if "pictures" in change:
        change = {**change, "pictures": str(folders / change["pictures"])}
    else:
        change = {**change, "data": write(folders, lines_of(folders, "image", "clean"))}
    with pytest.raises(DataError, match=said):
        train(replace(config, **change), tmp_path, quiet=True)


def test_pictures_without_a_task_are_of_none():
    assert make_config({"models": ("m",), "pairs": ("a", "b"), "method": "lens"}).task == "custom"
    assert make_config({"models": ("m",), "pictures": "a", "like": "b", "method": "lens"}).task == "custom"
    assert make_config({"models": ("m",), "pictures": "a", "task": "scenes", "method": "lens"}).task == "scenes"
    assert make_config({"models": ("m",), "method": "lens"}).task == "bad-camera"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pairs": ("a", "b"), "like": "c"}, "Learning from pairs does not read other good pictures"),
        ({"pairs": ("a", "b"), "data": "c"}, "both say where the pictures are"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(config, change, said):
    with pytest.raises(RequestError, match=said):
        replace(config, **change)


def test_learning_without_pairs_needs_good_pictures(config, tmp_path):
    with pytest.raises(RequestError, match="--like"):
        train(replace(config, learn_from="unpaired", task="bad-camera", n_train=16, batch=8), tmp_path, quiet=True)


# The guard.


@pytest.fixture
def guarded(config, tmp_path):
    other = save_tiny("blip2", tmp_path / "guard")
    return replace(config, task="bad-camera", n_train=16, batch=8, guard_model=str(other))


def judged(monkeypatch, *figures):
    told = iter(figures)
    monkeypatch.setattr(guard, "HeldOut", lambda family, prepared: SimpleNamespace(distance=lambda prompt: next(told)))


def test_a_lens_that_makes_the_guard_worse_is_not_kept(guarded, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "prompt.safetensors").write_bytes(b"of an earlier run")
    judged(monkeypatch, 0.2, 0.3)
    with pytest.raises(CheckError, match=r"20\.0% without the lens, 30\.0% behind it, which is worse"):
        train(guarded, folder, quiet=True)
    assert (folder / "rejected.safetensors").exists()
    assert not (folder / "prompt.safetensors").exists()
    judged(monkeypatch, 0.2, 0.3)
    with pytest.raises(CheckError):
        train(guarded, folder, quiet=True)  # a finished run says the same again
    judged(monkeypatch, 0.3, 0.2)
    verdict = train(guarded, folder, quiet=True).verdict
    assert (verdict.without, verdict.behind, verdict.kept) == (0.3, 0.2, True)
    assert (folder / "prompt.safetensors").exists()
    assert not (folder / "rejected.safetensors").exists()


def test_a_lens_that_changes_nothing_is_kept(guarded, tmp_path):
    result = train(replace(guarded, lens_lr=0.0), tmp_path / "run", quiet=True)
    assert result.verdict.kept
    assert result.verdict.without == pytest.approx(result.verdict.behind, abs=1e-4)
    assert result.prompt.facts["guard"]["model"] == guarded.guard_model


@pytest.mark.parametrize(("lost", "won", "kept"), [(0, 0, True), (3, 0, True), (9, 1, False), (40, 30, True)])
def test_with_answers_the_guard_answers_and_chance_is_no_harm(guarded, tmp_path, monkeypatch, lost, won, kept):
    without = np.arange(100) < 50 + lost - won
    behind = without.copy()
    behind[:lost] = False
    behind[100 - won :] = True
    told = iter([summarise(without), summarise(behind)])
    monkeypatch.setattr(guard, "accuracy", lambda *arguments: next(told))
    guarded = replace(guarded, learn_from="answers", batch=4, questions=1)
    if kept:
        verdict = train(guarded, tmp_path / "run", quiet=True).verdict
        assert (verdict.measured, verdict.without) == ("accuracy", without.mean())
    else:
        with pytest.raises(CheckError, match="answers right"):
            train(guarded, tmp_path / "run", quiet=True)


def test_a_guard_that_cannot_be_asked_says_nothing(guarded, tmp_path, monkeypatch, caplog):
    def refuses(*arguments):
        raise RequestError("it chooses among given answers.")

    monkeypatch.setattr(guard, "accuracy", refuses)
    result = train(replace(guarded, learn_from="answers", batch=4), tmp_path / "run", quiet=True)
    assert (result.verdict, result.unguarded) == (None, "it could not be asked")
    assert "could not be asked" in caplog.text


def test_the_guard_is_a_zoo_model_of_an_encoder_that_takes_no_part(config, monkeypatch, tmp_path):
    def chosen(*models):
        return guard.name_of(replace(config, models=models, guard_model=""))

    assert chosen("zoo:blip2") == ("zoo:smolvlm", "")
    assert chosen("zoo:instructblip", "zoo:llava") == ("zoo:qwen2vl", "")
    assert chosen("zoo:llava") == ("zoo:blip2", "")
    assert chosen("a-folder") == ("zoo:blip2", "")
    assert chosen("zoo:blip2-t5", "zoo:smolvlm", "zoo:qwen2vl")[0] == ""
    monkeypatch.setattr("tvp.trainer.zoo.IN_CHECKOUT", tmp_path)
    monkeypatch.delenv("TVP_ZOO", raising=False)
    assert chosen("zoo:blip2") == ("", "there is no zoo to take one from; name a model with --guard-model")
    with pytest.raises(RequestError, match="takes part in training"):
        replace(config, guard_model=config.models[0])


def test_the_command_says_what_it_did_and_fails_where_the_lens_is_not_kept(guarded, folders, tmp_path, monkeypatch):
    command = ["-m", guarded.models[0], "--method", "lens", "--task", "scenes", "--camera", "bad", "--canvas", "64"]
    command += ["--steps", "20", "--n-train", "32", "--n-validation", "8", "--batch", "8", "--lens", "colour"]
    command += ["--lens-start", "auto", "--guard-model", guarded.guard_model]
    judged(monkeypatch, 0.4, 0.3)
    said = CliRunner().invoke(train_command, [*command, "-o", str(tmp_path / "run")], catch_exceptions=False).output
    for text in (
        "learned from the features of clean pictures, without questions and answers (each picture has a clean one)",
        "pairs are aligned within 0.",
        "tried lenses for 4 steps each, with these distances: colour from identity ",
        "took colour from ",
        "features of held-out pictures were ",
        "40.0% without the lens, 30.0% behind it",
        f"wrote {tmp_path / 'run' / 'prompt.safetensors'}",
    ):
        assert text in said
    judged(monkeypatch, 0.2, 0.3)
    failed = CliRunner().invoke(train_command, [*command, "-o", str(tmp_path / "other")])
    assert isinstance(failed.exception, CheckError)
