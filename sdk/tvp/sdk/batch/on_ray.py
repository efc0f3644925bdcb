"""A batch on a Ray cluster, by Ray Data: a loaded task for each few cores, wherever the cluster has them.

Ray asks rows again whose machine failed. What comes twice is passed over by the journal, and what Ray lost is asked
again here. So each row is there once.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from ..errors import ProviderError, RequestError, TvpError
from ..formats import strict_json
from .asking import Asker, Asking, Result
from .rows import Row

WINDOW, WINDOW_BYTES = 100_000, 2**28  # rows, and bytes of pictures, that are in the cluster at a time
MAX_BLOCKS = 2000
N_ATTEMPTS = 3  # in a row that bring nothing


def answers(rows: Iterable[Row], asking: Asking, address: str, n_cores: int) -> Iterator[list[Result]]:
    """Yield answers as they come, in any order; some may come twice.

    Args:
        rows: to be answered. Their pictures' paths must lead to the same files on all machines.
        asking: what is asked. The task must be found on all machines.
        address: of the cluster, as `ray.init` takes it.
        n_cores: of each loaded task.

    Raises:
        RequestError: Ray is not installed.
        ProviderError: the cluster cannot be reached, or fails again and again.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RequestError(
            f"--ray needs a package that is not installed: {error.name or error}. "
            "`pip install 'tvp-edge[ray]'` adds it."
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ProviderError(f"The Ray cluster at {address} cannot be reached: {error}.") from error
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        for window in _windows(rows):
            yield from _answer_window(ray, window, asking, n_cores)
    finally:
        ray.shutdown()


def _windows(rows: Iterable[Row]) -> Iterator[dict[int, Row]]:
    window: dict[int, Row] = {}
    n_bytes = 0
    for row in rows:
        window[row.number] = row
        n_bytes += len(row.picture) if isinstance(row.picture, bytes) else 0
        if len(window) == WINDOW or n_bytes >= WINDOW_BYTES:
            yield window
            window, n_bytes = {}, 0
    if window:
        yield window


def _answer_window(ray: Any, missing: dict[int, Row], asking: Asking, n_cores: int) -> Iterator[list[Result]]:
    """Yield the answers of some rows; what is missing when Ray fails is asked again."""
    n_failed = 0
    while missing:
        before = len(missing)
        try:
            for results in _run(ray, list(missing.values()), asking, n_cores):
                _raise_told(results)
                for result in results:
                    missing.pop(result["row"], None)
                yield results
        except ray.exceptions.RayError as error:
            n_failed = 0 if len(missing) < before else n_failed + 1
            if n_failed == N_ATTEMPTS:
                raise ProviderError(f"The Ray cluster failed {N_ATTEMPTS} times in a row: {error}.") from error
        else:
            if len(missing) == before:
                raise ProviderError(f"The Ray cluster gave no answer to {before} rows. Run the command again.")


def _run(ray: Any, rows: list[Row], asking: Asking, n_cores: int) -> Iterator[list[Result]]:
    most = max(1, int(ray.cluster_resources().get("CPU", 0)) // n_cores)
    items = [
        {"row": json.dumps(_as_json(row)), "data": row.picture if isinstance(row.picture, bytes) else b""}
        for row in rows
    ]
    n_blocks = min(len(rows), MAX_BLOCKS, math.ceil(len(rows) / asking.batch))
    answered = ray.data.from_items(items, override_num_blocks=n_blocks).map_batches(
        RemoteAsker,
        fn_constructor_args=(json.dumps(asdict(asking)), n_cores),
        batch_size=asking.batch,
        batch_format="pyarrow",
        num_cpus=n_cores,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
    )
    for found in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield [json.loads(text) for text in found.column("answer").to_pylist()]


def _as_json(row: Row) -> dict[str, Any]:
    return {**asdict(row), "picture": None if isinstance(row.picture, bytes) else row.picture}


def _raise_told(results: list[Result]) -> None:
    """Raise the error of a task that cannot be loaded or asked at all; it is of all rows."""
    for result in results:
        if "fatal" in result:
            raise TvpError(result["fatal"])


class RemoteAsker:
    """An `Asker` in a process of Ray's. Rows and answers travel as JSON, and pictures as bytes."""

    def __init__(self, asking: str, n_cores: int) -> None:
        fields = json.loads(asking)
        self._fatal, self._asker = "", None
        try:
            self._asker = Asker(Asking(**{**fields, "labels": tuple(fields["labels"])}), threads=n_cores)
        except TvpError as error:  # Ray would load it again without an end
            self._fatal = str(error)

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        rows = []
        for text, data in zip(batch.column("row").to_pylist(), batch.column("data").to_pylist(), strict=True):
            fields = json.loads(text)
            rows.append(Row(**{**fields, "picture": data if fields["picture"] is None else fields["picture"]}))
        return pyarrow.table({"answer": [strict_json.dumps(result) for result in self._answer(rows)]})

    def _answer(self, rows: list[Row]) -> list[Result]:
        if self._asker is None:
            return [{"row": row.number, "fatal": self._fatal} for row in rows]
        try:
            return self._asker.answer(rows)
        except TvpError as error:
            return [{"row": row.number, "fatal": str(error)} for row in rows]
