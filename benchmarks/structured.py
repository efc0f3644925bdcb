"""What a structure costs an answer: SmolVLM-256M's shape in int8, with and without a JSON Schema, in turns.

    python -m benchmarks.structured --folder DIR

The model has random weights and 49,280 tokens, which a tokenizer learned from Python's standard library. A block asks
the same question with and without the schema in the order with, without, without, with, or the other way round
(benchmarks/paired.py), for the same number of tokens. A token's time is that behind the first one. `--folder` keeps
model and bundle. Writes structured.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks import paired
from benchmarks.machine import load_average, machine
from benchmarks.published_models import save_smolvlm
from tvp import sdk
from tvp.export.base import RECIPE
from tvp.export.bundle import export
from tvp.sdk._generation import Generation
from tvp.trainer import tasks

QUESTION = "What is in the picture?"
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["star", "disc", "square", "triangle"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "colours": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 3, "maxItems": 3},
        "about": {"type": "string", "minLength": 120, "maxLength": 200},
    },
    "required": ["shape", "count", "colours", "about"],
    "additionalProperties": False,
}
N_VOCAB = 49280


def learn_tokenizer(special: dict[str, int]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as large as SmolVLM's, whose special tokens have these ids."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests"}  # other people's, and files that are damaged on purpose
    files = [str(file) for file in sorted(library.rglob("*.py")) if not left_out & {*file.parts}]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = N_VOCAB - len(special)
    learned.train(files, trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet))
    state = json.loads(learned.to_str())["model"]
    free = iter(sorted(set(range(N_VOCAB)) - set(special.values())))
    vocabulary = {token: next(free) for token in sorted(state["vocab"], key=state["vocab"].get)} | special
    vocabulary |= {f"unused {i}": i for i in free}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in state["merges"]]))
    tokenizer.pre_tokenizer, tokenizer.decoder = learned.pre_tokenizer, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=[*special])


def prepare(folder: Path) -> Path:
    """The bundle, made where it is missing."""
    model, bundle = folder / "models" / "smolvlm-256m-words", folder / "bundles" / f"smolvlm-256m-words-int8-{RECIPE}"
    if not model.exists():
        save_smolvlm(model)
        saved = json.loads((model / "tokenizer.json").read_text())
        learn_tokenizer({t["content"]: t["id"] for t in saved["added_tokens"]}).save_pretrained(model)
    if not bundle.exists():
        export(model, tasks.get("scenes"), bundle, precision="int8", n_cases=1, max_loss=1, reuse=False)
    return bundle


def token_seconds(answer: sdk.Answer) -> float:
    timing = answer.timing
    return (timing["total"] - timing["see"] - timing["first_token"]) / (len(answer.tokens) - 1)


def follower_micros(task: sdk.Task, tokens: tuple[int, ...]) -> dict[str, float]:
    """Microseconds of what a structure adds to each token of an answer, alone."""
    generation = Generation.of({"schema": SCHEMA}, 1)
    model: Any = task.model
    logits = np.random.default_rng(0).normal(size=N_VOCAB).astype(np.float32)
    spent = []
    for _ in range(20):
        follower = model.grammars.find(generation.structure).follow()
        for number, token in enumerate(tokens):
            began = time.perf_counter()
            follower.look()
            if not follower.allows(token):
                raise RuntimeError("The answer does not follow its schema.")
            if number % 2:  # as where the likeliest of all tokens is not allowed
                allowed = follower.allowed()
                logits[allowed].argmax()
            if token not in model.manifest.layout.end:
                follower.take(token)
            spent.append(1e6 * (time.perf_counter() - began))
    return {"median": round(statistics.median(spent), 1), "most": round(max(spent), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where model and bundle are kept")
    parser.add_argument("-n", type=int, default=paired.ENOUGH, help=f"blocks of turns (default {paired.ENOUGH})")
    arguments = parser.parse_args()
    about = {
        "command": shlex.join(["python", "-m", "benchmarks.structured", *sys.argv[1:]]),
        "machine": machine("onnxruntime", "llguidance"),
    }
    with sdk.load(prepare(arguments.folder), providers="cpu") as task:
        view = task.see(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
        model: Any = task.model
        began = time.perf_counter()
        model.grammars.find(Generation.of({"schema": SCHEMA}, 1).structure)
        opened = time.perf_counter() - began
        first = view.ask(QUESTION, schema=SCHEMA, max_new_tokens=400)
        n = len(first.tokens)

        def with_schema() -> paired.Measured:
            return {"token": token_seconds(view.ask(QUESTION, schema=SCHEMA, max_new_tokens=400))}

        def without() -> paired.Measured:
            answer = view.ask(QUESTION, max_new_tokens=n)
            assert len(answer.tokens) == n, "the answer ended early"
            return {"token": token_seconds(answer)}

        row = paired.summary(paired.in_turns(with_schema, without, arguments.n))["token"]
        report = {
            **about,
            "answer": first.text,
            "tokens": n,
            "token_ms": {"with": round(1e3 * row["this"], 3), "without": round(1e3 * row["other"], 3)},
            "ratio": {name: row[name] for name in ("ratio", "low", "high", "n")},
            "follower_us": follower_micros(task, first.tokens),
            "first_structure_s": round(opened, 3),
        }
    report["machine"]["load_average_after"] = load_average()
    print(json.dumps(report, indent=1, ensure_ascii=False))
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
