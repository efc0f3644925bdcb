"""Replaying a bundle's golden cases: does it answer here as PyTorch did at the export?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BundleError, CheckError

if TYPE_CHECKING:
    from ._task import Task

TOLERANCE = 1e-3  # of a log-probability, in fp32


def check(task: Task) -> dict[str, Any]:
    """Ask every golden case and compare tokens and log-probabilities with PyTorch's.

    Below fp32, where the export allowed a share of the answers to differ, only that share is checked.
    Returns {cases, different, largest_difference}. Raises CheckError that lists every difference.
    """
    file = task.folder / "golden" / "cases.json"
    try:
        cases = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(f"The golden cases {file} cannot be read: {error}") from error
    exact = task.base.manifest.precision == "fp32"
    differences, largest = compare(task, cases, TOLERANCE if exact else float("inf"))
    allowed = 0.0 if exact else float(task.manifest.parity.get("max_loss", 0.0))
    if len(differences) > allowed * len(cases):
        raise CheckError(
            f"The task {task.name!r} does not answer here as it did at its export ({len(differences)} differences). "
            "Try providers='cpu'; if that passes, the other provider is at fault.",
            differences,
        )
    return {"cases": len(cases), "different": len(differences), "largest_difference": largest}


def compare(task: Task, cases: list[dict[str, Any]], tolerance: float) -> tuple[list[str], float]:
    """Compare answers with expected ones; returns the differences in words and the largest in numbers."""
    differences = []
    largest = 0.0
    views: dict[str, Any] = {}
    for number, case in enumerate(cases):
        picture = case["picture"]
        if picture not in views:
            views = {picture: task.see(task.folder / "golden" / picture)}
        where = f"case {number} ({picture}, {case['question']!r})"
        if "labels" in case:
            from ._closed import compare_choice

            difference, gap = compare_choice(views[picture], case, tolerance)
            largest = max(largest, gap)
            differences += [f"{where}: {difference}"] if difference else []
            continue
        answer = views[picture].ask(case["question"], max_new_tokens=len(case["tokens"]))
        if list(answer.tokens) != case["tokens"]:
            differences.append(f"{where}: answered {answer.text!r}, expected {case['text']!r}")
            continue
        gap = float(np.abs(np.subtract(answer.log_probabilities, case["log_probabilities"])).max())
        largest = max(largest, gap)
        if not gap <= tolerance:
            differences.append(f"{where}: log-probabilities differ by {gap:.2e}, allowed is {tolerance:.0e}")
    return differences, largest
