from __future__ import annotations

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# The shapes that these modules' annotations state are checked while the tests run.
install_import_hook([f"tvp.trainer.{name}" for name in ("families", "losses", "update")], "beartype.beartype")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder of real CIFAR-10 photos, which is not part of the repository."""
    if not (DATA / "test.parquet").exists():
        pytest.skip("the CIFAR-10 photos are not at ../shared/data/cifar10, beside the repository")
    return DATA


@pytest.fixture(scope="session", params=["llava", "blip2"])
def bundle(request, tmp_path_factory) -> Path:
    """An exported random model of each family; do not change it, copy it."""
    from tests.bundles import make_bundle

    return make_bundle(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def one_bundle(tmp_path_factory) -> Path:
    """One bundle, where the family does not matter; do not change it, copy it."""
    from tests.bundles import make_bundle

    return make_bundle("llava", tmp_path_factory.mktemp("one"))
