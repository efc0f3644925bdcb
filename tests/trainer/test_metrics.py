"""Metrics, against answers that were planted and scikit-learn's own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from tvp.sdk.errors import RequestError
from tvp.trainer.data import Question
from tvp.trainer.metrics import gain, measure

YES_NO, NO_YES = ("yes", "no"), ("no", "yes")


def asked(*answers, labels=YES_NO):
    return [Question("Is there a cat?", answer, labels) for answer in answers]


def test_planted_answers_give_the_figures_that_one_works_out_by_hand():
    questions = asked("yes", "yes", "yes", "no", "no")
    measured = measure("pope", questions, ["yes", "no", "yes", "yes", "no"])
    assert measured == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_rate": 3 / 5}
    )
    assert measure("accuracy", questions, ["yes", "no", "yes", "yes", "no"]) == {"accuracy": 3 / 5}


def test_pope_is_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    truth, given = rng.choice(YES_NO, 200), rng.choice(YES_NO, 200, p=[0.7, 0.3])
    measured = measure("pope", asked(*truth), given.tolist())
    for name, oracle in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert measured[name] == pytest.approx(oracle(truth, given, pos_label="yes")), name


@pytest.mark.parametrize("labels", [YES_NO, NO_YES])
def test_auc_is_as_scikit_learn_has_it_of_the_probability_of_yes(labels):
    rng = np.random.default_rng(1)
    truth, scores = rng.choice(YES_NO, 100), rng.standard_normal((100, 2)).astype(np.float32)
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    measured = measure("auc", asked(*truth, labels=labels), truth.tolist(), scores)
    assert measured["accuracy"] == 1
    assert measured["roc_auc"] == pytest.approx(roc_auc_score(truth == "yes", shares[:, labels.index("yes")]))


def test_auc_finds_labels_by_name_in_every_question():
    questions = [*asked("yes"), *asked("no", labels=NO_YES), *asked("yes", labels=("maybe", "no", "yes"))]
    scores = np.array([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [9.0, 1.0, 2.0]])
    assert measure("auc", questions, ["yes", "no", "maybe"], scores)["roc_auc"] == 1


def test_auc_tells_apart_what_a_rounded_probability_does_not():
    scores = np.array([[0.0, -800.0], [0.0, -900.0], [0.0, -np.inf]])  # the softmax of each is (1, 0)
    assert measure("auc", asked("no", "yes", "yes"), ["yes"] * 3, scores)["roc_auc"] == 1


def test_figures_that_the_questions_do_not_define_are_nan():
    for metric in ("accuracy", "auc", "pope"):
        measured = measure(metric, [], [], np.zeros((0, 2)))
        assert all(map(math.isnan, measured.values())), metric
    scores = np.zeros((2, 2))
    assert math.isnan(measure("auc", asked("yes", "yes"), ["yes", "no"], scores)["roc_auc"])
    assert math.isnan(measure("auc", asked("no", "no"), ["yes", "no"], scores)["roc_auc"])
    assert math.isnan(measure("auc", asked("no", "yes"), ["yes", "no"])["roc_auc"])
    assert math.isnan(measure("auc", asked("no", "yes"), ["yes", "no"], scores * np.nan)["roc_auc"])
    assert math.isnan(measure("auc", asked("no", "yes"), ["yes", "no"], scores - np.inf)["roc_auc"])
    no_cat = measure("pope", asked("no", "no"), ["yes", "no"])
    assert (no_cat["precision"], no_cat["yes_rate"]) == (0, 0.5)
    assert math.isnan(no_cat["recall"])
    assert math.isnan(no_cat["f1"])


def test_a_model_that_never_says_yes_has_no_precision_recall_or_f1():
    measured = measure("pope", asked("yes", "no"), ["no", "perhaps"])
    assert measured == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_rate": 0}


def test_what_cannot_be_measured_is_named():
    with pytest.raises(RequestError, match=r"no metric 'acuracy'.*Did you mean accuracy"):
        measure("acuracy", [], [])
    with pytest.raises(RequestError, match=r"labels yes and no; 'Is there a cat.' has cat, dog"):
        measure("auc", asked("cat", labels=("cat", "dog")), ["cat"], np.zeros((1, 2)))
    with pytest.raises(RequestError, match="2 questions need as many answers"):
        measure("pope", asked("yes", "no"), ["yes"])
    with pytest.raises(RequestError, match="2 questions need as many"):
        measure("auc", asked("yes", "no"), ["yes", "no"], np.zeros((1, 2)))


# The paired bootstrap of a gain.


def test_a_gain_of_few_questions_has_the_interval_of_all_their_resamples():
    before, after = np.array([0, 0, 1, 1, 0, 0]), np.array([1, 1, 1, 0, 0, 1])
    differences = after - before
    every = [differences[list(drawn)].mean() for drawn in itertools.product(range(6), repeat=6)]
    low, high = np.quantile(every, [0.025, 0.975])
    assert gain(before, after, n_resamples=200_000) == pytest.approx((2 / 6, low, high))
    assert gain(before, after) == gain(before, after)  # of a fixed seed


def test_a_gain_is_as_scipys_paired_bootstrap_has_it():
    rng = np.random.default_rng(3)
    before = rng.random(400) < 0.4
    after = np.where(rng.random(400) < 0.3, rng.random(400) < 0.7, before)
    interval = bootstrap(
        (after, before), lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, method="percentile", rng=rng
    ).confidence_interval
    value, low, high = gain(before, after)
    assert value == after.mean() - before.mean()
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.006)
    # Without pairs the interval is wider, because both samples vary.
    alone = bootstrap((after, before), lambda a, b, axis: a.mean(axis) - b.mean(axis), method="percentile", rng=rng)
    assert high - low < 0.9 * (alone.confidence_interval.high - alone.confidence_interval.low)


def test_a_gain_by_pictures_is_that_of_drawing_whole_pictures():
    """Answers about a picture are alike here, so that questions alone would promise too much."""
    rng = np.random.default_rng(4)
    sizes = rng.integers(1, 6, 60)
    pictures = np.repeat(np.arange(60), sizes)
    before = np.zeros(len(pictures), bool)
    after = np.repeat(rng.random(60) < 0.5, sizes)
    sums = np.bincount(pictures, after)
    interval = bootstrap(
        (np.arange(60),),
        lambda drawn, axis: sums[drawn].sum(axis) / sizes[drawn].sum(axis),
        method="percentile",
        rng=rng,
    ).confidence_interval
    order = rng.permutation(len(pictures))  # rows about one picture need not be neighbours
    value, low, high = gain(before[order], after[order], [f"{i}.png" for i in pictures[order]])
    assert value == pytest.approx(after.mean())
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.02)
    alone = gain(before, after)
    assert high - low > 1.5 * (alone.high - alone.low)


def test_a_gain_says_whether_it_is_one():
    assert gain([0] * 50, [1] * 50).verdict == "helps"
    assert gain([1] * 50, [0] * 50).verdict == "hurts"
    assert gain([0, 1] * 25, [1, 0] * 25).verdict == "unclear"
    assert str(gain([0] * 50, [1] * 50)) == "+100.0 points (+100.0 to +100.0)"
    assert all(map(math.isnan, gain([], [])))
    for wrong in (([0], [0, 1]), ([0, 1], [0, 1], ["a"])):
        with pytest.raises(RequestError, match="the same questions"):
            gain(*wrong)
