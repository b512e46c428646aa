"""Replies: JSON, and streams of events that end when the client goes and say when nothing else is to be said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from isobit.server.errors import Refusal, refusal
from isobit.server.logs import note

T = TypeVar("T")
PING = b": still here\n\n"
DONE = b"data: [DONE]\n\n"
encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client has closed the connection: nobody waits for a reply."""


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(encode(value), status, dict(headers or {}), media_type="application/json")


def error_reply(error: BaseException, *, asked: bool = True) -> Response:
    """An error as clients read it."""
    found = refusal(error, asked=asked)
    return json_reply(found.body, found.status, found.all_headers)


def event(value: Any) -> bytes:
    """A value as an event of a stream."""
    return b"data: " + encode(value) + b"\n\n"


def named_event(value: Mapping[str, Any]) -> bytes:
    """A value as an event of a stream whose events are named by their types."""
    data: bytes = encode(value)
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + data + b"\n\n"


async def gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which ends when the client goes.

    Raises:
        ClientGone: it went first.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Server-sent events.

    An error before the first event is a reply of its own, with its status; a later one is an event with ``error``.

    Args:
        events: as bytes, each whole; closed when the client goes.
        ping: seconds of silence behind which a comment is sent, for proxies that end what is idle.
        headers: further ones.
    """

    def __init__(self, events: AsyncIterator[bytes], ping: float, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(media_type="text/event-stream", headers=dict(headers or {}))
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._events, self._ping = events, ping
        self._begun = False
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        pings = asyncio.ensure_future(self._pings(send))
        try:
            await unless_gone(receive, self._write(scope, receive, send))
        except ClientGone:
            pass
        finally:
            pings.cancel()
            await asyncio.gather(pings, return_exceptions=True)

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async for data in self._events:
                await self._send(send, data)
        except Exception as error:
            note(scope, error)
            if not self._begun:
                self._begun = True  # no pings from here on
                await error_reply(error, asked=False)(scope, receive, send)
                return
            await self._send(send, event(refusal(error, asked=False).body) + DONE)
        finally:
            await self._events.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            start: Message = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
        self._last = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _pings(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        while True:
            await asyncio.sleep(max(0.01, self._last + self._ping - loop.time()))
            if loop.time() - self._last >= self._ping:
                await self._send(send, PING)


__all__ = ["ClientGone", "EventStream", "Refusal", "error_reply", "event", "json_reply", "unless_gone"]
