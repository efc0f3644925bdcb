"""Our training step and scorer beside the released ones, in one run: `python -m benchmarks.reference_step`.

benchmarks/reference.py re-states the released step and scorer. Both steps get the same model, pictures, frame and
precision (float32, both losses on).

There are two cases. One is a BLIP-2 of published parts (ViT-B/16 at 224 px, Q-Former of 12 layers and 32 queries,
OPT-125M) with a ViT-B/32 guide, all with random weights. The other is the zoo's BLIP-2 with the zoo's guide. Prints
tables and writes reference_step.json beside this file. The times of a pair are taken one after the other, so that other
work on the machine slows both; ratios are medians over pairs.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import flop_counter

from benchmarks.machine import load_average, machine
from benchmarks.published_blip2 import save_published
from benchmarks.reference import TASK, Photos, Reference
from tvp.trainer import families
from tvp.trainer.batches import load_batch
from tvp.trainer.families.blip2 import Blip2
from tvp.trainer.frame import Frame
from tvp.trainer.learned import Learned
from tvp.trainer.losses import Guide
from tvp.trainer.prompt import Geometry, Prompt
from tvp.trainer.step import CLEAN_BUDGET, Objective
from tvp.trainer.team import Team
from tvp.trainer.train import TrainConfig

STEPS = ("reference", "ours", "ours, pictures new", "ours, compiled")
LEFT_OUT = (
    "Counted are matrix products, convolutions and attention, forward and backward, by torch's FlopCounterMode. "
    "Left out is what moves memory more than it computes: activations, norms, soft-maxes outside of fused attention, "
    "embedding look-ups, copies; and what torch does not do: Pillow's resizing, tokenising."
)


@dataclass(frozen=True)
class Case:
    """What is measured: a model and a guide, by folder or zoo name.

    Args:
        name: in the report.
        model: a folder or zoo:NAME.
        guide: a folder or zoo:guide.
        geometry: of the canvas on which pictures are shown.
        batch: pictures a step.
    """

    name: str
    model: str
    guide: str
    geometry: Geometry
    batch: int


class Ours:
    """The step and the scorer of tvp.trainer.

    Args:
        family: the model.
        guide: of Task Semantics Enrichment.
        case: what is measured.
        data: the pictures.
        remember: whether the clean features of pictures are kept, as from the second epoch on. Without this every
            step computes them, as the first step of each picture does.
    """

    def __init__(self, family: Blip2, guide: Guide, case: Case, data: Photos, remember: bool = True) -> None:
        self._family, self._guide, self._data = family, guide, data
        self._config = TrainConfig(
            models=(case.model,), canvas=case.geometry.canvas, inner=case.geometry.inner, batch=case.batch
        )
        budget = CLEAN_BUDGET if remember else 0
        self._objective = Objective(self._config, data, [family], guide, case.geometry, clean_budget=budget)

    def gradient(self, prompt: Prompt, indices: Sequence[int]) -> Tensor:
        """The loss's gradient by the frame."""
        frame = Frame(prompt.geometry, prompt.pixel_range, 0, 0)
        frame.values = [prompt.frame.clone()]
        learned = Learned(prompt.geometry, frame)
        batch = load_batch(self._data, indices, prompt.geometry, self._config.questions)
        _, (gradient,) = self._objective(batch, learned, Team())
        return gradient

    def look(self, geometry: Geometry, indices: Sequence[int]) -> None:
        """See clean pictures and read all captions. The first picture says whether there is room to keep features."""
        for i in indices:
            self._objective.references[0](load_batch(self._data, [i], geometry, 0))
        self._guide.text_features([self._data[i].caption for i in range(len(self._data))])

    def scores(self, embeddings: Tensor) -> Tensor:
        return self._family.answer_scores(embeddings, [TASK.question] * len(embeddings), TASK.labels)


class Bench:
    """Both steps of a case, ready to run, with a frame that is not zero."""

    def __init__(self, case: Case, n_pictures: int) -> None:
        family = families.load(case.model)
        assert isinstance(family, Blip2)
        self.case, self.family, self.data = case, family, Photos(n_pictures)
        guide = Guide(case.guide)
        read = open_clip.get_tokenizer(f"local-dir:{families.locate(case.guide)}")
        self.prompt = Prompt.start(case.geometry, "free")
        noise = torch.rand(self.prompt.frame.shape, generator=torch.Generator().manual_seed(1))
        self.prompt.frame = noise * case.geometry.mask()
        self.reference = Reference(family, copy.deepcopy(guide), read, self.data)
        self.ours = Ours(family, guide, case, self.data)
        self.ours_new = Ours(family, guide, case, self.data, remember=False)
        compiled, compiled_guide = copy.deepcopy(family), copy.deepcopy(guide)
        compiled.compile()
        compiled_guide.compile()
        self.ours_compiled = Ours(compiled, compiled_guide, case, self.data)

    def indices(self, step: int) -> list[int]:
        return [(step * self.case.batch + i) % len(self.data) for i in range(self.case.batch)]

    def step(self, name: str) -> Callable[[Sequence[int]], Tensor]:
        side = dict(zip(STEPS, (self.reference, self.ours, self.ours_new, self.ours_compiled), strict=True))[name]
        return lambda indices: side.gradient(self.prompt, indices)

    @torch.no_grad()
    def embeddings(self) -> Tensor:
        """Image embeddings of the first batch with the prompt."""
        pictures = [self.data[i].picture for i in self.indices(0)]
        canvas = self.prompt.on(self.case.geometry.show(pictures))
        return self.family.see(self.family.to_pixels(canvas))


class Counter(flop_counter.FlopCounterMode):
    """Counts floating-point operations; LEFT_OUT says what is not counted."""

    def __init__(self) -> None:
        aten = torch.ops.aten
        # torch counts fused attention on the GPU only.
        on_cpu = {
            aten._scaled_dot_product_flash_attention_for_cpu: (
                lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(q, k, v)
            ),
            aten._scaled_dot_product_flash_attention_for_cpu_backward: (
                lambda out, q, k, v, *_, **__: flop_counter.sdpa_backward_flop_count(out, q, k, v)
            ),
        }
        super().__init__(display=False, custom_mapping=on_cpu)


def interleave(
    calls: dict[str, Callable[[int], Tensor]], n_pairs: int
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, Tensor]]:
    """Time calls in rounds, one after the other.

    A first round warms up; its operations are counted, and its results are kept.

    Returns:
        Seconds of each call in each of n_pairs rounds, operations of each call, and each call's result.
    """
    flops, first = {}, {}
    for name, call in calls.items():
        if name != "ours, compiled":  # the counter does not see its kernels; its arithmetic is that of "ours"
            with Counter() as counter:
                call(0)
            flops[name] = counter.get_total_flops()
        first[name] = call(0)
    if "ours, compiled" in calls:
        flops["ours, compiled"] = flops["ours"]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for step in range(n_pairs):
        for name, call in calls.items():
            began = time.perf_counter()
            call(step)
            seconds[name].append(time.perf_counter() - began)
    return seconds, flops, first


def faster(seconds: dict[str, list[float]], flops: dict[str, int], name: str) -> dict[str, float]:
    """How many times as fast as the reference a step is.

    Returns:
        The median, lowest and highest ratio of the pairs; the ratio that arithmetic alone would allow; and the share of
        it that the median reaches.
    """
    ratios = [theirs / ours for theirs, ours in zip(seconds["reference"], seconds[name], strict=True)]
    median, allowed = statistics.median(ratios), flops["reference"] / flops[name]
    facts = {"faster": median, "lowest": min(ratios), "highest": max(ratios), "allowed": allowed}
    return {key: round(value, 2) for key, value in facts.items()} | {"share_of_allowed": round(median / allowed, 3)}


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


def measure(bench: Bench, n_pairs: int) -> dict[str, Any]:
    """All figures of a case but the peaks of memory."""
    bench.ours.look(bench.prompt.geometry, range(len(bench.data)))
    bench.ours_compiled.look(bench.prompt.geometry, range(len(bench.data)))
    bench.ours_new.look(bench.prompt.geometry, [0])
    steps = {name: lambda step, name=name: bench.step(name)(bench.indices(step)) for name in STEPS}
    seconds, flops, gradients = interleave(steps, n_pairs)
    embeddings = bench.embeddings()
    scorers = {"reference": bench.reference.scores, "ours": bench.ours.scores}
    scored, arithmetic, scores = interleave(
        {name: lambda _, call=call: call(embeddings) for name, call in scorers.items()}, n_pairs
    )
    return {
        "batch": bench.case.batch,
        "cosine": cosine(gradients["reference"], gradients["ours"]),
        "cosine_compiled": cosine(gradients["reference"], gradients["ours, compiled"]),
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "gflop": {name: round(value / 1e9, 2) for name, value in flops.items()},
        **{name: faster(seconds, flops, name) for name in STEPS[1:]},
        "scoring": {
            "pictures": len(embeddings),
            "classes": len(TASK.labels),
            "seconds": {name: round(statistics.median(values), 4) for name, values in scored.items()},
            "gflop": {name: round(value / 1e9, 2) for name, value in arithmetic.items()},
            **faster(scored, arithmetic, "ours"),
            "largest_difference": (scores["reference"] - scores["ours"]).abs().max().item(),
        },
    }


def peak(bench: Bench, name: str) -> float:
    """MiB that a step takes at most, over the resident memory before it, when all is loaded."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    # Not getrusage's ru_maxrss: it starts from the parent's, and includes the peak of loading.
    reset.write_text("5")
    before = read("VmRSS:")
    bench.step(name)(bench.indices(0))
    return (read("VmHWM:") - before) / 1024


def peaks(case: Case, threads: int) -> dict[str, float]:
    """The peak of each step, in a process of its own."""
    found = {}
    for name in STEPS[:3]:  # compiling itself takes more than any step
        request = json.dumps([vars(case) | {"geometry": vars(case.geometry)}, name, threads])
        command = [sys.executable, "-m", "benchmarks.reference_step", "--peak", request]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = round(float(run.stdout.split()[-1]), 1)
    return found


def show(name: str, row: dict[str, Any]) -> None:
    print(
        f"\n{name}, {row['batch']} pictures a step, cosine of the gradients {row['cosine']:.7f}, "
        f"compiled {row['cosine_compiled']:.7f}"
    )
    print(f"{'':<20}{'seconds':>9}{'GFLOP':>10}{'peak MiB':>10}{'faster':>22}{'allowed':>9}{'share':>7}")
    for step in STEPS:
        line = f"{step:<20}{row['seconds'][step]:>9.3f}{row['gflop'][step]:>10.1f}"
        needed = f"{row['peak_mib'][step]:.0f}" if step in row["peak_mib"] else "-"
        print(f"{line}{needed:>10}{spread(row.get(step))}")
    scoring = row["scoring"]
    for step in STEPS[:2]:
        label = f"scoring, {step}"
        line = f"{label:<20}{scoring['seconds'][step]:>9.3f}{scoring['gflop'][step]:>10.1f}{'':>10}"
        print(line + spread(scoring if step == "ours" else None))
    print(
        f"scored were {scoring['classes']} classes of {scoring['pictures']} pictures; "
        f"largest difference {scoring['largest_difference']:.1e}"
    )


def spread(facts: dict[str, float] | None) -> str:
    if facts is None:
        return ""
    ratios = f"{facts['faster']:.2f} ({facts['lowest']:.2f}-{facts['highest']:.2f})"
    return f"{ratios:>22}{facts['allowed']:>9.2f}{facts['share_of_allowed']:>7.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs of steps (default 7)")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step, of the zoo's model (default 16)")
    parser.add_argument("--large-batch", type=int, default=4, help="of the published parts (default 4)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only",
        choices=["zoo", "published"],
        help="measure this case; the other keeps its figures",
    )
    parser.add_argument("--parts", type=Path, help="where the published parts are kept (default: nowhere)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # the request to a process that measures a peak
    arguments = parser.parse_args()
    if arguments.peak:
        fields, step, threads = json.loads(arguments.peak)
        torch.set_num_threads(threads)
        case = Case(**fields | {"geometry": Geometry(**fields["geometry"])})
        print(peak(Bench(case, case.batch), step))
        return
    torch.set_num_threads(arguments.threads)
    about = {"command": shlex.join(["python", "-m", "benchmarks.reference_step", *sys.argv[1:]])}
    output = Path(__file__).with_suffix(".json")
    report = json.loads(output.read_text()) if output.exists() else {"left_out_of_gflop": LEFT_OUT, "cases": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.parts or Path(temporary)
        cases = [Case("zoo:blip2 with zoo:guide", "zoo:blip2", "zoo:guide", Geometry(64, 48), arguments.batch)]
        if arguments.only != "zoo":
            parts = (str(folder / "blip2"), str(folder / "guide"))
            if not (folder / "guide").exists():
                save_published(folder, TASK)
            cases.append(Case("BLIP-2 of published parts with ViT-B-32", *parts, Geometry(), arguments.large_batch))
        for case in cases[arguments.only == "published" :]:
            measured_on = machine("torch", "transformers", "open_clip_torch")
            facts = about | {"machine": measured_on | {"threads": arguments.threads}}
            row = {"peak_mib": peaks(case, arguments.threads)} | measure(Bench(case, 2 * case.batch), arguments.pairs)
            facts["machine"]["load_average_after"] = load_average()
            report["cases"][case.name] = facts | row
            show(case.name, row)
            output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
