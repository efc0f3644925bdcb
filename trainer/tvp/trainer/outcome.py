"""Did the prompt help? Held-out questions with it, without it, in a black frame, and answered with the commonest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .agreement import a_few, whole_source
from .data import Data, Question, questions_of
from .evaluate import N_COMMON, Asked, ask, common_answers, judge, told
from .metrics import Gain, gain, matches
from .preparation import Prepared
from .prompt import Geometry, Prompt
from .team import Team
from .validation import agreed, in_turn, rows_of

MOST_READ = 2000  # training samples whose answers say which is the commonest
N_EXAMPLES = 3  # questions that are told with their answers
NOTHING, BLACK, PROMPT = ORDER = ("nothing", "black frame", "prompt")  # the simplest first


@dataclass(frozen=True)
class Outcome:
    """What a prompt does to the answers to held-out questions, all source models together.

    Attributes:
        n: number of questions, asked of each source model.
        best: `prompt` or `black frame`, if it clearly helps, and of the two the better one; else `nothing`.
        without: share of right answers without a prompt, on the full picture.
        black: with a black frame in the prompt's place; None where that is the full picture.
        commonest: where every question is answered with its commonest right answer in training.
        prompted: with the prompt.
        gain: of the prompt over none, with a 95 % interval.
        black_gain: of the black frame over none; None without one.
        answers: the answers with the prompt, with their shares: all labels in the task's order where the questions
            share a few; else the commonest.
        missing: labels that are right answers, and were never given with the prompt.
        examples: question, right answer, answer without the prompt and with it, of a few questions.
    """

    n: int
    best: str
    without: float
    black: float | None
    commonest: float
    prompted: float
    gain: Gain
    black_gain: Gain | None
    answers: dict[str, float]
    missing: tuple[str, ...]
    examples: tuple[tuple[str, str, str, str], ...]

    def facts(self) -> dict[str, Any]:
        """The figures, for the prompt's file."""
        return asdict(replace(self, examples=()))


def judged(prompt: Prompt, prepared: Prepared, team: Team, typed: Collection[str] | None = None) -> Outcome | None:
    """Ask every source model the questions of the validation pictures, in each way.

    Every process asks all of them, and takes the leading one's word for what is best. Where no answers are learned
    from, and the data is one's own and has some, the first source model is asked about a few pictures.

    Args:
        prompt: what was learned.
        prepared: the run.
        team: the processes that train together.
        typed: names of models that may be fetched, see `train`.

    Returns:
        None where there are no answers.
    """
    task, geometry = prepared.task, prepared.geometry
    families, held_out = in_turn(prepared), prepared.validation
    if prepared.learn_from != "answers":
        if not _has_answers(prepared) or not (whole := whole_source(prepared, typed)):
            return None
        families, held_out = iter([whole]), a_few(held_out, whole)
    full = Geometry(geometry.canvas, geometry.canvas, geometry.fit)
    ways: dict[str, tuple[Geometry, Prompt | None]] = {NOTHING: (full, None), PROMPT: (geometry, prompt)}
    if geometry.side < geometry.canvas:
        ways[BLACK] = (geometry, None)
    said: dict[str, list[Asked]] = {name: [] for name in ways}
    for family in families:
        for name, (place, shown) in ways.items():
            said[name].append(ask(family, held_out, place, shown, task, rows_of(prepared.config)))
    questions = said[NOTHING][0].questions
    right = {name: np.concatenate([judge(one, task.match).right for one in asked]) for name, asked in said.items()}
    names = [picture for asked in said[NOTHING] for picture in asked.pictures]
    usual = commonest(prepared.train, questions)
    shares = {name: float(found.mean()) for name, found in right.items()}
    gains = {name: gain(right[NOTHING], right[name], names) for name in ways if name != NOTHING}
    # An interval that holds 0 has not shown that anything helps, and no prompt is the simpler way.
    helpful = [NOTHING, *(name for name in ORDER if name in gains and gains[name].verdict == "helps")]
    best = max(helpful, key=lambda name: shares[name])
    given = [answer for asked in said[PROMPT] for answer in asked.answers]
    return Outcome(
        n=len(questions),
        best=ORDER[int(agreed(ORDER.index(best), prepared, team))],
        without=shares[NOTHING],
        black=shares.get(BLACK),
        commonest=float(np.mean([matches(u, q.answer, task.match) for u, q in zip(usual, questions, strict=True)])),
        prompted=shares[PROMPT],
        gain=gains[PROMPT],
        black_gain=gains.get(BLACK),
        answers=_answers(questions, given),
        missing=_missing(questions, given),
        examples=_examples(questions, said[NOTHING][0].answers, said[PROMPT][0].answers),
    )


def settled(
    prompt: Prompt, chosen: dict[str, float], prepared: Prepared, outcome: Outcome | None, without: dict[str, float]
) -> tuple[Prompt, dict[str, float], str]:
    """Return the prompt that is kept, its validation, and why none is; '' where one is.

    A black frame takes the prompt's place where it alone is better.

    Args:
        prompt, chosen: what was learned, and its validation.
        prepared: the run.
        outcome: of the prompt; None where there are no answers.
        without: the validation without a prompt, where no answers are learned from.
    """
    prompt.facts |= {"outcome": outcome.facts()} if outcome else {}
    why = "\n  ".join(sentences(outcome)) if outcome else ""
    if prepared.config.keep == "last":
        return prompt, chosen, ""
    if prepared.learn_from != "answers":  # few pictures may show no gain, but a loss is no reason to keep a lens
        if chosen["distance"] >= without["distance"]:
            away = f"{without['distance']:.1%} away from the good ones without it and {chosen['distance']:.1%} with it"
            return prompt, chosen, f"held-out pictures are {away}"
        return prompt, chosen, why if outcome and outcome.gain.value < 0 else ""
    assert outcome is not None
    if outcome.best == PROMPT:
        return prompt, chosen, ""
    if outcome.best == NOTHING:
        return prompt, chosen, why
    black = Prompt.start(prompt.geometry, prompt.pixel_range)
    black.facts = prompt.facts
    assert outcome.black is not None
    return black, {"step": 0, "accuracy": outcome.black}, ""


def _has_answers(prepared: Prepared) -> bool:
    """Whether the data is one's own, and its questions have answers."""
    is_own = bool(prepared.config.data or prepared.task.file)
    return is_own and any(question.answer for question in questions_of(prepared.validation, 0))


def commonest(train: Data, questions: Sequence[Question]) -> list[str]:
    """Return for each question the commonest right answer to the same words in training; '' where none were."""
    counts: dict[str, Counter[str]] = {}
    for i in np.linspace(0, len(train) - 1, min(len(train), MOST_READ), dtype=int).tolist():
        for question in questions_of(train, i):
            counts.setdefault(question.text, Counter())[question.answer] += 1
    return [counts[q.text].most_common(1)[0][0] if q.text in counts else "" for q in questions]


def _answers(questions: Sequence[Question], given: Sequence[str]) -> dict[str, float]:
    """Return the share of each label, in the task's order: of two that are nearly as common, none is first by chance.

    Where the questions have no labels, or more than are told, these are the commonest answers.
    """
    labels = list(dict.fromkeys(label for question in questions for label in question.labels))
    if not 0 < len(labels) <= N_COMMON or not set(given) <= set(labels):
        return common_answers(given)
    return {label: given.count(label) / len(given) for label in labels}


def _missing(questions: Sequence[Question], given: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that are right for a question, and that no question was answered with.

    Answers in free words have none: a model may mean a label in other words.
    """
    if not set(given) <= {label for question in questions for label in question.labels}:
        return ()
    return tuple(sorted({question.answer for question in questions} - set(given)))


def _examples(
    questions: Sequence[Question], before: Sequence[str], after: Sequence[str]
) -> tuple[tuple[str, str, str, str], ...]:
    """Return a few questions with their answers, those first that the prompt changes."""
    rows = [(q.text, q.answer, b, a) for q, b, a in zip(questions, before, after, strict=True)]
    rows.sort(key=lambda row: row[2] == row[3])
    return tuple(rows[:N_EXAMPLES])


def sentences(outcome: Outcome) -> list[str]:
    """Return in words whether the prompt helped, and what else would have."""
    n, points = outcome.n, str(outcome.gain)
    verdict = {
        "helps": f"helped by {points}",
        "hurts": f"did not help: it costs {points}",
        "unclear": f"is not shown to help: {points}, and the interval holds 0",
    }[outcome.gain.verdict]
    said = [
        f"on {n} held-out questions: {outcome.without:.1%} right without a prompt, {outcome.prompted:.1%} with it; "
        f"it {verdict}"
    ]
    if outcome.gain.verdict == "helps":
        said.append("these questions decided what is kept, so it may be less elsewhere: tvp eval asks about others")
    beside = [f"the commonest answer to each question alone is right in {outcome.commonest:.1%}"]
    if outcome.black is not None:
        beside.insert(0, f"a black frame alone gives {outcome.black:.1%}")
    said.append("; ".join(beside))
    if outcome.best == BLACK:
        said.append("the black frame is kept in the prompt's place")
    if outcome.prompted <= outcome.commonest:
        said.append("no better than always giving the commonest answer: the model does not see what is asked for")
    said.append(f"with the prompt it answered {told(outcome.answers)}")
    if outcome.missing:
        names = ", ".join(repr(label) for label in outcome.missing[:N_COMMON])
        more = ", …" if len(outcome.missing) > N_COMMON else ""
        said.append(f"it never answered {names}{more}, though that is right for some of these questions")
    if not outcome.prompted:
        said += [f"asked {q!r}, it answered {a!r}; right is {r!r}" for q, r, _, a in outcome.examples]
    return said
