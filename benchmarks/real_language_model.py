"""A model with a real language model: `python -m benchmarks.real_language_model PART ... --photos FOLDER`.

The model is SmolLM2-135M-Instruct behind the zoo's SigLIP encoder, which `python -m samples.zoo.build smolvlm-135m`
makes. Parts:

- photos: which of ten classes a photo of CIFAR-10 is of, by the best label and in free words; questions about scenes.
- open: "Is this an animal or a vehicle?", which no lesson asked; beside it the language model alone, told the class.
- bundle: the exported bundle against PyTorch; int8 and int4: answers, accuracy, and perplexity of plain_english.txt.
- transfer: lenses that are learned on the zoo on this model, and its own on the zoo.
- claim: the open question of `open` is taught by a frame on this model, and measured on this one and on the second one,
  `blip2-135m`, whose vision encoder is another; with FCA and TSE and without.

Each part is put into real_language_model.json beside this file as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from samples.zoo.build import WORK
from samples.zoo.models import CANVAS
from tvp import sdk
from tvp.export import parity
from tvp.export.bundle import export
from tvp.trainer import families, tasks
from tvp.trainer.config import make_config
from tvp.trainer.data import Data, Parquet, Question, Sample, Scenes, Subset
from tvp.trainer.evaluate import ask, judge, summarise
from tvp.trainer.families import GenerativeFamily
from tvp.trainer.metrics import gain
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.train import train

from .study.cells import BAD, CONTENTS, PHOTOS
from .study.data import N_TRAIN, N_VALIDATION, TASK, measured, task_of, trained_on

FULL = Geometry(CANVAS, CANVAS)
OPEN, KINDS = "Is this an animal or a vehicle?", ("animal", "vehicle")
VEHICLES = ("airplane", "automobile", "ship", "truck")
TEXT = Path(__file__).with_name("plain_english.txt")
LENS = Path(__file__).parents[1] / "samples" / "zoo" / "prompts" / "lens.safetensors"
WINDOW = 256  # tokens of the text that are read at once
FCA, TSE = 0.005, 0.004  # the weights of configs/tasks/cifar10.toml
N_PARITY = 100  # photos, and as many scenes
Rows = list[dict[str, Any]]


class Asked:
    """Photos with another question about them.

    Args:
        data: photos with one question each, whose answer is the class.
        question: the other question.
        answer_of: returns the right answer for a class.
        labels: answers to choose from.
    """

    def __init__(self, data: Data, question: str, answer_of: Callable[[str], str], labels: Sequence[str]) -> None:
        self._data, self._question, self._answer_of, self._labels = data, question, answer_of, tuple(labels)

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> None:
        return None

    def __getitem__(self, index: int) -> Sample:
        sample = self._data[index]
        answer = self._answer_of(sample.questions[0].answer)
        return Sample(sample.picture, (Question(self._question, answer, self._labels),), sample.caption, sample.clean)


def kind_of(name: str) -> str:
    return "vehicle" if name in VEHICLES else "animal"


def named(text: str, labels: Sequence[str]) -> str:
    """The label that a free answer names; '' if it names none or several."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    found = [label for label in labels if {label, f"{label}s"} & set(words)]
    return found[0] if len(found) == 1 else ""


def score(family: Any, data: Data, labels: Sequence[str], prompt: Prompt | None = None) -> dict[str, Any]:
    """Accuracy by the best label and by free answers, with examples of these."""
    geometry = prompt.geometry if prompt else FULL
    task = tasks.TaskDefinition("open", labels=tuple(labels))
    ranked = judge(ask(family, data, geometry, prompt, task))
    said = ask(family, data, geometry, prompt)
    wanted = [question.answer for question in said.questions]
    right = np.array([named(text, labels) == answer for text, answer in zip(said.answers, wanted, strict=True)])
    calibrated = None
    if ranked.scores is not None:  # each label's mean score over all pictures is taken off; no answer is read
        best = (ranked.scores - ranked.scores.mean(0)).argmax(1)
        calibrated = float(np.mean([labels[i] == answer for i, answer in zip(best, wanted, strict=True)]))
    return {
        "n": ranked.n,
        "best label": ranked.accuracy,
        "interval": [ranked.low, ranked.high],
        "best label, calibrated": calibrated,
        "free": summarise(right).accuracy,
        "free, names no label": float(np.mean([not named(text, labels) for text in said.answers])),
        "examples": [[answer, text] for answer, text in zip(wanted[:12], said.answers[:12], strict=True)],
    }


def measure_photos(family: Any, folder: Path, n: int) -> Rows:
    task = tasks.get("cifar10")
    photos = Subset(Parquet(folder, "test", "What is in the photo?", labels=task.labels), range(n))
    rows: Rows = [{"data": "photos", "question": "What is in the photo?"} | score(family, photos, task.labels)]
    scenes = judge(ask(family, Scenes(128, seed=31_337, n_questions=5), FULL))
    by_topic = {topic: float(scenes.right[i::5].mean()) for i, topic in enumerate(tasks.scenes.TOPICS)}
    return [*rows, {"data": "scenes", "n": scenes.n, "free": scenes.accuracy} | by_topic]


def measure_open(family: GenerativeFamily, folder: Path, n: int) -> Rows:
    classes = tasks.get("cifar10").labels
    photos = Subset(Parquet(folder, "test", "", labels=classes), range(n))
    seen = score(family, Asked(photos, OPEN, kind_of, KINDS), KINDS)
    told = np.stack([told_scores(family, name) for name in classes])
    wanted = [kind_of(name) for name in classes]
    shares = [
        float(np.mean([KINDS[i] == answer for i, answer in zip(table.argmax(1), wanted, strict=True)]))
        for table in (told, told - told.mean(0))
    ]
    return [
        {"question": OPEN, "sees": "the photo"} | seen,
        {"question": OPEN, "sees": "the class in words", "n": len(classes)}
        | dict(zip(("best label", "best label, calibrated"), shares, strict=True)),
    ]


@torch.no_grad()
def told_scores(family: GenerativeFamily, name: str) -> np.ndarray:
    """The scores of animal and vehicle where the language model reads a class's name in place of the picture."""
    ids = family.tokenizer(f"A photo of {'an' if name[0] in 'aeiou' else 'a'} {name}.\n").input_ids
    embeddings = family.embed_tokens(torch.tensor([ids]))
    return family.answer_scores(embeddings, [OPEN], KINDS)[0].float().numpy()


def measure_bundle(family: Any, model: Path, folder: Path, n: int) -> Rows:
    task = tasks.get("cifar10")
    photos = Parquet(folder, "test", "What is in the photo?", labels=task.labels)
    scenes = Scenes(N_PARITY, seed=3, n_questions=1)
    pictures = [*(photos[i] for i in range(N_PARITY)), *(scenes[i] for i in range(N_PARITY))]
    cases = [(sample.picture, sample.questions[0].text) for sample in pictures]
    rows: Rows = [{"precision": "PyTorch, float32"} | text_loss(lambda ids: torch_losses(family, ids), family)]
    for precision in ("fp32", "int8", "int4"):
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "task"
            export(model, tasks.get("scenes"), out, family=family, precision=precision, max_loss=1.0, reuse=False)
            size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
            with sdk.load(out, providers="cpu") as loaded:
                report = parity.measure(loaded, family, FULL, None, cases)
                began = time.perf_counter()
                right = [
                    named(loaded.ask(photos[i].picture, "What is in the photo?").text, task.labels)
                    == photos[i].questions[0].answer
                    for i in range(n)
                ]
                rows.append(
                    {"precision": precision, "n": report.n_cases, "equal": report.tokens_equal,
                     "equal end to end": report.end_to_end_equal, "logits": report.logits,
                     "different answers": len(report.answers), "n photos": n, "free": float(np.mean(right)),
                     "seconds a photo": (time.perf_counter() - began) / n, "MB": size / 1e6}
                    | text_loss(lambda ids, loaded=loaded: bundle_losses(loaded, ids), family)
                )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def text_loss(losses_of: Callable[[list[int]], np.ndarray], family: Any) -> dict[str, float]:
    """Perplexity of the plain text; every window of tokens is read alone."""
    ids = family.tokenizer(TEXT.read_text(encoding="utf-8")).input_ids
    losses = [losses_of(ids[start : start + WINDOW]) for start in range(0, len(ids) - 1, WINDOW)]
    return {"tokens": len(ids), "perplexity": math.exp(float(np.concatenate(losses).mean()))}


@torch.no_grad()
def torch_losses(family: Any, ids: list[int]) -> np.ndarray:
    embeddings = family.embed_tokens(torch.tensor([ids]))
    hidden = family.decode(embeddings, torch.ones(1, len(ids)).long(), torch.arange(len(ids))[None])
    logits = family.head(hidden)[0, :-1].float()
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").numpy()


def bundle_losses(task: Any, ids: list[int]) -> np.ndarray:
    """The same of a bundle: its decoder reads the text, from an empty cache."""
    cache = task.model.new_cache()
    logits = torch.from_numpy(cache.run(task.model.embed(ids)[None], len(ids))[0, :-1].copy())
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").numpy()


def measure_transfer(family: Any, model: Path, n: int, steps: int) -> Rows:
    """Accuracy without the bad camera, through it, and behind a lens, which gives back the share `recovery`."""
    models = {"smolvlm-135m": family} | {name: families.load(f"zoo:{name}") for name in ("blip2", "qwen2vl")}
    rows: Rows = []
    for content in CONTENTS:
        task = replace(task_of(content, BAD), camera=None)
        clean, bad = (measured(content, "test", camera) for camera in ("none", BAD))
        clean, bad = (Subset(data, range(min(n, len(data)))) for data in (clean, bad))
        before = {name: [judge(ask(one, d, FULL, None, task)) for d in (clean, bad)] for name, one in models.items()}
        for source in ("zoo:blip2", str(model)):
            lens = Prompt.load(LENS) if (source, content) == ("zoo:blip2", "scenes") else learn(source, content, steps)
            for name, one in models.items():
                was, spoilt = before[name]
                seen = judge(ask(one, bad, lens.geometry, lens, task))
                lost = was.accuracy - spoilt.accuracy
                back = (seen.accuracy - spoilt.accuracy) / lost if lost >= 0.08 else None
                rows.append({"content": content, "n": seen.n, "learned on": Path(source).name, "model": name,
                             "clean": was.accuracy, "bad camera": spoilt.accuracy, "with the lens": seen.accuracy,
                             "recovery": back})  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def measure_claim(family: Any, model: Path, second: Path, n: int, steps: int) -> Rows:
    """Points that a frame wins at animal or vehicle, on the model that it is learned on and on the second one."""
    models = {model.name: family, second.name: families.load(second)}
    data = Asked(Subset(measured("photos", "test", "none"), range(n)), OPEN, kind_of, KINDS)
    taught = Asked(trained_on("photos", "none", 1, N_TRAIN + N_VALIDATION), OPEN, kind_of, KINDS)
    task = tasks.TaskDefinition("open", labels=KINDS)
    before = {name: ask(one, data, FULL, None, task) for name, one in models.items()}
    rows: Rows = []
    for fca, tse in ((0.0, 0.0), (FCA, 0.0), (0.0, TSE), (FCA, TSE)):
        settings = {"models": (str(model),), "task": "cifar10", "method": "tvp", "steps": steps, "seed": 1,
                    "fca": fca, "tse": tse, "n_validation": N_VALIDATION}  # fmt: skip
        with tempfile.TemporaryDirectory() as place:
            frame = train(make_config(settings), place, [family], taught, quiet=True).prompt
        for name, one in models.items():
            was, now = judge(before[name]), judge(ask(one, data, frame.geometry, frame, task))
            won = gain(was.right, now.right, before[name].pictures)
            rows.append({"fca": fca, "tse": tse, "learned on": model.name, "model": name, "n": now.n,
                         "before": was.accuracy, "after": now.accuracy, "gain": won.value, "low": won.low,
                         "high": won.high})  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def learn(source: str, content: str, steps: int) -> Prompt:
    """A lens for the bad camera from pairs of one content. No question is read, and no language model is loaded."""
    settings = {"models": (source,), "task": TASK[content], "steps": steps, "n_validation": N_VALIDATION, "seed": 1,
                "guard_model": "none", "method": "lens", "learn_from": "pairs"}  # fmt: skip
    config = make_config(settings | (PHOTOS if content == "photos" else {}))
    data = trained_on(content, BAD, 1, N_TRAIN + N_VALIDATION)
    with tempfile.TemporaryDirectory() as place:
        return train(config, place, [families.load(source, vision_alone=True)], data, quiet=True).prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--model", type=Path, default=WORK / "smolvlm-135m")
    parser.add_argument("--second", type=Path, default=WORK / "blip2-135m")
    parser.add_argument("--photos", type=Path, required=True, help="folder of CIFAR-10, as parquet")
    parser.add_argument("-n", type=int, help="photos, in place of each part's own number")
    parser.add_argument("--steps", type=int, help="of a lens or frame that is learned here: 300 and 120")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bundle is always in fp32")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    file = arguments.output
    for part in arguments.parts or list(PARTS):
        began = time.process_time()
        half = arguments.precision == "bf16" and part != "bundle"
        family = families.load(arguments.model, dtype=torch.bfloat16 if half else torch.float32)
        rows = PARTS[part](family, arguments)
        found = json.loads(file.read_text()) if file.exists() else {}
        command = f"python -m benchmarks.real_language_model {part} --photos FOLDER"
        command += f" -n {arguments.n}" if arguments.n else ""
        command += f" --precision {arguments.precision}" if half else ""
        found[part] = {"command": command, "processor seconds": round(time.process_time() - began), "rows": rows}
        file.write_text(json.dumps({key: found[key] for key in PARTS if key in found}, indent=1) + "\n")
        print(json.dumps(rows, indent=1), flush=True)


PARTS: dict[str, Callable[[Any, argparse.Namespace], Rows]] = {
    "photos": lambda family, a: measure_photos(family, a.photos, a.n or 2000),
    "open": lambda family, a: measure_open(family, a.photos, a.n or 1000),
    "bundle": lambda family, a: measure_bundle(family, a.model, a.photos, a.n or 500),
    "transfer": lambda family, a: measure_transfer(family, a.model, a.n or 500, a.steps or 300),
    "claim": lambda family, a: measure_claim(family, a.model, a.second, a.n or 1000, a.steps or 120),
}


if __name__ == "__main__":
    main()
