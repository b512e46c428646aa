"""The web page at ``/``: files of the package, read once. A browser runs nothing of it that is not one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.server.serving import Serving

FOLDER = Path(__file__).parent.parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def routes(serving: Serving) -> list[Route]:
    """One for each file: ``index.html`` at ``/``, the others at ``/page/NAME``."""
    return files(FOLDER)


def files(folder: Path) -> list[Route]:
    """The routes of a folder's files; those of kinds that a page is not made of are left out."""
    found = sorted(path for path in folder.iterdir() if path.suffix in KINDS) if folder.is_dir() else []
    return [
        Route("/" if path.name == "index.html" else f"/page/{path.name}", _reply(path), methods=["GET"])
        for path in found
    ]


def _reply(path: Path) -> Callable[[Request], Awaitable[Response]]:
    data, kind = path.read_bytes(), KINDS[path.suffix]

    async def reply(request: Request) -> Response:
        return Response(data, headers=HEADERS | {"content-type": kind})

    return reply
