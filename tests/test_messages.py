"""What is typed, and the whole of what is printed.

The table is to be read: is the English plain, does it say what was found, and what to do next? Every command is typed
in one folder: `doors` has class folders, `rows.csv` and `rows.jsonl` rows about its pictures, `device` and `good`
pictures that nobody says anything about, `task.toml` is a task file.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tvp.sdk.cli import cli
from tvp.sdk.errors import TvpError
from tvp.trainer.prompt import Geometry, Prompt

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
        "tvp eval -m zoo:none --data rows.jsonl",
        "No task was named with --data, so this is a task of your own: custom.\n"
        "Error: There is no 'zoo:none'; the zoo has blip2, blip2-t5, guide, instructblip, llava, qwen2vl, smolvlm.",
    ),
    (
        "tvp eval -m zoo:none -p count.safetensors",
        "No task was named, so this is the one that the prompt was learned for: count.\n"
        "Error: There is no 'zoo:none'; the zoo has blip2, blip2-t5, guide, instructblip, llava, qwen2vl, smolvlm.",
    ),
    (
        "tvp eval -m zoo:none -p custom.safetensors",
        "Error: The prompt was learned for the task 'custom', which has no data of its own. Add --data.",
    ),
    (
        "tvp eval -m zoo:none -p count.safetensors -p custom.safetensors",
        "Error: The prompts do not say one task to measure (count.safetensors: count, custom.safetensors: custom). "
        "Name it with --task.",
    ),
    (
        "tvp eval -m zoo:none",
        "Error: Say what to measure: your own pictures with --data, a task file of tvp init or a task's name with "
        "--task, or a prompt with --prompt, which knows its task. The demo's task is --task bad-camera.",
    ),
    (
        "tvp eval -m zoo:none --data scenes",
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that the commands are typed in."""
    folder = tmp_path_factory.mktemp("newcomer")
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
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
    for task in ("count", "custom"):
        prompt = Prompt.start(Geometry(64, 48), "free")
        prompt.facts = {"task": task}
        prompt.save(folder / f"{task}.safetensors")
    return folder


def typed(command: str) -> str:
    """Everything that a command prints, without the usage that click puts before an error."""
    done = CliRunner().invoke(cli, shlex.split(command)[1:])
    said = done.output
    if isinstance(done.exception, TvpError):  # as `main` prints it
        said += f"Error: {done.exception}\n"
    elif done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return said.partition("for help.\n\n")[2] or said


@pytest.mark.parametrize(("command", "printed"), [*INFERRED, *REFUSED, *TASK_FILES, *INIT])
def test_what_is_typed_and_what_is_printed(command, printed, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(Path().rglob("*"))
    assert typed(command) == printed + "\n"
    assert sorted(Path().rglob("*")) == before, "something was written"
