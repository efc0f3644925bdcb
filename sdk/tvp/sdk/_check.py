"""Replaying golden cases: does a bundle answer here as PyTorch did at the export?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from ._view import View
from .errors import CheckError
from .formats.golden import GoldenCase, RankingCase
from .formats.golden_words import GoldenWords

TOLERANCE = 1e-3  # of a log-probability, in fp32


class CheckReport(TypedDict):
    """What a replay found: number of cases, how many differ, and the largest difference of a log-probability."""

    cases: int
    different: int
    largest_difference: float


def check(
    name: str, cases: Sequence[GoldenCase], see: Callable[[str], View], exact: bool, max_loss: float | None
) -> CheckReport:
    """Ask every golden case and compare tokens and log-probabilities with PyTorch's.

    Args:
        name: of the task, for messages.
        cases: at least one.
        see: returns a view of the golden picture of this name.
        exact: whether every answer and score must be equal (fp32). Otherwise a share of the answers may differ.
        max_loss: that share, from 0 to 1.

    Raises:
        CheckError: too many answers differ; it lists every difference.
    """
    differences: list[str] = []
    largest = 0.0
    seen: tuple[str, View] | None = None
    for number, case in enumerate(cases):
        if seen is None or seen[0] != case.picture:
            seen = case.picture, see(case.picture)
        difference, gap = compare(seen[1], case, TOLERANCE if exact else float("inf"))
        largest = max(largest, gap)
        if difference:
            differences.append(f"case {number} ({case.picture}, {case.question!r}): {difference}")
    if len(differences) / len(cases) > (0.0 if exact else max_loss or 0.0):
        raise CheckError(
            f"The task {name!r} does not answer here as it did at its export ({len(differences)} differences). "
            "Try providers='cpu'; if that passes, the other provider is at fault.",
            differences,
        )
    return {"cases": len(cases), "different": len(differences), "largest_difference": largest}


def check_words(name: str, words: GoldenWords, view: View) -> None:
    """Score the golden words; raises CheckError where they are too far from what they were at the export."""
    scores = {row.label: row.score for row in view.rank(words.question, labels=words.labels)}
    if not (gap := words.gap(scores)) <= words.within:
        raise CheckError(
            f"The task {name!r} does not score words here as it did at its export: by up to {gap:.2e} otherwise, and "
            f"{words.within:.2e} is allowed. Its weights have changed, or this machine computes otherwise. Try "
            "providers='cpu'; if that passes, the other provider is at fault.",
            [f"golden words: scores differ by {gap:.2e}"],
        )


def compare(view: View, case: GoldenCase, tolerance: float) -> tuple[str, float]:
    """Ask a golden case; returns what differs, in words ('' for nothing), and the largest difference of a score."""
    if isinstance(case, RankingCase):
        ranked = view.rank(case.question, labels=case.labels)
        return case.difference([(row.label, row.score) for row in ranked], tolerance)
    answer = view.ask(case.question, max_new_tokens=len(case.tokens))
    return case.difference(answer.tokens, answer.text, answer.log_probabilities, tolerance)
