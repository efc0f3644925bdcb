"""What a server counts, for Prometheus: `Metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one server. Their labels are endpoints, statuses and names of tasks: few, and no client's words.

    Attributes:
        requests: by endpoint and status.
        steps: seconds of each step of a question: `wait`, `see`, `first_token`, `total`.
        tokens: of answers, by task.
        finishes: of answers, by task and reason.
        batches: questions that were answered together.
        unlikeness: of pictures, by task.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time and open files
        self.requests = Counter("tvp_requests", "Requests.", ("endpoint", "status"), registry=registry)
        self.steps = Histogram(
            "tvp_step_seconds", "Seconds of each step of a question.", ("step",), buckets=SECONDS, registry=registry
        )
        self.tokens = Counter("tvp_tokens", "Tokens of answers.", ("task",), registry=registry)
        self.finishes = Counter("tvp_answers", "Answers, by why they ended.", ("task", "finish"), registry=registry)
        self.batches = Histogram(
            "tvp_batch_questions", "Questions answered together.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.unlikeness = Histogram(
            "tvp_unlikeness", "How far pictures are from those that a bundle was made for; about 1 is usual.",
            ("task",), buckets=(0.5, 0.8, 1, 1.2, 1.5, 2, 3, 5, 10), registry=registry,
        )  # fmt: skip

    def show(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Show a number that is looked up when somebody asks."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        text: bytes = generate_latest(self.registry)
        return text
