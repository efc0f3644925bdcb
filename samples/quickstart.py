"""TVP in one go: a camera spoils pictures, a lens is learned without a single answer, the edge client answers.

`make demo` runs this, and so does `python -m samples.quickstart`. It needs no network: the models are in samples/zoo.
It writes to the folder demo/; the page to look at is demo/report.html.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from pathlib import Path

from PIL import Image

from tvp import sdk
from tvp.export.bundle import export
from tvp.export.parity import Parity
from tvp.trainer import families, tasks
from tvp.trainer.config import make_config
from tvp.trainer.data import Data, Scenes
from tvp.trainer.evaluate import Accuracy, accuracy
from tvp.trainer.families import Family
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.scenes import CHANCE
from tvp.trainer.train import TrainConfig, train

from .by_hand import BY_HAND, Changed
from .report import Asked, write_report

SOURCE = "zoo:blip2"
ROLES = {
    SOURCE: "the lens was learned on it",
    "zoo:smolvlm": "another vision encoder, which took no part",
    "zoo:qwen2vl": "a third vision encoder, which took no part",
}
FRAME = Path(__file__).parent / "zoo" / "prompts" / "bad-camera.safetensors"
FULL = Geometry(64, 64)
CONFIG = make_config(
    {
        "models": (SOURCE,),
        "task": "bad-camera",
        "method": "lens",
        "lens": "conv",  # named, so that the demo is as quick as it can be; by default kinds and starts are tried
        "lens_start": "identity",
        "guard_model": "none",
        "keep": "last",  # the report says what it does, whatever that is
        "n_validation": 64,
        "seed": 1,
    }
)
N_TEST, TEST_SEED, N_ASKED = 192, 900, 3
CLEAN, BAD, LENS = "clean", "through the camera", "with the lens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"))
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--pictures", type=int, default=N_TEST, help="held-out pictures, with four questions each")
    arguments = parser.parse_args()
    logging.getLogger("optimum").setLevel(logging.ERROR)
    began = time.perf_counter()
    output: Path = arguments.output
    task = tasks.get(CONFIG.task)
    print(f"The task: questions about scenes, seen through a camera: {task.camera}.")

    print(f"\nLearning a lens on {SOURCE}, from pairs of pictures: no question, no answer, and no weight changes.")
    run = output / "run"
    shutil.rmtree(run, ignore_errors=True)
    models = {name: families.load(name) for name in ROLES}
    trained = train(TrainConfig(**{**vars(CONFIG), "steps": arguments.steps}), run, [models[SOURCE]])
    lens = trained.prompt
    assert lens.lens is not None
    print(f"{lens.lens.n_values:,} numbers, in {time.perf_counter() - began:.0f} s")

    clean = Scenes(arguments.pictures, seed=TEST_SEED)
    bad = Scenes(arguments.pictures, seed=TEST_SEED, camera=task.camera)
    print(f"\nAccuracy on {len(bad)} other pictures; a blind guesser reaches {CHANCE:.0%}:")
    table = measure(models, clean, bad, lens)

    print("\nExporting with the lens baked in, compared with PyTorch:")
    parity: dict[str, Parity] = {}
    for name, model in models.items():
        folder = output / "tasks" / f"bad-camera-{name.removeprefix('zoo:')}"
        parity[name] = export(name, task, folder, prompt=lens, family=model, data=bad, n_cases=24, force=True)
        found = parity[name]
        print(f"{folder}: {found.tokens_equal} of {found.n_cases} answers equal, logits within {found.logits:.0e}")

    print("\nAsking on the edge, without PyTorch:")
    asked = ask(output, bad, table[BAD][SOURCE], table[LENS][SOURCE])
    write_report(output / "report.html", ROLES, table, parity, trained, (clean, bad), asked)
    print(f"\nWrote {output / 'report.html'} after {time.perf_counter() - began:.0f} s.")


def measure(models: dict[str, Family], clean: Data, bad: Data, lens: Prompt) -> dict[str, dict[str, Accuracy]]:
    """Measure every way of showing the pictures on every model, and print a line for each."""
    frame = Prompt.load(FRAME)
    ways: dict[str, tuple[Data, Geometry, Prompt | None]] = {CLEAN: (clean, FULL, None), BAD: (bad, FULL, None)}
    ways |= {name: (Changed(bad, change), FULL, None) for name, change in BY_HAND.items()}
    ways |= {"with the frame of earlier versions": (bad, frame.geometry, frame), LENS: (bad, lens.geometry, lens)}
    table: dict[str, dict[str, Accuracy]] = {}
    for way, (data, geometry, prompt) in ways.items():
        table[way] = {name: accuracy(model, data, geometry, prompt) for name, model in models.items()}
        shown = "  ".join(f"{name.removeprefix('zoo:')} {found.accuracy:6.1%}" for name, found in table[way].items())
        print(f"{way:<36}{shown}")
    return table


def ask(output: Path, bad: Data, without: Accuracy, behind: Accuracy) -> list[Asked]:
    """Ask the exported source model questions that it gets wrong through the camera, and right behind the lens.

    Where there are not enough of these, any others follow.
    """
    rows = [(i, question) for i in range(len(bad)) for question in bad[i].questions]
    put_right = behind.right & ~without.right
    order = sorted(range(len(rows)), key=lambda k: not put_right[k])
    chosen = list({rows[k][0]: k for k in reversed(order)}.values())[::-1]  # one of each picture, the best first
    chosen = sorted(chosen, key=lambda k: not put_right[k])[:N_ASKED]
    pictures = output / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    asked = []
    with sdk.load(output / "tasks" / f"bad-camera-{SOURCE.removeprefix('zoo:')}") as loaded:
        for k in chosen:
            number, question = rows[k]
            picture = bad[number].picture
            file = pictures / f"{number}.png"
            Image.fromarray(picture).save(file)
            answer = loaded.ask(file, question.text)
            seconds = answer.timing["total"]
            asked.append(Asked(picture, question, without.answers[k], str(answer), seconds))
            print(f"  {file}: {question.text} {answer}  (right: {question.answer}; ", end="")
            print(f"without the lens: {without.answers[k]}; {seconds * 1e3:.1f} ms)")
    return asked


if __name__ == "__main__":
    main()
