"""Replaying a bundle's golden cases: does it answer here as PyTorch did at the export?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BundleError, CheckError

if TYPE_CHECKING:
    from ._task import Task

TOLERANCE = 1e-3  # of a log-probability, in fp32
MAX_CASES = 2**24  # bytes of the file; one that ranks a thousand labels has tens of thousands a case


def check(task: Task) -> dict[str, Any]:
    """Ask every golden case and compare tokens and log-probabilities with PyTorch's.

    Below fp32, where the export allowed a share of the answers to differ, only that share is checked.
    Returns {cases, different, largest_difference}. Raises CheckError that lists every difference, BundleError for a
    bundle whose cases cannot be read.
    """
    cases = golden_cases(task.folder)
    exact = task.base.manifest.precision == "fp32"
    allowed: Any = 0.0 if exact else task.manifest.parity.get("max_loss")
    if type(allowed) not in (int, float) or not 0 <= allowed <= 1:
        raise BundleError(f"The manifest in {task.folder}: parity.max_loss is {allowed!r}; it must be from 0 to 1.")
    differences, largest = compare(task, cases, TOLERANCE if exact else float("inf"))
    if len(differences) / len(cases) > allowed:
        raise CheckError(
            f"The task {task.name!r} does not answer here as it did at its export ({len(differences)} differences). "
            "Try providers='cpu'; if that passes, the other provider is at fault.",
            differences,
        )
    return {"cases": len(cases), "different": len(differences), "largest_difference": largest}


def golden_cases(folder: Path) -> list[dict[str, Any]]:
    """The golden cases of the bundle in a folder, at least one; raises BundleError for what is none."""
    file = folder / "golden" / "cases.json"
    try:
        if not file.is_file() or file.stat().st_size > MAX_CASES:
            raise BundleError(f"The golden cases {file} are no file of up to {MAX_CASES >> 20} MiB.")
        cases = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"The golden cases {file} cannot be read: {error}") from error
    if not isinstance(cases, list) or not cases:
        raise BundleError(f"The golden cases {file} are no list of at least one case. Export the bundle again.")
    for number, case in enumerate(cases):
        if wrong := _wrong(case):
            raise BundleError(f"{file}: case {number} {wrong}. Export the bundle again.")
    return cases


def _wrong(case: Any) -> str:
    """What is wrong with a golden case, or '' where nothing is."""
    if not isinstance(case, dict):
        return "is not a JSON object"
    for key in ("picture", "question") if "labels" in case else ("picture", "question", "text"):
        if not isinstance(case.get(key), str):
            return f"has no text {key!r}"
    if case["picture"] in ("", "..") or Path(case["picture"]).name != case["picture"] or "\\" in case["picture"]:
        return f"names the picture {case['picture']!r}, which would lie outside of its folder"
    if "labels" in case:  # a task that chooses among them
        labels, scores = case["labels"], case.get("scores")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            return "has no list of texts 'labels'"
        if not labels or len(set(labels)) != len(labels):
            return "has no labels, or one twice"
        if not isinstance(scores, list) or len(scores) != len(labels):
            return "has no list 'scores' of one number a label"
    else:
        tokens, scores = case.get("tokens"), case.get("log_probabilities")
        if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
            return "has no list of token ids 'tokens'"
        if not isinstance(scores, list) or len(scores) != len(tokens):
            return "has no list 'log_probabilities' of one number a token"
    if not all(type(score) in (int, float) and abs(score) < 1e6 for score in scores):
        return "has a log-probability that is no number, or none that can be"
    return ""


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
        gap = float(np.abs(np.subtract(answer.log_probabilities, case["log_probabilities"], dtype=np.float64)).max())
        largest = max(largest, gap)
        if not gap <= tolerance:
            differences.append(f"{where}: log-probabilities differ by {gap:.2e}, allowed is {tolerance:.0e}")
    return differences, largest
