"""The queue: bounded, fair, in order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from tests.serve.extra import REASON  # noqa: F401  it skips this module where the extra is absent
from tvp.sdk.serve.refusals import Refusal
from tvp.sdk.serve.waiting import Waiting


@dataclass(eq=False)
class Job:
    caller: str
    number: int
    kind: str = "a"

    def joins(self, other):
        return self.kind == other.kind


def filled(waiting, *jobs):
    for job in jobs:
        waiting.put(job)
    return waiting


def take(waiting, n):
    return [(job.caller, job.number) for job in waiting.take(n, Job.joins)]


def test_callers_take_turns_and_within_one_the_first_is_first():
    waiting = filled(Waiting(99), *(Job("busy", i) for i in range(6)), Job("rare", 0), Job("other", 0))
    assert take(waiting, 1) == [("busy", 0)]
    assert take(waiting, 4) == [("rare", 0), ("other", 0), ("busy", 1), ("busy", 2)]
    waiting.put(Job("rare", 1))
    assert take(waiting, 2) == [("busy", 3), ("rare", 1)]
    assert take(waiting, 9) == [("busy", 4), ("busy", 5)]
    assert len(waiting) == 0


def test_only_what_can_be_answered_together_is_taken_together():
    waiting = filled(Waiting(99), *(Job("one", i, "ab"[i % 2]) for i in range(6)))
    assert take(waiting, 9) == [("one", 0), ("one", 2), ("one", 4)]
    assert take(waiting, 9) == [("one", 1), ("one", 3), ("one", 5)]


def test_every_question_is_taken_in_the_end():
    """Whatever the others do: here they never stop."""
    waiting = filled(Waiting(99), Job("patient", 0, "rare"))
    for i in range(20):
        filled(waiting, Job("busy", i), Job("busy too", i))
        if ("patient", 0) in take(waiting, 1):
            break
    assert i < 4


def test_a_full_queue_says_when_to_come_again():
    waiting = filled(Waiting(3), *(Job("one", i) for i in range(3)))
    with pytest.raises(Refusal) as error:
        waiting.refuse_full("two", 0.9)
    assert (error.value.status, error.value.retry_after) == (429, 3)
    waiting.take(1, Job.joins)
    waiting.refuse_full("two", 0.9)


def test_one_key_leaves_a_place_for_each_of_the_others():
    waiting = Waiting(6, lambda: ["one", "two", "three"])
    for i in range(4):
        waiting.refuse_full("one", 1)
        waiting.put(Job("one", i))
    with pytest.raises(Refusal):
        waiting.refuse_full("one", 1)
    for name in ("two", "three"):
        waiting.refuse_full(name, 1)
        waiting.put(Job(name, 0))
    assert len(waiting) == 6
    with pytest.raises(Refusal):
        waiting.refuse_full("three", 1)


def test_many_keys_still_leave_half_of_the_places():
    waiting = Waiting(4, lambda: [f"key {i}" for i in range(50)])
    for i in range(2):
        waiting.refuse_full("key 0", 1)
        waiting.put(Job("key 0", i))
    with pytest.raises(Refusal):
        waiting.refuse_full("key 0", 1)
    waiting.refuse_full("key 1", 1)


def test_a_question_may_be_taken_back():
    jobs = [Job("one", i) for i in range(3)]
    waiting = filled(Waiting(9), *jobs)
    assert waiting.remove(jobs[1])
    assert not waiting.remove(jobs[1])
    assert take(waiting, 9) == [("one", 0), ("one", 2)]
    assert not waiting.remove(jobs[0])


def test_who_waits_for_a_question_is_woken():
    async def both():
        waiting = Waiting(9)
        sleeper = asyncio.ensure_future(waiting.some())
        await asyncio.sleep(0)
        assert not sleeper.done()
        waiting.put(Job("one", 0))
        await asyncio.wait_for(sleeper, 5)
        waiting.take(1, Job.joins)
        sleeper = asyncio.ensure_future(waiting.some())
        await asyncio.sleep(0)
        assert not sleeper.done()
        sleeper.cancel()

    asyncio.run(both())
