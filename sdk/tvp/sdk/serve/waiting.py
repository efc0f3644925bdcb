"""The questions that wait: bounded, and fair among those who ask."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from .refusals import Refusal


class Waits(Protocol):
    """What can wait.

    Attributes:
        caller: name of who asks.
    """

    caller: str


W = TypeVar("W", bound=Waits)


class Waiting(Generic[W]):
    """A queue with a line for each caller. The callers take turns; within a line, who came first is first.

    Args:
        n_most: questions that may wait in all lines together.
        known: names of the callers that have keys. Each keeps one place, whatever the others do, as long as half of the
            places suffice for that.
    """

    def __init__(self, n_most: int, known: Callable[[], list[str]] = list) -> None:
        self.n_most, self._known = n_most, known
        self._lines: OrderedDict[str, deque[W]] = OrderedDict()
        self._n, self._some = 0, asyncio.Event()

    def __len__(self) -> int:
        return self._n

    def refuse_full(self, caller: str, seconds_each: float) -> None:
        """Raise Refusal where a caller finds no place; seconds_each: that a question takes."""
        kept = sum(name not in self._lines for name in self._known() if name != caller)
        if caller in self._known() and caller not in self._lines:
            kept = 0  # the place that it takes now was kept for it
        if self._n + min(kept, self.n_most // 2) >= self.n_most:
            wait = min(60, max(1, math.ceil(self._n * seconds_each)))
            raise Refusal(429, f"{self._n} questions wait already. Try again in {wait} s.", "queue_full", wait)

    def put(self, job: W) -> None:
        """Let a question wait."""
        self._lines.setdefault(job.caller, deque()).append(job)
        self._n += 1
        self._some.set()

    def remove(self, job: W) -> bool:
        """Take a question back; returns whether it still waited."""
        line = self._lines.get(job.caller, ())
        if job not in line:
            return False
        self._taken(job)
        return True

    async def some(self) -> None:
        """Wait until a question waits."""
        await self._some.wait()

    def take(self, n: int, joins: Callable[[W, W], bool]) -> list[W]:
        """Return the next question, and up to n - 1 others that are answered with it.

        Args:
            n: at most.
            joins: whether a question may be answered with the first.
        """
        first = next(iter(self._lines.values()))[0]
        jobs = [first]
        self._taken(first)
        found = True
        while found and len(jobs) < n:
            found = False
            for line in [*self._lines.values()]:
                other = next((job for job in line if joins(first, job)), None)
                if other is not None and len(jobs) < n:
                    jobs.append(other)
                    self._taken(other)
                    found = True
        return jobs

    def _taken(self, job: W) -> None:
        line = self._lines[job.caller]
        line.remove(job)
        self._n -= 1
        if line:
            self._lines.move_to_end(job.caller)
        else:
            del self._lines[job.caller]
        if not self._n:
            self._some.clear()
