"""Exported models against PyTorch at published dimensions: `python -m benchmarks.published_parity`.

Every family of the trainer that generates, at the sizes of its published checkpoints, two layers deep and with random
weights (tests/published.py): 200 pairs of pictures (noise) and questions each, answered by the bundle and by the
unpatched model.
Prints a line a checkpoint and writes published_parity.json beside this file; those in it are not measured again.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from tests.published import WORDS, Published
from tests.stand_in import build, make_pool

from tvp import sdk
from tvp.export import parity
from tvp.export.bundle import export
from tvp.sdk.errors import ModelError
from tvp.trainer import tasks
from tvp.trainer.prompt import Geometry, Prompt

QUESTIONS = (
    "How many objects are there?", "What?", "Is there a red star?", "What color is the triangle, and where is it?",
    "Is this a photo of a dog or of a cat?", "Describe it.", "Is the text hateful?", "Which of them is the largest?",
    "What is in the photo?", "Is there a snowboard in the image?",
)  # fmt: skip
N_PICTURES = 20
N_NEW = 4  # tokens of an answer


def measure(case: Published, pool: torch.Tensor, folder: Path) -> parity.Parity:
    family = build(case, pool)
    prompt = Prompt.start(Geometry(224, 164), "free")
    prompt.frame = torch.rand(prompt.frame.shape, generator=torch.Generator().manual_seed(1)) * prompt.geometry.mask()
    rng = np.random.default_rng(0)
    cases = [
        (picture, question)
        for picture in (rng.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(N_PICTURES))
        for question in QUESTIONS
    ]
    export(case.name, tasks.get("scenes"), folder / "task", prompt=prompt, family=family, n_cases=1, reuse=False)
    with sdk.load(folder / "task", providers="cpu") as task:
        return parity.measure(task, family, prompt.geometry, prompt, cases, N_NEW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names that contain this")
    arguments = parser.parse_args()
    output = Path(__file__).with_suffix(".json")
    report = json.loads(output.read_text()) if output.exists() else {}
    report |= {"command": "python -m benchmarks.published_parity", "torch": torch.__version__, "layers": 2}
    rows = report.setdefault("checkpoints", {})
    pool = make_pool()
    cases = [case for case in WORDS if (arguments.only or "") in case.name and case.name not in rows]
    # The narrow ones first: a run that is stopped has measured most families.
    for case in sorted(cases, key=lambda case: case.width * case.n_image):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = measure(case, pool, Path(folder))
            except ModelError as error:
                print(f"{case.name:<48} {error}", flush=True)
                continue
        gc.collect()
        differences = found.differences + found.pixel_differences
        rows[case.name] = found.facts() | {"family": case.kind, "differences": differences}
        print(
            f"{case.name:<48} tokens {found.tokens_equal}/{found.n_cases}, end to end {found.end_to_end_equal}/"
            f"{found.n_cases}, logits {found.logits:.1e}",
            flush=True,
        )
        output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
