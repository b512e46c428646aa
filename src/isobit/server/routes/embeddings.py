"""``/v1/embeddings``: texts as vectors."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.engine.prompts import given_ids, require_known
from isobit.server.bodies import read_as, read_object, warning
from isobit.server.errors import wrong
from isobit.server.replies import json_reply, unless_gone
from isobit.server.schema.embeddings import IDLE, REFUSED, EmbeddingsRequest
from isobit.server.serving import Serving

POOLS = ("last", "mean")
FORMATS = ("float", "base64")


def routes(serving: Serving) -> list[Route]:
    """The route."""

    async def embed(request: Request) -> Response:
        found = await read_object(request, serving.settings.limits)
        body, unknown = read_as(found, EmbeddingsRequest, REFUSED, IDLE)
        serving.require_model(body.model)
        _require(body)
        texts = await _texts(serving, body)
        made = await unless_gone(request.receive, _vectors(serving, texts, body))
        tokens = sum(len(ids) for ids in texts)
        form = body.encoding_format or "float"
        data = [
            {"object": "embedding", "index": place, "embedding": _written(one, form)} for place, one in enumerate(made)
        ]
        reply = {"object": "list", "data": data, "model": serving.name}
        return json_reply(
            reply | {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}, headers=warning(unknown)
        )

    return [Route("/v1/embeddings", embed, methods=["POST"])]


def _require(body: EmbeddingsRequest) -> None:
    if body.encoding_format not in (None, *FORMATS):
        raise wrong(f"encoding_format must be one of {', '.join(FORMATS)}", "encoding_format")
    if body.pooling not in (None, *POOLS):
        raise wrong(f"pooling must be one of {', '.join(POOLS)}", "pooling")


async def _texts(serving: Serving, body: EmbeddingsRequest) -> list[list[int]]:
    """Token ids of every text."""
    given: Any = body.input
    if given is None or not given:
        raise wrong("input is empty: a text, token ids, or a list of either", "input")
    listed: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    if len(listed) > serving.settings.limits.prompts:
        raise wrong(f"{len(listed)} texts; at most {serving.settings.limits.prompts} go in one request", "input")
    special = body.add_special_tokens is not False
    found: list[list[int]] = []
    for one in listed:
        if not isinstance(one, str | list):
            raise wrong("input must be a text, token ids, or a list of either", "input")
        ids = await serving.encode(one, special) if isinstance(one, str) else given_ids(one)
        require_known(ids, int(serving.llm.model.config.vocab_size), serving.tokenizer, "input")
        if not ids:
            raise wrong("a text is empty", "input")
        if len(ids) > serving.capacity:
            raise wrong(
                f"a text has {len(ids)} tokens, and the model's context holds {serving.capacity}: shorten it",
                "input",
                "context_length_exceeded",
            )
        found.append(ids)
    return found


async def _vectors(serving: Serving, texts: list[list[int]], body: EmbeddingsRequest) -> list[NDArray[np.float32]]:
    """A vector each. Between two of them the engine takes its steps."""
    pool, normal = body.pooling or "last", body.normalize is not False
    with serving.admitted(len(texts)):
        return [await serving.aside(_vector, serving, ids, pool, normal) for ids in texts]


def _vector(serving: Serving, ids: list[int], pool: str, normal: bool) -> NDArray[np.float32]:
    found: NDArray[np.float32] = serving.llm.embed(ids, pool, normalized=normal).numpy()
    return found


def _written(vector: NDArray[np.float32], form: str) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
