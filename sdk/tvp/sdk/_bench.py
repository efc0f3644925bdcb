"""How fast a task is on this machine: `bench`."""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from ._load import load
from ._results import Answer
from ._runtime.providers import Providers
from ._view import View
from .errors import RequestError
from .formats.golden import GoldenCase, RankingCase, read_cases

N_RUNS, N_NEW_TOKENS = 5, 16


def bench(
    task: str | os.PathLike[str],
    *,
    providers: Providers = "auto",
    n_runs: int = N_RUNS,
    max_new_tokens: int = N_NEW_TOKENS,
) -> dict[str, Any]:
    """Load a task, ask its first golden case several times, and time each step.

    Args:
        task, providers: as of `load`.
        n_runs: number of timed runs, at least 1, behind one run that warms up.
        max_new_tokens: longest answer, in tokens.

    Returns:
        Medians in seconds, None where nothing was timed. `load`: loading; `see`: picture to embeddings;
        `first_token`: first token of a first question; `again`: first token of a second question about the same
        picture; `token`: each further token; `ask`: picture to `n_new_tokens` tokens.
        Besides, `tokens_per_second`, `n_new_tokens` and `n_runs`; `peak_mib`: the most memory that this process has
        used, None where the system does not report it; `providers`: the provider of each part.
        A contrastive task has no tokens: its `first_token` is a whole answer, with every label's text encoded.

    Raises:
        RequestError: `n_runs` or `max_new_tokens` is below 1.
    """
    if n_runs < 1:
        raise RequestError(f"n_runs is {n_runs}; it must be a whole number of at least 1.")
    began = time.perf_counter()
    with load(task, providers=providers) as loaded:
        seconds: dict[str, list[float]] = {name: [] for name in ("see", "first_token", "again", "token", "ask")}
        loading = time.perf_counter() - began
        places = dict(loaded.providers)
        golden = loaded.folder / "golden"
        case = read_cases(loaded.folder)[0]
        picture = golden / case.picture
        n_new = 0
        for run in range(n_runs + 1):
            began = time.perf_counter()
            view = loaded.see(picture)
            seen = time.perf_counter()
            first_token, n_new = _answer(view, case, case.question, max_new_tokens)
            done = time.perf_counter()
            again, _ = _answer(
                view, case, case.question + "?", 1
            )  # another question, so that none comes from the cache
            if run:
                seconds["see"].append(seen - began)
                seconds["first_token"].append(first_token)
                seconds["again"].append(again)
                seconds["ask"].append(done - began)
                if n_new > 1:
                    seconds["token"].append((done - seen - first_token) / (n_new - 1))
    medians = {name: statistics.median(values) if values else None for name, values in seconds.items()}
    token = medians["token"]
    return {
        "load": loading,
        **medians,
        "tokens_per_second": 1 / token if token else None,
        "n_new_tokens": n_new,
        "n_runs": n_runs,
        "peak_mib": _peak(),
        "providers": places,
    }


def _answer(view: View, case: GoldenCase, question: str, max_new_tokens: int) -> tuple[float, int]:
    """Ask a question about a golden case; returns the seconds to the first token, and the number of tokens."""
    if isinstance(case, RankingCase):  # the case's labels, because its task may have none
        began = time.perf_counter()
        view.rank(question, labels=case.labels)
        return time.perf_counter() - began, 0
    answer: Answer = view.ask(question, max_new_tokens=max_new_tokens)
    return answer.timing["first_token"], len(answer.tokens)


def _peak() -> float | None:
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
