"""Rows that a model cannot read are told, or left out, before anything is asked."""

from __future__ import annotations

import json
import weakref
from bisect import bisect_left

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.tiny import CANVAS, save_tiny
from tvp.sdk.errors import DataError, RequestError
from tvp.trainer import families, tasks
from tvp.trainer.asking import answerable
from tvp.trainer.data import Jsonl, Scenes
from tvp.trainer.eval_cli import evaluate
from tvp.trainer.train import TrainConfig, train

LABELS = ["yes", "no"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Saves a tiny model once and loads it; returns its folder and the family."""
    found = {}

    def load(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("tiny") / name
            found[name] = str(save_tiny(name, folder)), families.load(str(folder))
        return found[name]

    return load


def write(folder, *rows):
    Image.new("RGB", (9, 9)).save(folder / "0.png")
    for i, _ in enumerate(rows):
        Image.new("RGB", (9, 9), (i, 9, 9)).save(folder / f"{i}.png")
    lines = [
        json.dumps({"image": f"{i}.png", "question": "Is it?", "answer": "yes", **row}) for i, row in enumerate(rows)
    ]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder / "a.jsonl"


MANY = 1100


def limit(run):
    """The first number of words, of fewer than MANY, that is refused."""

    def refused(n):
        try:
            run("a " * n)
        except RequestError:
            return True
        return False

    return bisect_left(range(1, MANY), True, key=refused)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "paligemma", "instructblip", "instructblip-t5", "visualglm"])
def test_a_question_is_refused_exactly_where_the_model_would_refuse_it(tiny, name):
    _, family = tiny(name)
    pixels = family.to_pixels(torch.zeros(1, 3, CANVAS, CANVAS))
    features = family.encode(pixels)

    def asked(question, answer="yes", labels=(), n_written=0):
        embeddings = family.connect(features, [question])
        if labels:
            family.answer_scores(embeddings, [question], labels)
        elif n_written:
            family.generate(embeddings, [question], n_written)
        else:
            family.answer_loss(embeddings, [question], [answer])

    n_image = family.see(pixels, ["a"]).shape[1]
    with torch.no_grad():
        for run in (
            lambda ask: limit(lambda text: ask(text)),
            lambda ask: limit(lambda text: ask("Is it?", text)),
            lambda ask: limit(lambda text: ask(text, "yes", ("yes", "a longer label"))),
            lambda ask: limit(lambda text: ask(text, "yes", (), 16)),
        ):
            expected = run(asked)
            assert run(lambda q, a="yes", ls=(), n=0: family.check_question(q, a, ls, n_image, n)) == expected


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "What is <image> here?"}, "question contains a special token"),
        ({"answer": "<image>", "labels": ["<image>", "no"]}, "answer contains a special token"),
        ({"labels": ["yes", "</s>"]}, "answer contains a special token"),
        ({"answer": "yes " * 4000, "labels": []}, "take .* tokens, but this model reads at most"),
        ({"question": "why " * 4000}, "take .* tokens"),
    ],
)
def test_a_row_that_the_model_cannot_read_is_named_by_train_and_eval_or_left_out(tiny, tmp_path, row, says, caplog):
    folder, _ = tiny("llava")
    good = {"labels": LABELS}
    file = write(tmp_path, good, good, row, good, good, good)
    config = TrainConfig(
        (folder,),
        "vp",
        "custom",
        str(file),
        canvas=CANVAS,
        inner=48,
        batch=2,
        steps=1,
        fca=0,
        tse=0,
        n_validation=1,
        keep="last",
    )
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3: .*{says}"):
        train(config, tmp_path / "out", quiet=True)
    assert train(config, tmp_path / "out", quiet=True, skip_bad=True).prompt.facts["data"]["n"] == 5
    assert "left 1 rows out" in caplog.text
    assert "a.jsonl, line 3" in caplog.text
    order = ["-m", folder, "--task", "custom", "--data", str(file), "--canvas", str(CANVAS), "--inner", "48"]
    done = CliRunner().invoke(evaluate, order)
    assert isinstance(done.exception, DataError)
    assert "a.jsonl, line 3" in str(done.exception)
    assert "of 5" in CliRunner().invoke(evaluate, [*order, "--skip-bad"], catch_exceptions=False).output


def test_all_models_are_asked_what_each_can_read_and_none_before(tiny, tmp_path):
    """CLIP needs labels; llava reads no <image>."""
    clip, llava = tiny("clip")[0], tiny("llava")[0]
    file = write(tmp_path, {"labels": LABELS}, {}, {"labels": LABELS, "question": "<image>"})
    order = ["--task", "custom", "--data", str(file), "--canvas", str(CANVAS), "--inner", "48"]
    done = CliRunner().invoke(evaluate, ["-m", clip, "-m", llava, *order])
    assert "line 3" in str(done.exception)
    assert not done.output
    done = CliRunner().invoke(evaluate, ["-m", llava, "-m", clip, *order])
    assert "line 2: clip chooses among given answers" in str(done.exception)
    done = CliRunner().invoke(evaluate, ["-m", clip, "-m", llava, *order, "--skip-bad"], catch_exceptions=False)
    assert done.output.count("of 1") == 4


def test_one_model_is_in_memory_and_the_first_is_not_loaded_again(tiny, tmp_path, monkeypatch):
    first, second = tiny("llava")[0], tiny("clip")[0]
    data = write(tmp_path, *[{"labels": LABELS}] * 3)
    real, loads, alive = families.load, [], weakref.WeakSet()

    def load(name, **options):
        assert not alive
        loads.append(name)
        family = real(name, **options)
        alive.add(family)
        return family

    monkeypatch.setattr(families, "load", load)
    for models, expected in (([first], [first]), ([first, second], [second, first, second])):
        loads.clear()
        order = ["--task", "custom", "--data", str(data), "--canvas", str(CANVAS), "--inner", "48"]
        order += [word for name in models for word in ("-m", name)]
        done = CliRunner().invoke(evaluate, order, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert loads == expected


def test_drawn_scenes_are_not_checked_and_nothing_left_is_an_error(tiny, tmp_path):
    def never():
        raise AssertionError
        yield

    scenes = Scenes(4, 0)
    assert answerable(scenes, never(), CANVAS) is scenes
    data = Jsonl(write(tmp_path, {"question": "<image>"}))
    with pytest.raises(DataError, match=r"No row is left: all 1 are bad. The last: .*line 1"):
        answerable(data, [("llava", tiny("llava")[1])], CANVAS, skip_bad=True)
    assert tasks.get("custom").free is False
