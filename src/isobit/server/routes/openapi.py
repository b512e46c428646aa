"""``/openapi.json``: the routes as programs read them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.server.openapi import document
from isobit.server.replies import json_reply
from isobit.server.serving import Serving


def routes(serving: Serving) -> list[Route]:
    """The route."""
    found = document()

    async def openapi(request: Request) -> Response:
        return json_reply(found)

    return [Route("/openapi.json", openapi, methods=["GET"])]
