"""A server for tests: the bundled model behind Starlette's client, in this process."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from isobit import api
from isobit.engine.llm import LLM
from isobit.server.app import create_app
from isobit.server.serving import Serving
from isobit.server.settings import Settings


@functools.cache
def bundled() -> LLM:
    """The bundled model; one for all tests of a process."""
    return api.LLM("bundled", sequences=8)


def serving(llm: Any = None, **settings: Any) -> Serving:
    """What is served, with settings of the test's own."""
    return Serving(bundled() if llm is None else llm, Settings(**{"names": ("bundled",), **settings}))


def client(served: Serving | None = None, **options: Any) -> TestClient:
    """A client of a server."""
    options = {"base_url": "http://localhost", "raise_server_exceptions": False} | options
    return TestClient(create_app(serving() if served is None else served), **options)


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which must end with [DONE] and have nothing behind it."""
    parts = [part for part in text.split("\n\n") if part and not part.startswith(":")]
    assert parts[-1] == "data: [DONE]"
    assert all(part.startswith("data: {") for part in parts[:-1])
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


@contextlib.contextmanager
def listening(served: Serving) -> Iterator[str]:
    """A server of its own on a free port of this machine; its address."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(served), http="h11", loop="asyncio", ws="none", lifespan="off", log_config=None,
            h11_max_incomplete_event_size=served.settings.limits.header,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


def until(true: Any, seconds: float = 300) -> None:
    """Waits for something that must come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)
