"""Whether the server is alive, whether it answers, and which version it is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.server.replies import json_reply
from isobit.server.serving import Serving
from isobit.version import __version__


def routes(serving: Serving) -> list[Route]:
    """``/health``, ``/ready`` and ``/version``."""

    async def health(request: Request) -> Response:
        return json_reply({"status": "ok"})

    async def ready(request: Request) -> Response:
        if serving.state == "ready":
            return json_reply({"status": "ready"})
        return json_reply({"status": serving.state}, 503, {"retry-after": "1"})

    async def version(request: Request) -> Response:
        return json_reply({"version": __version__})

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/version", version, methods=["GET"]),
    ]
