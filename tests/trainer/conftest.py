from __future__ import annotations

import pytest

from tests.tiny import save_tiny, save_tiny_guide


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A tiny random model and guide, for what does not depend on the family; do not change them."""
    folder = tmp_path_factory.mktemp("zoo")
    return save_tiny("llava", folder / "llava"), save_tiny_guide(folder / "guide")


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
