"""What is typed, and the whole of what is printed.

The table is to be read: is the English plain, does it say what was found, and what to do next? Every command is typed
in one folder, see `folder`. No model is loaded for any of them, and no hub is asked: names, data and arguments are
checked before.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tvp.sdk.cli import cli
from tvp.sdk.errors import TvpError
from tvp.sdk.formats.calibration import LabelOffsets
from tvp.trainer import families, losses
from tvp.trainer.calibration import Calibration
from tvp.trainer.config import make_config
from tvp.trainer.data import Jsonl
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.record import FACT, TaskRecord, fingerprint

ZOO = "blip2, blip2-t5, guide, instructblip, llava, qwen2vl, smolvlm"

# A name that is none: told at once, with the one that was meant.
NAMES = [
    *(
        (
            f"tvp {command}",
            "Error: There is no model 'blip2': no such folder, and no hub id (OWNER/NAME) either. "
            "Did you mean zoo:blip2?",
        )
        for command in (
            "train -m blip2 --task count -o run",
            "eval -m blip2 --task count",
            "calibrate -m blip2 -t count -o c.json",
            "export -m blip2 -t count -o bundle",
            "train -m zoo:llava --task count --method lens --guard-model blip2 -o run",
        )
    ),
    (
        "tvp eval -m zoo:blip --task count",
        f"Error: There is no 'zoo:blip'; the zoo has {ZOO}. Did you mean zoo:blip2 or zoo:blip2-t5?",
    ),
    (
        "tvp eval -m llava-next --task count",
        "Error: There is no model 'llava-next': no such folder, and no hub id (OWNER/NAME) either. "
        "Did you mean zoo:llava?",
    ),
    (
        "tvp train -m zoo:llava --task count --guide guide -o run",
        "Error: The guide 'guide' is not an open_clip model that can be loaded: There are no weights '' of 'guide'; "
        "open_clip has none. Name an architecture with its weights (ViT-B-32@openai) or a folder. "
        "The zoo has one, zoo:guide.",
    ),
    (
        "tvp train -m zoo:llava --task count --guide zoo:guid -o run",
        f"Error: There is no 'zoo:guid'; the zoo has {ZOO}. Did you mean zoo:guide?",
    ),
]

# What was found out after minutes of loading is told before.
TRAIN = [
    (
        "tvp train -m zoo:llava --task custom --data rows.jsonl --tse 0 --batch 64 -o run",
        "Error: 20 training pictures do not fill a batch of 64; take a smaller one.",
    ),
    (
        "tvp train -m zoo:llava --method lens --pairs few good -o run",
        "Error: There are 3 pairs of pictures; a lens needs at least 8. Give more.",
    ),
    (
        "tvp train -m zoo:llava --method lens --pictures device --like few -o run",
        "Error: There are 3 good pictures; a lens needs at least 8. Give more.",
    ),
    (
        "tvp train -m zoo:llava --method lens --learn-from answers --task custom --data rows.jsonl "
        "--lens-start statistics -o run",
        "Error: The start 'statistics' needs good pictures: pairs, a camera, or --like.",
    ),
    (
        "tvp train -m zoo:llava --method evp --task custom --data rows.jsonl --behind frame.safetensors -o run",
        "Error: frame.safetensors has no lens; it is a frame alone. Name a prompt with a lens.",
    ),
    (
        "tvp train -m zoo:llava --task custom --data rows.jsonl --compile --depths 2 -o run",
        "Error: A compiled vision encoder does not show its layers. Leave --compile out, or use --depths 1.",
    ),
    (
        "tvp train -m zoo:llava --method evp --task custom --data rows.jsonl --seed 7 -o before",
        "Error: before holds a run with another configuration (seed: 3 there, 7 now). Choose another folder, or start "
        "anew with --restart.",
    ),
    ("tvp train -m zoo:llava --task count -o rows.jsonl", "Error: rows.jsonl is a file. Name a folder for the run."),
]

EVAL = [
    (
        "tvp eval -m zoo:llava --task hateful-memes --data rows.jsonl",
        "Error: The metric 'auc' needs questions with the labels yes and no; 'What color is it?' has red, green.",
    ),
    (
        "tvp calibrate -m zoo:llava -t custom --data free.jsonl -o c.json",
        "Error: No question is answered with labels. A model that writes free text chooses among no labels, so there "
        "is nothing to calibrate: take a task with labels, such as count.",
    ),
    (
        "tvp calibrate -m zoo:llava -t custom --data rows.jsonl --n 4 -o c.json",
        "Error: Each of the 1 questions is about fewer than 8 pictures, and a mean over so few says little. Give more "
        "pictures to each question.",
    ),
]

EXPORT = [
    (
        "tvp export -m zoo:llava -o bundle",
        "Error: Nothing says what the task of the bundle is. Name it (--task), or its pictures (--data), or a prompt "
        "that `tvp train` wrote (--prompt).",
    ),
    (
        "tvp export -m zoo:llava -t count --label yes,no -o bundle",
        "Error: Invalid value for '--label': 'yes,no' is one label, with a comma in it. Repeat the option: "
        "--label yes --label no",
    ),
    (
        "tvp export -m zoo:llava -t count -o good",
        "Error: good exists already. Choose another folder, or replace it with --force.",
    ),
    (
        "tvp export -m zoo:llava -t count --data gone.jsonl -o bundle",
        "Error: There is no data source 'gone.jsonl'. Name scenes, a .jsonl file, or a folder: of parquet files, of "
        "class folders, or of the task's published data set.",
    ),
    (
        "tvp export -m zoo:llava --data pairs.jsonl -o bundle",
        "the task 'pairs' has no question of its own, no labels\n"
        "Error: Sample 0 of the data has no question to compare answers with. Name data with questions (--data).",
    ),
    (
        "tvp export -m zoo:guide --data free.jsonl -o bundle",
        "the task 'free' asks 'What color is it?', no labels\n"
        "Error: The task 'free' has no labels, and neither has its data (sample 0: 'What color is it?'). A contrastive "
        "model only ranks labels. Take a task with labels, data with labels, or give some (--label).",
    ),
    (
        "tvp export -m zoo:llava -p frame.safetensors --calibration c0.json -o bundle",
        "the task 'rows' asks 'What color is it?', with the labels 'red', 'green'\n"
        "compared on pictures of rows.jsonl, from which the prompt was learned; some go into the bundle\n"
        "Error: The calibration was learned with another model: other, not llava. Offsets hold for one model with one "
        "prompt. Learn them again with `tvp calibrate`.",
    ),
]

EDIT = [
    (
        "tvp edit good",
        "Error: Nothing is to be changed. Give a new --question, a --label for each label, or a --name.",
    ),
    ("tvp edit good --name ''", "Error: The name is empty. Give a text."),
    (
        "tvp edit good --name x",
        "Error: The folder good has no manifest.json; it is not a bundle. `tvp export` makes one.",
    ),
    (
        "tvp edit good --label 'light blue,red'",
        "Error: Invalid value for '--label': 'light blue,red' is one label, with a comma in it. Repeat the option: "
        '--label "light blue" --label red',
    ),
    (
        "tvp edit good --label red --label red",
        "Error: Invalid value for '--label': The label 'red' is there twice. Give each label once.",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that the commands are typed in."""
    folder = tmp_path_factory.mktemp("typed")
    rng = np.random.default_rng(0)
    for place, n in (("device", 25), ("good", 10), ("few", 3)):
        (folder / place).mkdir()
        for i in range(n):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / place / f"{i}.png")
    asked = {"question": "What color is it?", "labels": ["red", "green"]}
    rows = [{"image": f"device/{i}.png", **asked, "answer": asked["labels"][i % 2]} for i in range(25)]
    free = [{name: value for name, value in row.items() if name != "labels"} for row in rows]
    pairs = [{"image": f"device/{i}.png", "clean": f"good/{i}.png"} for i in range(10)]
    for name, content in (("rows", rows), ("free", free), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    save_prompt(folder)
    # A calibration of another model, and the checkpoint of another configuration.
    known = LabelOffsets("What color is it?", ("red", "green"), (0.5, -0.5), 64)
    Calibration((known,), "other", "", "", Geometry(64, 48)).save(folder / "c0.json")
    (folder / "before").mkdir()
    return folder


def save_prompt(folder):
    """A prompt of a frame, that remembers rows.jsonl."""
    prompt = Prompt.start(Geometry(64, 48), "free")
    data = Jsonl(folder / "rows.jsonl")
    record = TaskRecord(
        "rows", "custom", "What color is it?", ("red", "green"), data="rows.jsonl", fingerprint=fingerprint(data)
    )
    prompt.facts = {"task": "custom", FACT: record.facts()}
    prompt.save(folder / "frame.safetensors")


def typed(command: str) -> str:
    """Everything that a command prints, without the usage that click puts before an error."""
    done = CliRunner().invoke(cli, shlex.split(command)[1:])
    said = done.output
    if isinstance(done.exception, TvpError):  # as `main` prints it
        said += f"Error: {done.exception}\n"
    elif done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return said.partition("for help.\n\n")[2] or said


@pytest.fixture
def no_models(monkeypatch):
    """Whatever loads a model, or asks a hub, fails the test."""
    for module, name in ((families, "load"), (losses, "make_open_clip")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("a model is loaded"))
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(f"socket.{name}", lambda *a, **k: pytest.fail("a hub is asked"))


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(("command", "printed"), [*NAMES, *TRAIN, *EVAL, *EXPORT, *EDIT])
def test_what_is_typed_and_what_is_printed(command, printed, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if command.endswith("-o before"):
        plant_checkpoint()
    before = sorted(Path().rglob("*"))
    assert typed(command) == printed + "\n"
    assert {path for path in Path().rglob("*") if path.name != ".lock"} <= set(before), "something was written"


def plant_checkpoint():
    """A checkpoint of the same command with another seed; only its configuration is looked at."""
    config = make_config({"models": ("zoo:llava",), "method": "evp", "task": "custom", "data": "rows.jsonl", "seed": 3})
    state = {"identity": json.dumps({"config": asdict(config)})}
    torch.save(state, Path("before", "checkpoint.pt"))


@pytest.mark.usefixtures("no_models")
def test_a_wrong_device_is_told_before_a_model_is_loaded(folder, monkeypatch):
    monkeypatch.chdir(folder)
    said = typed("tvp train -m zoo:llava --task custom --data rows.jsonl --device abacus -o run")
    assert said.startswith("Error: The device 'abacus' cannot be used: ")  # the rest is torch's


def test_the_loaders_are_those_that_commands_call(tmp_path, monkeypatch):
    """Planted: without what the table forbids, these commands would load."""

    def load(*arguments, **options):
        raise TvpError("loaded")

    monkeypatch.setattr(families, "load", load)
    monkeypatch.chdir(tmp_path)
    for command in (
        "tvp train -m zoo:llava --task count --tse 0 --n-train 20 --batch 4 -o run",
        "tvp eval -m zoo:llava --task count --n 2",
        "tvp calibrate -m zoo:llava -t count --n 8 --held-out 8 -o c.json",
        "tvp export -m zoo:llava -t count -o bundle",
    ):
        assert "Error: loaded" in typed(command), command
