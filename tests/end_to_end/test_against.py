"""Two checkouts measured in turns: the order, the interval, whose sdk it is. No test asserts a time."""

from __future__ import annotations

import json
import sys

import pytest
from scipy.stats import binom

from benchmarks import speed
from benchmarks.against import ASK, CPU, Comparison
from benchmarks.paired import ROOT, Checkout, Process, in_turns, interval, summary


@pytest.mark.parametrize("n", [*range(6, 41), 101])
def test_the_interval_is_the_shortest_that_holds_the_median_with_95_percent(n):
    low, high = interval([value / 2 for value in range(2 * n, 0, -2)])  # 1 to n, from the highest down
    assert low + high == n + 1
    assert 1 - 2 * binom.cdf(low - 1, n, 0.5) >= 0.95
    assert 1 - 2 * binom.cdf(low, n, 0.5) < 0.95


def test_few_values_are_given_as_they_are():
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_turns_go_both_ways_and_what_changes_steadily_cancels_out():
    order, clock = [], iter(range(1000))

    def side(name):
        def measure():
            order.append(name)
            return {"time": 5.0 + next(clock), "nothing": None}

        return measure

    blocks = in_turns(side("this"), side("other"), 3)
    one, two = ["this", "other", "other", "this"], ["other", "this", "this", "other"]
    assert order == [*two, *one, *two, *one]
    assert [this for this, _ in blocks] == [other for _, other in blocks]
    assert blocks[0][0] == {"time": 5.0 + (4 + 7) / 2}  # the first block warms up
    assert summary(blocks)["time"]["ratio"] == 1.0


def test_the_ratio_is_the_median_of_the_blocks():
    blocks = [({"x": this}, {"x": 2.0}) for this in (1.0, 2.0, 9.0, 2.0, 2.0, 3.0)]
    assert summary(blocks)["x"] == {"this": 2.0, "other": 2.0, "ratio": 1.0, "low": 0.5, "high": 4.5, "n": 6}


def test_an_sdk_of_another_place_is_refused(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "sdk").mkdir()
    with pytest.raises(RuntimeError, match=r"was (asked for|imported)|ended at the request"):
        Process(Checkout(tmp_path, tmp_path / "home"))


def test_a_side_that_fails_is_said(tmp_path, capfd):
    (tmp_path / "home").mkdir()
    with (
        Process(Checkout(ROOT, tmp_path / "home")) as process,
        pytest.raises(RuntimeError, match="ended at the request 'load'"),
    ):
        process("load", bundle=str(tmp_path / "missing"))
    assert "There is no" in capfd.readouterr().err


def test_both_sides_export_with_their_own_command_and_answer(tmp_path):
    with Comparison(ROOT, 1) as comparison:
        bundles = comparison.exported("zoo:llava", "fp32", (64, 46), tmp_path)
        assert bundles[0] == bundles[1]  # of the same code
        rows, facts = comparison.measured(bundles), comparison.same_answer(bundles)
    assert facts["same answer"]
    assert facts["tokens"] >= 2
    assert {ASK, f"{ASK}, {CPU}", "see", f"see, {CPU}", "a token"} <= set(rows)
    assert {"import", "import for a load", "load", "first question, 2 tokens", "memory, at most"} <= set(rows)
    assert all(row["n"] == 1 and row["this"] > 0 and row["other"] > 0 for row in rows.values())


def test_the_script_writes_what_it_prints(one_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.against.FEWEST", 1)
    output = tmp_path / "speed.json"
    words = ["--against", str(ROOT), "--pairs", "1"]
    options = ["--folder", str(tmp_path), "--bundle", str(one_bundle), "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *words, *options])
    speed.main()
    report = json.loads(output.read_text(encoding="utf-8"))
    (case,) = report["cases"].values()
    assert report["this"]["code"] == report["other"]["code"]
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
    said = capsys.readouterr().out
    assert all(name in said for name in case["measures"])
    assert "enough for a try" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "nowhere"], "is no checkout of TVP"),
        (["--against", str(ROOT), "--pairs", "5"], "needs at least 6 blocks"),
        (
            ["--against", str(ROOT), "--bundle", "c", "--against-bundle", "a", "--against-bundle", "b"],
            "give as many of both",
        ),
    ],
)
def test_what_cannot_be_measured_is_said(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["speed.py", "--folder", str(tmp_path), *words])
    with pytest.raises(SystemExit) as error:
        speed.main()
    assert said in capsys.readouterr().err + str(error.value)
