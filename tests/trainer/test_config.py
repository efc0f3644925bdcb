"""Configurations: what overrides what, what is refused, and that every shipped file is one."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from click.testing import CliRunner

from tvp.sdk.errors import DataError, RequestError
from tvp.trainer import tasks
from tvp.trainer.cli import train as command
from tvp.trainer.config import CHOICES, SHIPPED, TrainConfig, make_config, to_toml

MODELS = ("zoo:blip2",)


def test_flags_override_the_own_file_which_overrides_the_task_which_overrides_the_method(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('models = ["zoo:blip2"]\nfca = 0.25\nlr = 3\ncanvas = 80\n')
    config = make_config({"method": "evp", "task": "scenes", "lr": 7.0}, own)
    assert config.lr == 7.0  # flag
    assert config.fca == 0.25  # own file, where the method says 0
    assert (config.canvas, config.inner) == (80, 48)  # own file; task
    assert config.tse == 0  # method
    assert config.batch == 32  # task
    assert config.n_train == TrainConfig(MODELS).n_train  # the field's default


def test_a_tasks_file_may_say_more_of_a_method_and_flags_still_win():
    given = {"models": MODELS, "task": "bad-camera-count"}
    assert make_config(given).fca == 0.5  # the table [tvp]
    assert make_config({**given, "method": "evp"}).fca == 0
    assert make_config({**given, "fca": 0.1}).fca == 0.1
    assert make_config(given).lr == make_config({**given, "method": "vp"}).lr == 0.01  # said of all methods


@pytest.mark.parametrize("method", CHOICES["method"])
@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_and_method_has_a_shipped_file(task, method):
    assert (SHIPPED / "tasks" / f"{task}.toml").is_file()
    config = make_config({"models": MODELS, "task": task, "method": method})
    assert (config.task, config.method) == (task, method)
    wide = ("bad-camera", "bad-camera-existence")  # what their tables [tvp] say
    assert (config.placement == "over") == (method in ("vp", "both") or (method == "tvp" and task in wide))
    assert bool(config.tse) == (method == "tvp")
    assert bool(config.fca) == (method in ("tvp", "lens", "both"))
    assert (config.lens != "none", config.reference == "clean") == (method in ("lens", "both"),) * 2
    assert config.frame == (method != "lens")
    assert set(config.augment) <= set(tasks.get(task).augment)


def test_no_shipped_file_is_of_a_task_that_is_not():
    assert {file.name for file in (SHIPPED / "tasks").iterdir()} == {f"{task}.toml" for task in tasks.TASKS}


def test_a_saved_configuration_is_the_same_when_it_is_read(tmp_path):
    config = replace(TrainConfig(MODELS, augment=("flip",), lr=1e-7, task="scenes"), data='a "quoted" näme 😀\n')
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert make_config({}, tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr = ", "is not a TOML file"),
        ("learning_rate = 3", "no field of a configuration"),
        ("steeps = 3", "Did you mean steps"),
        ('lr = "3"', "it takes a number"),
        ("steps = 2.5", "it takes a whole number"),
        ("steps = true", "it takes a whole number"),
        ("contrast = 1", "it takes a true or false"),
        ('models = "zoo:blip2"', "it takes a list of texts"),
        ("augment = [3]", "it takes a list of texts"),
        ("[lr]\na = 1", "it takes a number"),
        ("[tvp]\nfca = 1", "no field of a configuration"),  # one's own file is of one method
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path, text, said):
    own = tmp_path / "mine.toml"
    own.write_text(text)
    with pytest.raises(DataError, match=rf"mine\.toml.*{said}"):
        make_config({"models": MODELS}, own)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": ()}, "at least one source model"),
        ({"method": "tpv"}, "one of vp, evp, tvp"),
        ({"placement": "under"}, "one of around, over"),
        ({"precision": "int8"}, "one of auto, fp32, bf16, fp16"),
        ({"accumulate": 17}, "has no 17 parts"),
        ({"patience": 2}, "Set validate_every"),
        ({"contrast": True, "tse": 0.0}, "part of TSE, whose weight is 0"),
        ({"rank": -1}, "must not be negative"),
        ({"camera": "fog:4", "pairs": ("bad", "good")}, "pairs hold what their own camera spoilt"),
        ({"camera": "frog:4"}, "There is no camera part 'frog'.*Did you mean fog"),
        ({"camera": "fog:4..9"}, "from 1 to 5"),
        ({"augment": ("rotate",)}, "There is no augmentation 'rotate'"),
        ({"augment": ("crop",), "task": "count"}, "may change the answers of the task 'count'"),
    ],
)
def test_what_cannot_be_is_refused(change, said):
    with pytest.raises(RequestError, match=said):
        replace(TrainConfig(MODELS), **change)


def test_the_command_line_knows_every_field():
    options = {option.name for option in command.params}
    assert set(asdict(TrainConfig(MODELS))) <= options
    result = CliRunner().invoke(command, ["-o", "x", "--method", "tpv"])
    assert result.exit_code == 2
    assert "'vp', 'evp', 'tvp'" in result.output


def test_a_flag_does_not_change_the_name_alone(tmp_path):
    """A run's own file says all that its method and its task stand for."""
    own = tmp_path / "config.toml"
    own.write_text(to_toml(make_config({"models": MODELS, "task": "count"})))
    assert make_config({"method": "tvp"}, own).fca
    for name, value in (("method", "evp"), ("task", "scenes")):
        with pytest.raises(RequestError, match=rf"--{name} {value} would change the name alone"):
            make_config({name: value}, own)


def test_epochs_that_are_asked_for_are_what_ends_a_run():
    given = {"models": MODELS, "task": "bad-camera"}
    assert make_config(given).steps > 0
    assert (make_config({**given, "epochs": 5}).steps, make_config({**given, "epochs": 5}).epochs) == (0, 5)
    assert make_config({**given, "epochs": 5, "steps": 7}).steps == 7


def test_flags_hold_before_a_runs_own_file(tmp_path):
    own = tmp_path / "config.toml"
    own.write_text(to_toml(make_config({"models": MODELS, "task": "bad-camera"})))
    assert make_config({"epochs": 5}, own).steps == 0
    with pytest.raises(RequestError, match="needs a learning rate of its own"):
        make_config({"update": "sign"}, own)
    assert make_config({"update": "sign", "lr": 0.5}, own).lr == 0.5


def test_another_update_asks_for_its_own_rate():
    for task, update in (("cifar10", "adam"), ("bad-camera", "normalized")):
        with pytest.raises(RequestError, match=rf"The update '{update}' needs a learning rate of its own"):
            make_config({"models": MODELS, "task": task, "update": update})
        assert make_config({"models": MODELS, "task": task, "update": update, "lr": 1.0}).lr == 1.0
    same = make_config({"models": MODELS, "task": "cifar10"}).update
    assert make_config({"models": MODELS, "task": "cifar10", "update": same}).lr == 10.0


def test_a_configuration_of_an_earlier_version_is_read_as_before(tmp_path):
    """What is called `placement` today was called `layout`."""
    own = tmp_path / "config.toml"
    config = make_config({"models": MODELS, "task": "bad-camera"})
    assert config.placement == "over"
    own.write_text(to_toml(config).replace("placement = ", "layout = "))
    assert "layout" in own.read_text()
    assert make_config({}, own) == config
    own.write_text('layout = "over"\nplacement = "over"\n')
    with pytest.raises(DataError, match=r"config\.toml sets both 'layout' and 'placement'"):
        make_config({"models": MODELS}, own)


@pytest.mark.parametrize(
    ("given", "task", "method"),
    [
        ({}, "bad-camera", "tvp"),
        ({"data": "mine.jsonl"}, "custom", "both"),
        ({"data": "scenes"}, "bad-camera", "tvp"),
        ({"data": "mine.jsonl", "task": "cifar10"}, "cifar10", "tvp"),
        ({"pairs": ("a", "b")}, "custom", "lens"),
        ({"pictures": "a", "like": "b"}, "custom", "lens"),
        ({"pairs": ("a", "b"), "method": "evp"}, "custom", "evp"),
        ({"data": "mine.jsonl", "camera": "fog:4"}, "custom", "lens"),
        ({"data": "mine.jsonl", "camera": "none"}, "custom", "both"),
        ({"data": "mine.jsonl", "camera": "fog:4", "task": "cifar10"}, "cifar10", "tvp"),
    ],
)
def test_the_task_and_the_method_follow_from_the_data(given, task, method):
    config = make_config({"models": ("m",), **given})
    assert (config.task, config.method) == (task, method)


@pytest.mark.parametrize(
    ("given", "sides", "canvas", "inner"),
    [
        ({"task": "custom"}, {"m": 64}, 64, 48),
        ({"task": "custom"}, {"m": 336}, 336, 246),
        ({"task": "custom"}, {"m": 336, "n": 64}, 64, 48),
        ({"task": "custom", "inner": 40}, {"m": 64}, 64, 40),
        ({"task": "custom", "canvas": 80}, {}, 80, 60),
        ({"task": "cifar10"}, {"m": 336}, 224, 164),  # the paper's size
        ({"task": "cifar10"}, {"m": 64}, 64, 48),
        ({"task": "bad-camera"}, {}, 64, 32),  # its own file says it
    ],
)
def test_the_canvas_is_the_models_own_size(given, sides, canvas, inner):
    models = tuple(sides) or ("m",)
    config = make_config({"models": models, **given}, side_of=sides.__getitem__)
    assert (config.canvas, config.inner) == (canvas, inner)


def test_a_configuration_is_wrong_before_a_model_is_asked_for_its_size():
    with pytest.raises(RequestError, match="batch is 0"):
        make_config({"models": ("m",), "task": "custom", "batch": 0}, side_of=lambda name: 1 // 0)
