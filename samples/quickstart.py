"""TVP in one go: a model fails at a task, a frame of pixels teaches it, the edge client answers.

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
from tvp.trainer import families, tasks
from tvp.trainer.config import make_config
from tvp.trainer.data import Scenes
from tvp.trainer.evaluate import accuracy
from tvp.trainer.prompt import Geometry
from tvp.trainer.scenes import CHANCE
from tvp.trainer.train import TrainConfig, train

from .report import Row, write_report

SOURCE = "zoo:blip2"
ROLES = {
    SOURCE: "trained on",
    "zoo:blip2-t5": "same vision encoder, another language model; never saw the prompt",
    "zoo:llava": "another vision encoder; never saw the prompt",
}
FULL = Geometry(64, 64)
CONFIG = make_config({"models": (SOURCE,), "task": "bad-camera", "n_validation": 128, "validate_every": 50, "seed": 1})
N_TEST, TEST_SEED = 512, 900


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
    print(f"The task: questions about scenes, seen through a camera that is {task.camera}.")

    models = {name: families.load(name) for name in ROLES}
    clean = Scenes(arguments.pictures, seed=TEST_SEED)
    bad = Scenes(arguments.pictures, seed=TEST_SEED, camera=task.camera)
    rows = []
    for name, model in models.items():
        row = Row(name, ROLES[name])
        row.clean = accuracy(model, clean, FULL)
        row.full = accuracy(model, bad, FULL)
        print(f"{name}: {row.clean} on clean scenes, {row.full} through the bad camera (chance {CHANCE:.0%})")
        rows.append(row)

    edge = (CONFIG.canvas - CONFIG.inner) // 2
    print(f"\nTraining a frame of {edge} px on {SOURCE}; no weight of any model changes.")
    run = output / "run"
    shutil.rmtree(run, ignore_errors=True)
    config = TrainConfig(**{**vars(CONFIG), "steps": arguments.steps})
    trained = train(config, run, [models[SOURCE]])
    for row in rows:
        row.prompted = accuracy(models[row.model], bad, trained.prompt.geometry, trained.prompt)
        print(f"{row.model}: {row.full.accuracy:.1%} -> {row.prompted.accuracy:.1%} with the prompt ({row.role})")

    print("\nExporting with the prompt baked in, compared with PyTorch:")
    for row in rows:
        if not models[row.model].exports:
            continue
        folder = output / "tasks" / f"bad-camera-{row.model.removeprefix('zoo:')}"
        row.parity = export(
            row.model, task, folder, prompt=trained.prompt, family=models[row.model], data=bad, n_cases=24, force=True
        )
        print(
            f"{folder}: {row.parity.tokens_equal} of {row.parity.n_cases} answers equal, "
            f"logits within {row.parity.logits:.0e}"
        )

    print("\nAsking on the edge, without PyTorch:")
    pictures = output / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    answers = []
    with sdk.load(output / "tasks" / f"bad-camera-{SOURCE.removeprefix('zoo:')}") as loaded:
        for i in range(3):
            sample = bad[i]
            file = pictures / f"{i}.png"
            Image.fromarray(sample.picture).save(file)
            question = sample.questions[(i + 1) % 4]
            answer = loaded.ask(file, question.text)
            answers.append((file, question.text, str(answer), question.answer, answer.timing["total"]))
            print(
                f"  {file}: {question.text} {answer}  (right: {question.answer}, {answer.timing['total'] * 1e3:.1f} ms)"
            )

    shown = [bad[i].picture for i in range(6)]
    prompted = trained.prompt.on(trained.prompt.geometry.show(shown))
    write_report(output / "report.html", rows, trained, shown, prompted, answers, CHANCE)
    print(f"\nWrote {output / 'report.html'} after {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
