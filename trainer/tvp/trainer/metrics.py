"""The metrics of a task's answers: accuracy, those of Hateful Memes and POPE, and the gain of one way over another."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvp.sdk.errors import RequestError, near

from .data import Data, Question, questions_of
from .task_definition import METRICS

YES, NO = "yes", "no"
N_RESAMPLES = 2000
_NAN = float("nan")


class Gain(NamedTuple):
    """A difference of two accuracies on the same questions, in [-1, 1], with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`helps` or `hurts` where the interval leaves 0 out, else `unclear`."""
        return "helps" if self.low > 0 else "hurts" if self.high < 0 else "unclear"

    def __str__(self) -> str:
        value, low, high = (f"{100 * share:+.1f}" for share in self)
        return f"{value} points ({low} to {high})"


def gain(
    right_before: ArrayLike,
    right_after: ArrayLike,
    pictures: Sequence[Hashable] | None = None,
    n_resamples: int = N_RESAMPLES,
) -> Gain:
    """Return the gain of accuracy, with the interval of a paired bootstrap (percentiles) from a fixed seed.

    Args:
        right_before: for each question whether it was answered right before.
        right_after: the same after, for the same questions in the same order.
        pictures: for each question a name of its picture. Whole pictures are drawn then, because answers about one
            picture are alike. Default: questions are drawn.
        n_resamples: Default 2,000.

    Returns:
        The gain; NaN where there is no question.

    Raises:
        RequestError: the lengths differ.
    """
    before, after = np.asarray(right_before, np.float64), np.asarray(right_after, np.float64)
    n = len(before)
    if before.shape != after.shape or before.ndim != 1 or (pictures is not None and len(pictures) != n):
        raise RequestError(
            f"A gain needs the same questions before and after, and a picture for each; there are {n} before, "
            f"{len(after)} after, and {'no' if pictures is None else len(pictures)} pictures."
        )
    if not n:
        return Gain(_NAN, _NAN, _NAN)
    numbers: dict[Hashable, int] = {}
    groups = [numbers.setdefault(name, len(numbers)) for name in (range(n) if pictures is None else pictures)]
    totals = np.stack([np.bincount(groups, after - before), np.bincount(groups)], 1)
    # Only how often each pair (sum of differences, number of questions) is drawn decides a mean. These numbers are
    # multinomial: the same bootstrap as drawing one by one, in a fraction of the time and memory.
    kinds, counts = np.unique(totals, axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(totals), counts / len(totals), n_resamples)
    sums, sizes = (drawn @ kinds).T
    low, high = np.quantile(sums / sizes, [0.025, 0.975])
    return Gain(float((after - before).mean()), float(low), float(high))


def questions_to_measure(metric: str, data: Data) -> list[Question]:
    """Return all questions of the data, if the metric can be measured on them.

    Raises:
        RequestError: their labels do not fit the metric.
    """
    questions = [question for i in range(len(data)) for question in questions_of(data, i)]
    measure(metric, questions, [""] * len(questions))
    return questions


def matches(answer: str, right: str, how: str = "exact") -> bool:
    """Whether an answer is the right one.

    Args:
        answer: what a model wrote or chose.
        right: the right answer.
        how: `exact`; or `loose`, which does not look at case, at how many spaces there are, and at a final point.
    """
    return answer == right or (how == "loose" and loosely(answer) == loosely(right))


def loosely(text: str) -> str:
    """Return a text without what a loose match does not look at."""
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def measure(
    metric: str,
    questions: Sequence[Question],
    answers: Sequence[str],
    scores: NDArray[np.floating] | None = None,
    match: str = "exact",
) -> dict[str, float]:
    """Measure answers.

    Args:
        metric: `accuracy` gives accuracy, the share of answers that match. `auc` adds roc_auc: how often a
            question whose right answer is yes scores higher than one whose right answer is no. `pope` adds
            precision, recall, f1 and yes_rate, with yes as the positive class; any other answer counts as no.
        questions: with their right answers.
        answers: the texts that were given, one for each question.
        scores: for `auc`: (n, n_labels), the log-probabilities or logits of each question's labels, in their order.
        match: when an answer is right, see `matches`. Default `exact`.

    Returns:
        Shares in [0, 1] by name. A share is NaN where it is not defined: every one if there are no questions;
        roc_auc without scores, with a NaN among them, or if all right answers are the same; recall and f1 if no
        right answer is yes. Precision is 0 if nothing was answered with yes.

    Raises:
        RequestError: the metric is unknown, the lengths differ, or `auc` is asked of questions whose labels lack yes
            or no.
    """
    if metric not in METRICS:
        raise RequestError(f"There is no metric {metric!r}. There are {', '.join(METRICS)}.{near(metric, METRICS)}")
    if len(answers) != len(questions) or (scores is not None and len(scores) != len(questions)):
        n_scores = "none" if scores is None else len(scores)
        raise RequestError(
            f"{len(questions)} questions need as many answers and scores, not {len(answers)} and {n_scores}."
        )
    truth = np.array([question.answer == YES for question in questions], bool)
    given = np.array([answer == YES for answer in answers], bool)
    right = [matches(answer, question.answer, match) for answer, question in zip(answers, questions, strict=True)]
    measured = {"accuracy": _share(sum(right), len(right))}
    if metric == "auc":
        measured["roc_auc"] = _roc_auc(truth, questions, scores)
    if metric == "pope":
        n_both, n_true, n_given = int((truth & given).sum()), int(truth.sum()), int(given.sum())
        measured["precision"] = _share(n_both, n_given) if n_given or not len(given) else 0.0
        measured["recall"] = _share(n_both, n_true)
        measured["f1"] = _share(2 * n_both, n_true + n_given) if n_true else _NAN
        measured["yes_rate"] = _share(n_given, len(given))
    return measured


def _share(part: int, whole: int) -> float:
    return part / whole if whole else _NAN


def _roc_auc(truth: NDArray[np.bool_], questions: Sequence[Question], scores: NDArray[np.floating] | None) -> float:
    from sklearn.metrics import roc_auc_score

    for question in questions:
        if YES not in question.labels or NO not in question.labels:
            raise RequestError(
                f"The metric 'auc' needs questions with the labels yes and no; {question.text!r} has "
                f"{', '.join(question.labels) or 'none'}."
            )
    if scores is None or truth.all() or not truth.any():
        return _NAN
    rows = np.arange(len(questions))
    columns = [np.array([question.labels.index(label) for question in questions]) for label in (YES, NO)]
    yes, no = (np.asarray(scores, np.float64)[rows, column] for column in columns)
    # The difference orders questions as the probability of yes does, without the ties from rounding to 0 and 1.
    # An impossible label has the score -inf; scikit-learn needs finite numbers.
    with np.errstate(invalid="ignore"):
        difference = yes - no
    if np.isnan(difference).any():
        return _NAN
    return float(roc_auc_score(truth, np.clip(difference, -1e300, 1e300)))
