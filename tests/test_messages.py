"""What is typed, and the whole of what is printed.

The table is to be read: is the English plain, does it say what was found, and what to do next? Every command is typed
in one folder, see `folder`. No model is loaded for any of them, and no hub is asked: names, data and arguments are
checked before.

Over 400 lines because the table is to be read in one place; the code around it is short.
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

# What was forgotten is inferred, and said; or it is refused.
INFERRED = [
    (
        "tvp train -m zoo:none -o run",
        "No task was named, so this learns the demo's: bad-camera, scenes through a bad camera. Name yours with "
        "--task, or your pictures with --data.\n"
        "Error: There is no 'zoo:none'; the zoo has blip2, blip2-t5, guide, instructblip, llava, qwen2vl, smolvlm.",
    ),
    (
        "tvp train -m zoo:none --data rows.jsonl -o run",
        "No task was named with --data, so this is a task of your own: custom.\n"
        "Error: There is no 'zoo:none'; the zoo has blip2, blip2-t5, guide, instructblip, llava, qwen2vl, smolvlm.",
    ),
    (
        "tvp eval -m good --data rows.jsonl",
        "No task was named with --data, so this is a task of your own: custom.\n"
        "Error: There is no model 'good' with a readable config.json: its folder has none.",
    ),
    (
        "tvp eval -m good -p count.safetensors",
        "No task was named, so this is the one that the prompt was learned for: count.\n"
        "Error: There is no model 'good' with a readable config.json: its folder has none.",
    ),
    (
        "tvp eval -m good -p frame.safetensors --data rows.jsonl",
        "No task was named, so this is the one that the prompt was learned for: rows.\n"
        "Error: There is no model 'good' with a readable config.json: its folder has none.",
    ),
    (
        "tvp eval -m good -p frame.safetensors",
        "Error: The prompt was learned for the task 'custom', which has no data of its own. Add --data.",
    ),
    (
        "tvp eval -m good -p custom.safetensors",
        "Error: The prompt was learned for the task 'custom', which has no data of its own. Add --data.",
    ),
    (
        "tvp eval -m good -p count.safetensors -p custom.safetensors",
        "Error: The prompts do not say one task to measure (count.safetensors: count, custom.safetensors: custom). "
        "Name it with --task.",
    ),
    (
        "tvp eval -m good",
        "Error: Say what to measure: your own pictures with --data, a task file of tvp init or a task's name with "
        "--task, or a prompt with --prompt, which knows its task. The demo's task is --task bad-camera.",
    ),
    (
        "tvp eval -m good --data scenes",
        "Error: Say what to measure: your own pictures with --data, a task file of tvp init or a task's name with "
        "--task, or a prompt with --prompt, which knows its task. The demo's task is --task bad-camera.",
    ),
]

# What would do nothing, or something else than was meant.
REFUSED = [
    (
        "tvp calibrate -m zoo:blip2 -t count --pictures device --label yes,no -o c.json",
        "Error: Invalid value for '--label': 'yes,no' is one label, with a comma in it. Repeat the option: "
        "--label yes --label no",
    ),
    (
        "tvp ask bundle photo.png --label 'red, light blue'",
        "Error: Invalid value for '--label': 'red, light blue' is one label, with a comma in it. Repeat the "
        'option: --label red --label "light blue"',
    ),
    (
        "tvp init doors -q What? --label red,green",
        "Error: Invalid value for '--label': 'red,green' is one label, with a comma in it. Repeat the option: "
        "--label red --label green",
    ),
    (
        "tvp train -m zoo:blip2 --method lens --task scenes --camera bad --lr 0.1 -o run",
        "Error: --lr is about a frame, and this run learns none. The lens has --lens-lr and --lens-update.",
    ),
    (
        "tvp train -m zoo:blip2 --task scenes --lens-lr 0.1 -o run",
        "Error: --lens-lr is about a lens, and this run learns none. Add --method lens, or leave it out.",
    ),
    (
        "tvp train -m zoo:blip2 --method lens --lens kernel --lens-width 8 --pairs device good -o run",
        "Error: --lens-width is about a conv lens. Add --lens conv, or leave it out.",
    ),
    (
        "tvp train -m zoo:blip2 --answer-loss labels --pairs device good -o run",
        "Error: --answer-loss is about answers, and this run learns from pictures alone. Leave it out.",
    ),
    (
        "tvp train -m zoo:blip2 --method evp --guide zoo:guide --data rows.jsonl -o run",
        "Error: --guide is what TSE asks, whose weight is 0 here. Set --tse too.",
    ),
    (
        "tvp train -m zoo:blip2 --data rows.jsonl --n-train 10 -o run",
        "Error: --n-train is the number of scenes to draw, and this data is used whole. Leave it out; to learn "
        "from fewer pictures, give fewer.",
    ),
    (
        "tvp train -m zoo:blip2 --steps 10 --epochs 2 -o run",
        "Error: --steps and --epochs both say how long to learn. Give one of them.",
    ),
    (
        "tvp eval -m zoo:blip2 -p prompt.safetensors --canvas 64 --task count",
        "Error: --canvas and --inner are for an evaluation without a prompt. A prompt has its own.",
    ),
]

TASK_FILES = [
    (
        "tvp train -m zoo:blip2 -t nowhere.toml -o run",
        "Error: There is no task file nowhere.toml. `tvp init FOLDER` writes one from your pictures.",
    ),
    (
        "tvp eval -m zoo:blip2 -t typo.toml",
        "Error: typo.toml sets 'lables', which is no field of a task. There are name, question, labels, data, "
        "test, camera, fit, match, free, pictures, like, pairs. Did you mean labels?",
    ),
    (
        "tvp eval -m zoo:blip2 -t joined.toml",
        'Error: joined.toml has the one label \'yes,no\', and nothing to choose from. Write ["yes", "no"].',
    ),
    (
        "tvp eval -m zoo:blip2 -t nodata.toml",
        "Error: nodata.toml does not say where the pictures are. Set data; for a lens, pictures and like, or pairs.",
    ),
    (
        "tvp eval -m zoo:blip2 -t conut",
        "Error: There is no task 'conut'. There are scenes, bad-camera, recognition, count, existence, reasoning, "
        "cifar10, svhn, imagenette, clevr-count, hateful-memes, pope-random, pope-popular, pope-adversarial, "
        "custom, bad-camera-count, bad-camera-existence, bad-camera-reasoning, bad-camera-cifar10; or name a task "
        "file (.toml), which `tvp init` writes. Did you mean count or custom?",
    ),
    (
        "tvp eval -m zoo:blip2 -t lens.toml",
        "Error: The task 'lens' has pictures without questions and answers. Name some with --data.",
    ),
]

INIT = [
    (
        "tvp init nowhere",
        "Error: There is no folder nowhere. Name a folder of pictures, or a CSV or JSONL file.",
    ),
    (
        "tvp init doors",
        'Error: Say what to ask about every picture: --question "What is in the photo?"',
    ),
    (
        "tvp init device",
        "Error: device holds pictures, and nothing that says what they show. It needs a folder of pictures for "
        "each answer, named like it (two or more); or a CSV or JSONL file with image, question and answer in each "
        "row. For a lens, which needs no answers, name good pictures with --like, or the same pictures, clean, "
        "with --clean.",
    ),
    (
        "tvp init empty",
        "Error: empty holds no pictures. It needs a folder of pictures for each answer, named like it (two or "
        "more); or a CSV or JSONL file with image, question and answer in each row.",
    ),
    (
        "tvp init device --like good --clean good",
        "Error: --like is for other good pictures, and --clean for the same ones. Give one of them.",
    ),
    (
        "tvp init device --like good -q What?",
        "Error: A lens is learned without a question. Leave --question, --label and --camera out.",
    ),
    (
        "tvp init few --like good",
        "Error: There are 3 pictures in few; a lens needs at least 8. Give more.",
    ),
    (
        "tvp init rows.csv",
        "Error: rows.jsonl is there already, and is not overwritten. To use it: tvp init rows.jsonl. Else move it "
        "away.",
    ),
    (
        "tvp init doors -q What? -o task.toml",
        "Error: task.toml is there already, and is not overwritten. Use it, delete it, or name another task file "
        "with --output.",
    ),
    (
        "tvp init headless.csv -q What?",
        "Error: headless.csv has the column 'doors/red/0.png'. Its first line names the columns: image, question, "
        "answer; it may have labels and caption too.",
    ),
    (
        "tvp init bad.csv -o new.toml",
        "Error: 2 row(s) or picture(s) cannot be used:\n"
        "  bad.csv, line 2 has no answer. Fill it in, or delete the row.\n"
        "  bad.csv, line 4 names the picture 'doors/none.png', but there is no file 'doors/none.png'.\n"
        "Mend them, or leave them out with --skip-bad. Nothing was written.",
    ),
]


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
        "Error: 16 training pictures do not fill a batch of 64; take a smaller one.",
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
    """The folder that the commands are typed in.

    `doors` has class folders, the rows are about its pictures; `device` and `good` are pictures that nobody says
    anything about; `.toml` are task files.
    """
    folder = tmp_path_factory.mktemp("typed")
    rng = np.random.default_rng(0)

    def save(name):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / name)
        return name

    rows = []
    for colour in ("red", "green"):
        for i in range(12):
            name = save(f"doors/{colour}/{i}.png")
            rows.append({"image": name, "question": "What color is it?", "answer": colour, "labels": ["red", "green"]})
    free = [
        {"image": row["image"], "question": "What color is it?", "answer": f"door {i}"} for i, row in enumerate(rows)
    ]
    pairs = [{"image": f"device/{i}.png", "clean": f"good/{i}.png"} for i in range(10)]
    for name, content in (("rows", rows), ("free", free), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    lines = [f"{row['image']},{row['question']},{row['answer']}" for row in rows]
    (folder / "rows.csv").write_text("\n".join(["image,question,answer", *lines]))
    (folder / "headless.csv").write_text("\n".join(lines))
    bad = ["doors/red/0.png,What?,", "doors/red/1.png,What?,red", "doors/none.png,What?,red"]
    (folder / "bad.csv").write_text("\n".join(["image,question,answer", *bad]))
    for place, n in (("device", 10), ("good", 10), ("few", 3)):
        for i in range(n):
            save(f"{place}/{i}.png")
    save("photo.png")
    (folder / "empty").mkdir()
    for name, text in (
        ("task", 'data = "rows.jsonl"'),
        ("typo", 'data = "rows.jsonl"\nlables = ["red"]'),
        ("joined", 'data = "rows.jsonl"\nlabels = ["yes,no"]'),
        ("nodata", 'question = "What?"'),
        ("lens", 'pictures = "device"\nlike = "good"'),
    ):
        (folder / f"{name}.toml").write_text(text)
    save_prompts(folder)
    # A calibration of another model, and the checkpoint of another configuration.
    known = LabelOffsets("What color is it?", ("red", "green"), (0.5, -0.5), 64)
    Calibration((known,), "other", "", "", Geometry(64, 48)).save(folder / "c0.json")
    (folder / "before").mkdir()
    return folder


def save_prompts(folder):
    """Prompts of a frame: two of an earlier version, and one that remembers rows.jsonl."""
    record = TaskRecord(
        "rows",
        "custom",
        "What color is it?",
        ("red", "green"),
        data="rows.jsonl",
        fingerprint=fingerprint(Jsonl(folder / "rows.jsonl")),
    )
    for name, facts in (
        ("count", {"task": "count"}),
        ("custom", {"task": "custom"}),
        ("frame", {"task": "custom", FACT: record.facts()}),
    ):
        prompt = Prompt.start(Geometry(64, 48), "free")
        prompt.facts = facts
        prompt.save(folder / f"{name}.safetensors")


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
@pytest.mark.parametrize(
    ("command", "printed"), [*INFERRED, *REFUSED, *TASK_FILES, *INIT, *NAMES, *TRAIN, *EVAL, *EXPORT, *EDIT]
)
def test_what_is_typed_and_what_is_printed(command, printed, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if command.endswith("-o before"):
        plant_checkpoint()
    before = written()
    assert typed(command) == printed + "\n"
    assert written() == before, "something was written"


def written():
    """All that is in the folder, without the locks of runs."""
    return {path for path in Path().rglob("*") if path.name != ".lock"}


def plant_checkpoint():
    """A checkpoint of the same command with another seed; only its configuration is looked at."""
    config = make_config(
        {"models": ("zoo:llava",), "method": "evp", "task": "custom", "data": "rows.jsonl", "seed": 3},
        side_of=lambda _: 64,
    )
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
