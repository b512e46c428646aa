"""The server as an ASGI application: its routes, one family a file, behind one guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from isobit.errors import IsobitError
from isobit.server import logs
from isobit.server.errors import Refusal
from isobit.server.guard import Guard
from isobit.server.replies import ClientGone, error_reply
from isobit.server.routes import (
    audio,
    chat,
    completions,
    embeddings,
    health,
    messages,
    metrics,
    models,
    openapi,
    page,
    responses,
    speech,
    tokens,
)
from isobit.server.serving import Serving

# Every family of routes; each gives its own for what is served.
FAMILIES: tuple[Callable[[Serving], Sequence[Route]], ...] = (
    audio.routes,
    chat.routes,
    completions.routes,
    embeddings.routes,
    health.routes,
    messages.routes,
    metrics.routes,
    models.routes,
    openapi.routes,
    page.routes,
    responses.routes,
    speech.routes,
    tokens.routes,
)
# Of a pipeline of speech: its language model writes sounds, and nobody chats with it.
OF_SPEECH = (health.routes, metrics.routes, models.routes, openapi.routes, speech.routes)


def all_routes(serving: Serving) -> list[BaseRoute]:
    """Every route of the server."""
    families = FAMILIES if serving.speaking is None else OF_SPEECH
    return [route for family in families for route in family(serving)]


def create_app(serving: Serving) -> ASGIApp:
    """The application that serves a model."""
    app = Starlette(
        routes=all_routes(serving),
        exception_handlers={HTTPException: _http_error, ClientGone: _left, IsobitError: _error, Exception: _error},
    )
    app.router.redirect_slashes = False
    return Guard(app, serving.settings)


async def _error(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refusal):
        logs.note(request.scope, error)
    return error_reply(error)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it, and the log says that nobody waited


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_reply(Refusal(404, "there is no such route; see /openapi.json", code="unknown_url"))
    if error.status_code == 405:
        reason = f"this route does not take {request.method}"
        return error_reply(Refusal(405, reason, headers=dict(error.headers or {})))
    return error_reply(Refusal(error.status_code, error.detail))
