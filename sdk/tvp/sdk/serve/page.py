"""The page at `/`: files in `web/`, which are sent as they are. It needs no key; what it asks for does."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from .refusals import of_status

WEB = Path(__file__).parent / "web"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {file.name: file.read_bytes() for file in sorted(WEB.iterdir()) if file.suffix in TYPES}
PATHS = frozenset({"/", *(f"/web/{name}" for name in FILES)})
# Scripts and styles from files of this server alone, pictures that the page holds, and no way to make HTML of a text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}


async def page(request: HttpRequest) -> Response:
    """GET / and GET /web/{name}."""
    name = request.path_params.get("name", "index.html")
    if name not in FILES:
        raise of_status(404)
    return Response(FILES[name], headers=HEADERS, media_type=TYPES[Path(name).suffix])
