"""What the tests of `tvp serve` need. Where it is not installed, a module that imports this is skipped."""

from __future__ import annotations

import pytest

REASON = "the extra 'serve' is not installed: pip install '.[dev]'"
for _name in ("python_multipart", "prometheus_client"):
    pytest.importorskip(_name, reason=REASON)
uvicorn = pytest.importorskip("uvicorn", reason=REASON)
httpx = pytest.importorskip("httpx", reason=REASON)
StreamingResponse = pytest.importorskip("starlette.responses", reason=REASON).StreamingResponse
Route = pytest.importorskip("starlette.routing", reason=REASON).Route
