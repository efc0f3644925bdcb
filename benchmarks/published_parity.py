"""Exported models against PyTorch at published dimensions: `python -m benchmarks.published_parity`.

Every generative family of the trainer is measured at the sizes of its published checkpoints, two layers deep and with
random weights (tests/published.py). `exact`: the bundle and the unpatched model answer 200 pairs of a picture (noise)
and a question. `asked`: a few pairs are asked in each of the sdk's ways, and both sides rank labels.

Prints two lines a checkpoint and writes published_parity.json beside this file. A checkpoint that is in the file is not
measured again.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.published import WORDS, Published
from tests.stand_in import build, make_pool
from tvp import sdk
from tvp.export import parity
from tvp.export.bundle import export
from tvp.sdk.errors import ModelError
from tvp.trainer import tasks
from tvp.trainer.families import GenerativeFamily
from tvp.trainer.prompt import Geometry, Prompt

QUESTIONS = (
    "How many objects are there?", "What?", "Is there a red star?", "What color is the triangle, and where is it?",
    "Is this a photo of a dog or of a cat?", "Describe it.", "Is the text hateful?", "Which of them is the largest?",
    "What is in the photo?", "Is there a snowboard in the image?",
)  # fmt: skip
LABELS = ["a red star or not", "a red star", "yes", "a purple triangle and more"]  # of several lengths
N_PICTURES = 20
N_NEW = 4  # tokens of an answer
Cases = list[tuple[np.ndarray, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="measure checkpoints whose name contains this")
    parser.add_argument("--skip", choices=list(PARTS), help="leave this part out")
    parser.add_argument(
        "--half", action="store_true", help="start from the same pixel values; leave out each side's own resizing"
    )
    arguments = parser.parse_args()
    PARTS["exact"] = partial(exact, end_to_end=not arguments.half)
    output = Path(__file__).with_suffix(".json")
    report = json.loads(output.read_text()) if output.exists() else {}
    report |= {"command": "python -m benchmarks.published_parity", "torch": torch.__version__, "layers": 2}
    rows = report.setdefault("checkpoints", {})
    pool = make_pool()
    # The narrow ones first: a run that is stopped has measured most families.
    for case in sorted(WORDS, key=lambda case: case.width * case.n_image):
        row = rows.get(case.name, {"family": case.kind})
        todo = [part for part in PARTS if part not in row and part != arguments.skip]
        if (arguments.only or "") not in case.name or not todo:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = measure(case, pool, Path(folder), todo)
            except ModelError as error:
                print(f"{case.name:<48} {error}", flush=True)
                continue
        gc.collect()
        rows[case.name] = row | found
        for part in todo:
            print(f"{case.name:<48} {part}: {json.dumps(found[part])}", flush=True)
        output.write_text(json.dumps(report, indent=1) + "\n")


def measure(case: Published, pool: torch.Tensor, folder: Path, parts: list[str]) -> dict[str, Any]:
    """Export a checkpoint's stand-in with a random prompt, and compare the bundle with it part by part."""
    family = build(case, pool)
    assert isinstance(family, GenerativeFamily)
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
        return {part: PARTS[part](task, family, prompt, cases) for part in parts}


def exact(
    task: sdk.Task, family: GenerativeFamily, prompt: Prompt, cases: Cases, *, end_to_end: bool = True
) -> dict[str, Any]:
    """Compare the answers of all cases as the export's parity gate does."""
    found = parity.measure(task, family, prompt.geometry, prompt, cases, N_NEW, end_to_end=end_to_end)
    facts = found.facts() | {"differences": found.differences + found.pixel_differences}
    if not end_to_end:
        del facts["end_to_end_equal"]
    return facts


@torch.no_grad()
def asked(task: sdk.Task, family: GenerativeFamily, prompt: Prompt, cases: Cases) -> dict[str, Any]:
    """Compare the sdk's ways of asking with PyTorch, from the same pixel values.

    Two pictures are asked a question each, and the second two more. Compared are the texts of `ask`, `see` and `ask`,
    `ask_many` and `stream`, and the order and scores of `rank`.
    """
    chosen = [cases[0], *cases[10:13]]
    together = task.ask_many(chosen, max_new_tokens=N_NEW)
    same_text, same_order, gap = 0, 0, 0.0
    for (picture, question), of_many in zip(chosen, together, strict=True):
        embeddings = family.see(torch.from_numpy(task.pixel_values(picture)), [question])
        tokens, _ = family.generate_tokens(embeddings, [question], N_NEW)
        view = task.see(picture)
        texts = [
            str(task.ask(picture, question, max_new_tokens=N_NEW)),
            str(view.ask(question, max_new_tokens=N_NEW)),
            str(of_many),
            "".join(task.stream(picture, question, max_new_tokens=N_NEW)),
        ]
        same_text += set(texts) == {family.text(tokens[0])}
        scores = family.answer_scores(embeddings, [question], LABELS)[0]
        ranked = {row.label: row.score for row in view.rank(question, labels=LABELS)}
        same_order += list(ranked) == [LABELS[i] for i in scores.argsort(descending=True)]
        gap = max(gap, *(abs(ranked[label] - float(score)) for label, score in zip(LABELS, scores, strict=True)))
    return {"n_cases": len(chosen), "same_text": same_text, "same_order": same_order, "score_gap": gap}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"exact": exact, "asked": asked}


if __name__ == "__main__":
    main()
