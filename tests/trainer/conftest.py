from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from tests.tiny import save_tiny, save_tiny_guide


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A tiny random model and guide, for what does not depend on the family; do not change them."""
    folder = tmp_path_factory.mktemp("zoo")
    return save_tiny("llava", folder / "llava"), save_tiny_guide(folder / "guide")


@pytest.fixture
def painted():
    """The figures of this test are painted."""


@pytest.fixture(autouse=True)
def _not_painted(request, monkeypatch):
    """Figures are made and not painted, which takes as long as a tiny run; tests with `painted` see to that."""
    if "painted" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: file.write(b"not painted"))


@pytest.fixture
def no_network(monkeypatch):
    """Whatever asks a hub or a server fails the test: a ModelError would hide it from an assertion."""
    asked = []

    def ask(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", ask)
    monkeypatch.setattr("socket.getaddrinfo", ask)
    yield
    assert not asked
