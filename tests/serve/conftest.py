from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def run() -> Iterator[Any]:
    """A server with both golden bundles that all tests share; it has no keys."""
    from tests.serve.running import running

    with running() as server:
        yield server


@pytest.fixture(scope="session")
def tasks() -> Iterator[Any]:
    """The same bundles in this process, to compare with."""
    from tests.serve.running import LLAVA, T5
    from tvp import sdk

    with sdk.load(LLAVA) as llava, sdk.load(T5) as t5:
        yield {"llava": llava, "t5": t5}
