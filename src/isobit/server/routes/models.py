"""``/v1/models``: the one model that is served, by its names."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.server.replies import json_reply
from isobit.server.serving import Serving


def routes(serving: Serving) -> list[Route]:
    """The list, and each of it."""

    async def models(request: Request) -> Response:
        return json_reply({"object": "list", "data": [_model(serving, name) for name in serving.settings.names]})

    async def model(request: Request) -> Response:
        name = request.path_params["id"]
        serving.require_model(name)
        return json_reply(_model(serving, name))

    return [Route("/v1/models", models, methods=["GET"]), Route("/v1/models/{id:path}", model, methods=["GET"])]


def _model(serving: Serving, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(serving.started),
        "owned_by": "isobit",
        "root": serving.name,
        "parent": None,
        "max_model_len": serving.capacity,
        "input_modalities": serving.media.modalities,
        "output_modalities": ["text"],
    }
