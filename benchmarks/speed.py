"""The sdk beside PyTorch and other engines on models of published shapes.

    python -m benchmarks.speed --folder DIR
    python -m benchmarks.speed --folder DIR --against CHECKOUT [--bundle BUNDLE --against-bundle BUNDLE]

The models have random weights. One run measures side by side:

- `ask` of 16 new tokens, transformers' `generate`, and Optimum's own exports with a cache that grows;
- a decoded token alone, also with the graph that onnxruntime-genai's builder writes and with llama.cpp, where those
  are installed (PYTHONPATH may name a folder of such packages);
- a second question as long as the first, the ranking of ten labels of a token each, and the prompt's graph alone.

Every ratio is the median over pairs that were measured one after the other. `--folder` keeps models, bundles and other
engines' files. Writes speed.json beside this file.

`--against` measures this checkout's sdk beside another checkout's instead, in turns (benchmarks/paired.py): imports,
loading, memory, `ask`, `see` and a token, of SmolVLM-256M's shape and of the zoo. Either side reads what its own
exporter makes of the same weights, or the bundles that are given. Writes speed_against.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image

from benchmarks import against
from benchmarks.engines import GenAI, Growing, LlamaCpp
from benchmarks.machine import load_average, machine
from benchmarks.published_models import SAVERS
from samples.zoo.models import MAKERS
from tvp import sdk
from tvp.export.base import RECIPE
from tvp.export.bundle import export
from tvp.trainer import families, tasks
from tvp.trainer.prompt import Geometry, Prompt

QUESTION, SECOND = "How many objects are there?", "Is there a red star there?!"  # of equal length, a token a character
LABELS = [str(i) for i in range(10)]  # of a token each, as most labels are for a real tokenizer
assert len(QUESTION) == len(SECOND)
PRECISIONS = ("fp32", "int8", "int4")
N_NEW = 16
ZOO = tuple(f"zoo:{name}" for name in MAKERS)
WITH_BOTH = ("smolvlm-256m", *ZOO)  # what --against measures
# Bits as other engines call them -> as the sdk does.
SAME_BITS = {"fp32": "fp32", "int4": "int4", "f32": "fp32", "q8_0": "int8", "q4_0": "int4"}


class PyTorch:
    """transformers as its documentation runs it: image processor, `generate`, key/value cache."""

    def __init__(self, folder: Path, family: Any) -> None:
        self.family, self.model = family, family.model
        self.processor = hf.AutoImageProcessor.from_pretrained(folder)
        before, after = family.prompt_ids(QUESTION)
        with torch.no_grad():
            size = family.pixel_format.size
            n_image = family.see(torch.zeros(1, 3, size, size)).shape[1]
        image_token = getattr(self.model.config, "image_token_index", None) or self.model.config.image_token_id
        self.ids = torch.tensor([[*before, *[image_token] * n_image, *after]])

    @torch.no_grad()
    def ask(self, picture: Image.Image, n_new: int) -> list[int]:
        pixels = self.processor(picture, return_tensors="pt")["pixel_values"]
        out = self.model.generate(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            pixel_values=pixels,
            min_new_tokens=n_new,
            max_new_tokens=n_new,
            do_sample=False,
        )
        return out[0, -n_new:].tolist()

    @torch.no_grad()
    def tokens(self, n_new: int) -> Callable[[], None]:
        """A call that decodes n_new tokens behind a prompt as long as a question about a picture."""
        family, length = self.family, self.ids.shape[1]
        cache = hf.DynamicCache()
        inputs = family.embed_tokens(self.ids)
        places = torch.arange(length)[None]
        family.decode(inputs, torch.ones_like(self.ids), places, cache=cache)

        @torch.no_grad()
        def call() -> None:
            cache.crop(length)
            token = torch.tensor([[5]])
            for i in range(n_new):
                real = torch.ones(1, length + i + 1, dtype=torch.int64)
                hidden = family.decode(family.embed_tokens(token), real, torch.tensor([[length + i]]), cache=cache)
                token = family.head(hidden[:, -1:]).argmax(-1)

        return call


def sdk_tokens(task: sdk.Task, picture: Any, n_new: int) -> Callable[[], None]:
    """A call that decodes n_new tokens behind a question, as `ask` does."""
    view = task.see(picture)

    def call() -> None:
        steps = view.decode(QUESTION, n_new + 1)
        next(steps)
        began = time.perf_counter()
        assert sum(1 for _ in steps) == n_new, "the answer ended early"
        call.seconds = time.perf_counter() - began  # type: ignore[attr-defined]

    return call


def pairs(calls: dict[str, Callable[[], Any]], n: int) -> dict[str, list[float]]:
    """Seconds of each call in n rounds, in which they run one after the other; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(n + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            spent = getattr(call, "seconds", time.perf_counter() - began)
            if i:
                seconds[name].append(spent)
    return seconds


def table(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Each call's median in ms, and how many times as fast as the reference it is: median, lowest, highest."""
    rows = {}
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds[reference], values, strict=True)]
        rows[name] = {
            "ms": round(statistics.median(values) * 1e3, 2),
            "faster": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
        }
    return rows


def bandwidth() -> float:
    """Bytes that a plain copy reads and writes in a second."""
    source, target = torch.ones(2**27), torch.empty(2**27)
    spent = []
    for _ in range(7):
        began = time.perf_counter()
        target.copy_(source)
        spent.append(time.perf_counter() - began)
    return 2 * source.nbytes / min(spent)


def model_of(name: str, folder: Path) -> Path:
    """The model's folder, made where it is missing."""
    model = folder / "models" / name
    if not model.exists():
        SAVERS[name](model)
    return model


def sides(family: Any) -> tuple[int, int]:
    """Px of the model's canvas and of the picture inside; the frame is as wide as 30 px around 164."""
    size = family.pixel_format.size
    return size, size * 164 // 224 // 2 * 2


def prepare(name: str, folder: Path) -> tuple[Path, dict[str, Path]]:
    """The model's folder and its bundles, made where they are missing."""
    model = model_of(name, folder)
    # The recipe is in the name, so that graphs of an earlier exporter are not measured.
    bundles = {precision: folder / "bundles" / name / f"{precision}-{RECIPE}" for precision in PRECISIONS}
    family = None
    for precision, bundle in bundles.items():
        if not bundle.exists():
            family = family or families.load(model)
            prompt = Prompt.start(Geometry(*sides(family)), "free")
            task = tasks.get("scenes")
            export(
                model,
                task,
                bundle,
                family=family,
                prompt=prompt,
                precision=precision,
                n_cases=1,
                max_loss=1,
                reuse=False,
            )
    return model, bundles


def measure(name: str, folder: Path, n: int) -> dict[str, Any]:
    """A model's figures, of n rounds."""
    model, bundles = prepare(name, folder)
    family = families.load(model)
    theirs = PyTorch(model, family)
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    image = Image.fromarray(picture)
    loaded = {precision: sdk.load(bundle, providers="cpu") for precision, bundle in bundles.items()}
    row: dict[str, Any] = {"prompt_tokens": theirs.ids.shape[1]}

    growing = Growing(family, folder / "optimum" / name, loaded["fp32"], theirs.ids)
    asks: dict[str, Callable[[], Any]] = {"transformers": lambda: theirs.ask(image, N_NEW)}
    asks["Optimum, growing cache"] = lambda: growing.ask(picture, N_NEW)
    for precision, task in loaded.items():
        asks[f"sdk {precision}"] = lambda task=task: _exactly(task.ask(picture, QUESTION, max_new_tokens=N_NEW))
    row["ask"] = table(pairs(asks, n), "transformers")
    growing.close()
    print(name, "ask", row["ask"], flush=True)
    decoders: dict[str, Callable[[], Any]] = {"transformers": theirs.tokens(N_NEW)}
    for precision, task in loaded.items():
        decoders[f"sdk {precision}"] = sdk_tokens(task, picture, N_NEW)
    for engine in (GenAI, LlamaCpp):
        decoders |= engine.calls(family, folder, name, theirs.ids.shape[1], N_NEW)
    seconds = pairs(decoders, n)
    row["16 tokens"] = table(seconds, "transformers")
    row["sdk / engine"] = {
        engine: _share(seconds, f"sdk {precision}", engine)
        for engine in decoders
        for bits, precision in SAME_BITS.items()
        if engine.endswith(f" {bits}") and not engine.startswith("sdk")
    }

    row["views"] = {}
    for precision, task in loaded.items():
        view = task.see(picture)
        view.ask(QUESTION, max_new_tokens=1)
        calls = {
            "ask, 1 token": lambda task=task: task.ask(picture, QUESTION, max_new_tokens=1),
            "second question, 1 token": lambda view=view: view.ask(SECOND, max_new_tokens=1),
            "ask, 16 tokens": lambda task=task: task.ask(picture, QUESTION, max_new_tokens=N_NEW),
            "second question, 16 tokens": lambda view=view: view.ask(SECOND, max_new_tokens=N_NEW),
            "rank of ten": lambda task=task: task.rank(picture, QUESTION, labels=LABELS),
            "the prompt's graph": lambda task=task: task.pixel_values(picture),
        }
        seconds = pairs(calls, n)
        row["views"][precision] = {
            "ms": {key: round(statistics.median(values) * 1e3, 2) for key, values in seconds.items()},
            "second / first, 1 token": _share(seconds, "second question, 1 token", "ask, 1 token"),
            "second / first, 16 tokens": _share(seconds, "second question, 16 tokens", "ask, 16 tokens"),
            "rank / ask, 1 token": _share(seconds, "rank of ten", "ask, 1 token"),
            "the prompt / ask, 16 tokens": _share(seconds, "the prompt's graph", "ask, 16 tokens"),
        }
    speed = bandwidth()
    read = (bundles["fp32"] / "base" / "decoder_model_merged.onnx").stat().st_size
    token = row["16 tokens"]["sdk fp32"]["ms"] / 1e3 / N_NEW
    row["bandwidth"] = {
        "copy_gb_s": round(speed / 1e9, 2),
        "decoder_gb_s": round(read / token / 1e9, 2),
        "share": round(read / token / speed, 3),
    }
    for task in loaded.values():
        task.close()
    return row


def _exactly(answer: sdk.Answer) -> None:
    assert len(answer.tokens) == N_NEW, "the answer ended early"


def _share(seconds: dict[str, list[float]], part: str, whole: str) -> float:
    return round(statistics.median(a / b for a, b in zip(seconds[part], seconds[whole], strict=True)), 4)


def measure_against(arguments: argparse.Namespace) -> None:
    """The sdk of this checkout beside another's."""
    output = arguments.output or Path(__file__).with_name("speed_against.json")
    with against.Comparison(arguments.against, arguments.pairs) as comparison:
        cases = {}
        for name, bundles in bundles_of_both(comparison, arguments):
            rows, facts = comparison.measured(bundles), comparison.same_answer(bundles)
            against.show(name, rows)
            print(f"  answers of {facts['tokens']} tokens, {'equal' if facts['same answer'] else 'DIFFERENT'}")
            cases[name] = facts | {"measures": rows}
        against.write(output, comparison.report(cases))


def bundles_of_both(
    comparison: against.Comparison, arguments: argparse.Namespace
) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """What is measured, with the bundle of this checkout and that of the other."""
    if arguments.bundle:
        yield from against.given(arguments.bundle, arguments.against_bundle)
        return
    folder = arguments.folder.resolve() / "against"
    for name in arguments.model or WITH_BOTH:
        model = name if name in ZOO else model_of(name, arguments.folder).resolve()
        square = sides(families.load(model))
        for precision in ("fp32",) if name in ZOO else ("fp32", "int8"):
            yield f"{name} {precision}", comparison.exported(model, precision, square, folder)


def show(name: str, row: dict[str, Any]) -> None:
    """Print a model's figures."""
    print(f"\n{name}, a prompt of {row['prompt_tokens']} tokens")
    for part in ("ask", "16 tokens"):
        print(f"{part:<28}{'ms':>10}{'times transformers':>32}")
        for engine, facts in row[part].items():
            spread = f"{facts['faster']:.2f} ({facts['lowest']:.2f}-{facts['highest']:.2f})"
            print(f"  {engine:<26}{facts['ms']:>10.1f}{spread:>32}")
    for precision, facts in row["views"].items():
        print(f"{precision}: " + ", ".join(f"{key} {value:.1%}" for key, value in facts.items() if key != "ms"))
    print("time of a token over another engine's at the same bits: ", row["sdk / engine"])
    print("bandwidth: copy {copy_gb_s} GB/s, decoding {decoder_gb_s} GB/s, {share:.0%}".format(**row["bandwidth"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where models and bundles are kept; not needed with --bundle")
    parser.add_argument(
        "--model", choices=[*SAVERS, *ZOO], action="append", metavar="NAME",
        help=f"repeatable; one of {', '.join(SAVERS)}, and with --against also of {', '.join(ZOO)}; default: both "
        f"shapes, or with --against {WITH_BOTH[0]} and the zoo",
    )  # fmt: skip
    parser.add_argument("-n", type=int, default=7, help="rounds (default 7); --against has blocks of turns")
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="with --against: measure this bundle; repeatable"
    )
    against.add_options(parser)
    parser.add_argument("-o", "--output", type=Path, help="with --against: the JSON file to write")
    arguments = parser.parse_args()
    against.check_options(parser, arguments)
    torch.set_num_threads(2)
    hf.utils.logging.set_verbosity_error()
    if not (arguments.folder or (arguments.against and arguments.bundle)):
        parser.error("--folder is missing: models and bundles are kept there.")
    if arguments.against:
        measure_against(arguments)
        return
    if zoo := set(arguments.model or ()) - set(SAVERS):
        parser.error(f"{', '.join(zoo)}: the zoo is measured with --against only.")
    output = Path(__file__).with_suffix(".json")
    report = json.loads(output.read_text()) if output.exists() else {}
    for name in arguments.model or SAVERS:
        command = shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]])
        about = {"command": command, "machine": machine("torch", "transformers", "onnxruntime")}
        report[name] = about | measure(name, arguments.folder, arguments.n)
        report[name]["machine"]["load_average_after"] = load_average()
        show(name, report[name])
        output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
