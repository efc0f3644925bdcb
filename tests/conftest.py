from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# The shapes that these modules' annotations state are checked while the tests run.
install_import_hook([f"tvp.trainer.{name}" for name in ("families", "losses", "update")], "beartype.beartype")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory) -> Iterator[None]:
    """Nobody's ~/.tvp is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVP_HOME", str(tmp_path_factory.mktemp("home")))
        yield


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


MATRIX = re.compile(r"trainer/test_families\.py::test_(\w+)\[([\w.-]+)\]$")
_outcomes: dict[tuple[str, str], str] = {}  # (family, check) -> ok or FAILED


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what each check of tests/trainer/test_families.py said of each family."""
    match = MATRIX.search(report.nodeid)
    if match is None or report.skipped:
        return
    cell = match[2], match[1]
    if report.failed or _outcomes.get(cell) == "FAILED":
        _outcomes[cell] = "FAILED"
    elif report.when == "call":
        _outcomes[cell] = "ok"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of families and checks, if they ran."""
    if not _outcomes:
        return
    rows, columns = (list(dict.fromkeys(cell[i] for cell in _outcomes)) for i in (0, 1))
    width = max(map(len, rows)) + 2
    terminalreporter.section("families x checks")
    terminalreporter.line(" " * width + "".join(f"{column:>10}" for column in columns))
    for row in rows:
        cells = (_outcomes.get((row, column), "-") for column in columns)
        terminalreporter.line(f"{row:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
    failed = [f"{row} {column}" for (row, column), outcome in _outcomes.items() if outcome == "FAILED"]
    said = f"FAILED: {', '.join(failed)}" if failed else "all checks passed"
    terminalreporter.line(f"{len(rows)} families, {said}")
