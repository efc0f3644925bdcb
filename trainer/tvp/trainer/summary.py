"""What a run did, in plain words."""

from __future__ import annotations

from typing import Any

from . import outcome
from .guard import NOT_WANTED
from .signals import SIGNALS
from .starts import NOISE, Choice
from .train import TrainResult

AWAY = {
    "pairs": "features of held-out pictures were {before:.1%} away from those of the clean ones, and are {after:.1%} "
    "away with the prompt",
    "unpaired": "moments of the features of held-out pictures were {before:.1%} away from those of the good ones, and "
    "are {after:.1%} away with the prompt",
    "pixels": "pixels of held-out pictures were {before:.1%} away from those of the clean ones, and are {after:.1%} "
    "away with the prompt",
}


def sentences(result: TrainResult) -> list[str]:
    """Return what a run learned from, what it tried and took, and how good its prompt is on held-out pictures."""
    said = []
    if result.choice or result.without:  # a frame learns from answers, as ever
        said.append(f"learned from {SIGNALS[result.learned_from]} ({result.why})")
    if result.alignment:
        said.append(str(result.alignment))
    if result.choice:
        said += _tried(result.choice)
    if result.without:
        before, after = result.without["distance"], result.chosen["distance"]
        said.append(AWAY[result.learned_from].format(before=before, after=after))
    if result.outcome:
        said += outcome.sentences(result.outcome)
    if result.agreement:
        said.append(str(result.agreement))
    if result.verdict:
        said.append(str(result.verdict))
    elif result.choice and result.unguarded != NOT_WANTED:
        said.append(f"no guard judged the lens: {result.unguarded}")
    return said


def _tried(choice: Choice) -> list[str]:
    if not choice.tried:
        return []
    most = max(one["steps"] for one in choice.tried)

    def named(one: dict[str, Any]) -> str:
        early = f", stopped after {one['steps']}" if one["steps"] < most else ""
        return f"{one['kind']} from {one['start']} {abs(one['score']):.1%}{early}"

    best = max(choice.tried, key=lambda one: one["score"])
    simpler = f", which is simpler and within {NOISE:.0%} of the best" if best["kind"] != choice.kind else ""
    measure = "distances" if best["score"] <= 0 else "accuracies"
    return [
        f"tried lenses for {most} steps each, with these {measure}: {'; '.join(map(named, choice.tried))}",
        f"took {choice.kind} from {choice.start}{simpler}",
    ]
