from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder of real CIFAR-10 photos, which is not part of the repository."""
    if not (DATA / "test.parquet").exists():
        pytest.skip(f"the CIFAR-10 photos are not at {DATA.relative_to(DATA.parents[3])}")
    return DATA
