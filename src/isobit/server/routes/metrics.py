"""``/metrics``, for Prometheus, and what a person wants to see of a server at a glance."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from isobit.server.metrics import kv_usage
from isobit.server.replies import json_reply
from isobit.server.serving import Serving
from isobit.version import __version__


def routes(serving: Serving) -> list[Route]:
    """Both."""

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(serving.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def status(request: Request) -> Response:
        return json_reply(now(serving))

    return [
        Route("/metrics", metrics, methods=["GET"]),
        Route("/v1/isobit/status", status, methods=["GET"]),
    ]


def now(serving: Serving) -> dict[str, Any]:
    """The model, its plan, and how busy the server is."""
    engine = serving.llm.engine
    pool, scheduler = engine.pool, engine.scheduler
    return {
        "model": serving.name,
        "names": list(serving.settings.names),
        "version": __version__,
        "state": serving.state,
        "uptime_seconds": round(time.time() - serving.started, 1),
        "context_length": serving.capacity,
        "chat": serving.tokenizer.chat_template is not None,
        "input_modalities": serving.media.modalities,
        "media_bytes": serving.settings.media.bytes,
        "notes": list(serving.llm.notes),
        **serving.about,
        "tokens_per_second": {
            "generation": round(serving.metrics.generated.now(), 1),
            "prompt": round(serving.metrics.read.now(), 1),
        },
        "queue": {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "sequences": scheduler.sequences,
            "admitted": serving.sequences,
            "most_waiting": serving.settings.limits.waiting,
        },
        "kv_cache": {
            "usage": round(kv_usage(engine), 4),
            "tokens": pool.count * pool.size,
            "prefix_queries": pool.asked,
            "prefix_hits": pool.found,
            "preemptions": scheduler.preemptions,
        },
    }
