"""What a structure costs an answer: SmolVLM-256M's shape in int8, with and without a JSON Schema, in turns.

    python -m benchmarks.structured --folder DIR

The model has random weights and 49,280 tokens, which a tokenizer learned from Python's standard library. A block asks
the same question with and without the schema in the order with, without, without, with, or the other way round
(benchmarks/paired.py), for the same number of tokens. A token's time is that behind the first one. The time in which a
token is chosen from its logits, the structure's part included, is measured too; it varies less. `--folder` keeps model
and bundle. Writes structured.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
import time
from collections.abc import Callable
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
from tvp.sdk._generation import Answering, Generation
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


def choosing(ask: Callable[[], sdk.Answer], n: int) -> dict[str, float]:
    """Mean microseconds of choosing a token from its logits while n answers are written, and of a whole token."""
    spent: list[float] = []
    real = Answering._choose

    def timed(self: Answering, logits: Any) -> Any:
        began = time.perf_counter()
        found = real(self, logits)
        spent.append(time.perf_counter() - began)
        return found

    Answering._choose = timed  # type: ignore[method-assign]
    try:
        tokens = [token_seconds(ask()) for _ in range(n)]
    finally:
        Answering._choose = real  # type: ignore[method-assign]
    return {"choosing": round(1e6 * statistics.fmean(spent), 1), "token": round(1e6 * statistics.fmean(tokens), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where model and bundle are kept")
    parser.add_argument("-n", type=int, default=paired.ENOUGH, help=f"blocks of turns (default {paired.ENOUGH})")
    arguments = parser.parse_args()
    about = {
        "command": f"python -m benchmarks.structured --folder DIR -n {arguments.n}",
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

        def structured() -> sdk.Answer:
            return view.ask(QUESTION, schema=SCHEMA, max_new_tokens=400)

        def free() -> sdk.Answer:
            answer = view.ask(QUESTION, max_new_tokens=n)
            assert len(answer.tokens) == n, "the answer ended early"
            return answer

        blocks = paired.in_turns(
            lambda: {"token": token_seconds(structured())}, lambda: {"token": token_seconds(free())}, arguments.n
        )
        row = paired.summary(blocks)["token"]
        report = {
            **about,
            "answer": first.text,
            "tokens": n,
            "token_ms": {"with": round(1e3 * row["this"], 3), "without": round(1e3 * row["other"], 3)},
            "ratio": {name: row[name] for name in ("ratio", "low", "high", "n")},
            "us": {"with": choosing(structured, arguments.n), "without": choosing(free, arguments.n)},
            "first_structure_s": round(opened, 3),
        }
    report["machine"]["load_average_after"] = load_average()
    print(json.dumps(report, indent=1, ensure_ascii=False))
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
