"""The parity gate of scored labels: the bundle's ranking compared with that of the unpatched PyTorch model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from tvp.sdk import Task
from tvp.sdk.formats.calibration import Calibrated, offsets_for
from tvp.sdk.formats.golden import RankingCase
from tvp.trainer.families import Family
from tvp.trainer.prompt import Geometry, Prompt

from .parity import LOGITS_TOLERANCE, Case, Parity, compare_pixels, pixel_values


def calibrated_cases(cases: Sequence[Case], calibration: Calibrated) -> list[Case]:
    """Return for each case one about its picture that ranks labels of the calibration, whose questions come in turn.

    Cases that rank the same labels already are left out.
    """
    known = cycle(calibration) if calibration else ()
    return [
        Case(case.picture, entry.question, entry.labels)
        for case, entry in zip(cases, known, strict=False)
        if (case.question, sorted(case.labels)) != (entry.question, sorted(entry.labels))
    ]


@torch.no_grad()
def measure(
    report: Parity,
    task: Task,
    family: Family,
    geometry: Geometry,
    prompt: Prompt | None,
    cases: Sequence[Case],
    n_golden: int = 0,
    exact: bool = True,
    calibration: Calibrated = (),
) -> Parity:
    """Let the bundle and PyTorch rank the labels of every case; compare pixel values, order and scores.

    In the report, `tokens_equal` counts cases with the same order (without `exact`: the same best label), and `logits`
    is the largest difference of a score.

    Args:
        report: what was measured before; it is added to and returned.
        task: the bundle, loaded.
        family: the model, on the CPU in fp32.
        geometry: canvas, inner size and fit of the bundle.
        prompt: the prompt in the bundle, or None.
        cases: pictures and questions with labels.
        n_golden: number of cases to keep with PyTorch's scores, as golden cases. Default 0.
        exact: whether order and scores must be equal, and not the best label alone. Default True.
        calibration: what is subtracted from PyTorch's scores; the bundle has its own. Default: nothing.
    """
    tolerance = LOGITS_TOLERANCE if exact else float("inf")
    n_before = len(report.golden)
    for picture, question, labels in cases:
        where = f"case {report.n_cases} ({picture.shape[1]} x {picture.shape[0]}, {question!r})"
        report.n_cases += 1
        given = torch.from_numpy(task.pixel_values(picture))
        expected = pixel_values(family, geometry, prompt, picture)
        gap = compare_pixels(report, family, given.numpy(), expected.numpy())
        ranked = [(row.label, row.score) for row in task.rank(picture, question, labels=labels)]
        case = golden_case(family, given, f"{len(report.golden)}.png", question, labels, calibration)
        difference, far = case.difference(ranked, tolerance)
        report.logits = float(np.maximum(report.logits, far))
        report.tokens_equal += not difference
        report.differences += [f"{where}: {difference}"] if difference else []
        own = golden_case(family, expected, "", question, labels, calibration) if gap else case
        report.end_to_end_equal += not own.difference(ranked, tolerance)[0]
        if len(report.golden) - n_before < n_golden:
            report.golden.append((picture, case))
            report.n_golden_different += bool(difference)
    return report


def golden_case(
    family: Family,
    pixels: Tensor,
    picture: str,
    question: str,
    labels: Sequence[str],
    calibration: Calibrated = (),
) -> RankingCase:
    """Return a golden case with PyTorch's scores of the labels.

    Args:
        family: the model.
        pixels: pixel values, float32 (1, 3, size, size).
        picture: name of the picture's file in the bundle.
        question: the question.
        labels: the labels to rank.
        calibration: what is subtracted from the scores. Default: nothing.
    """
    scores = family.answer_scores(family.see(pixels, [question]), [question], labels)[0].double().numpy()
    scores = scores - offsets_for(calibration, question, labels)
    rounded = tuple(float(f"{score:.7g}") for score in scores.tolist())
    return RankingCase(picture, question, tuple(labels), rounded, labels[int(scores.argmax())])
