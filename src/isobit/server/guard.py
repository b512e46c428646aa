"""What every request passes before a route sees it: its size, whom it calls, where it comes from, and its key."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
import uuid
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isobit.server import logs
from isobit.server.errors import Refusal
from isobit.server.replies import ClientGone, error_reply
from isobit.server.settings import Settings

OPEN = frozenset({"/health", "/ready"})  # routes without a key
WATCHED = OPEN | {"/v1/isobit/status", "/metrics"}  # asked every few seconds: not logged while all is well


# What a page of an allowed origin may do, as browsers ask before they do it.
ALLOWED = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, x-api-key",
    "access-control-max-age": "600",
}


class Allowed(Exception):
    """A browser asks whether a page may ask; it may."""


class Guard:
    """The outermost layer of the server: refuses, logs, and never lets an exception out.

    Args:
        app: what answers.
        settings: who may ask.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = [sha256(key.encode()).digest() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        scope["isobit.id"] = uuid.uuid4().hex
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._finish_headers(scope, MutableHeaders(scope=message))
            await send(message)

        try:
            self._require(scope)
            await self._app(scope, receive, sending)
        except ClientGone:
            status = status or 499
        except Allowed:
            await Response(status_code=204, headers=ALLOWED)(scope, receive, sending)
        except Exception as error:
            if status == 0:
                if not isinstance(error, Refusal):
                    logs.note(scope, error)
                await error_reply(error)(scope, receive, sending)
        finally:
            if scope["path"] not in WATCHED or status >= 400:
                logs.line(
                    "request",
                    request=scope["isobit.id"],
                    method=scope["method"],
                    path=scope["path"],
                    status=status or 499,
                    seconds=round(time.monotonic() - began, 4),
                )

    def _require(self, scope: Scope) -> None:
        """Raises a Refusal if this request is not to be answered."""
        headers = Headers(scope=scope)
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._settings.limits.header:
            raise Refusal(431, f"the headers have {size:,} bytes; at most {self._settings.limits.header:,} are read")
        self._require_host(headers)
        self._require_origin(headers)
        if _asks_first(scope, headers):
            raise Allowed
        if self._keys and scope["path"] not in OPEN and not self._knows(headers):
            kind = "Basic" if "text/html" in headers.get("accept", "") else "Bearer"
            raise Refusal(
                401,
                "a key is needed: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": f'{kind} realm="isobit", charset="UTF-8"'},
            )

    def _require_host(self, headers: Headers) -> None:
        """A page elsewhere can make a name of its own mean this machine, and then ask as if it were of here."""
        allowed = self._settings.hosts
        if allowed is None:
            return
        host = _host_of(headers.get("host", ""))
        if host not in allowed:
            raise Refusal(421, "this server is not called by this name; see `isobit serve --allow-host`")

    def _require_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self._settings.origins or "*" in self._settings.origins:
            return
        try:
            where = urlsplit(origin).netloc.lower()
        except ValueError:  # no address at all
            where = ""
        if not where or where != headers.get("host", "").lower():
            raise Refusal(403, "pages of other origins may not ask here; see `isobit serve --allow-origin`")

    def _knows(self, headers: Headers) -> bool:
        given = sha256(_key_of(headers).encode("utf-8", "surrogateescape")).digest()
        found = False
        for key in self._keys:  # all of them, always: how long it takes tells nothing
            found |= hmac.compare_digest(key, given)
        return found

    def _finish_headers(self, scope: Scope, headers: MutableHeaders) -> None:
        headers["x-request-id"] = scope["isobit.id"]
        headers["x-content-type-options"] = "nosniff"
        origin = Headers(scope=scope).get("origin")
        if origin is not None and (origin in self._settings.origins or "*" in self._settings.origins):
            headers["access-control-allow-origin"] = origin
            headers["vary"] = "origin"


def _asks_first(scope: Scope, headers: Headers) -> bool:
    """Whether this is a browser's question about a request to come; its origin has been allowed already."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _host_of(value: str) -> str:
    """The name in a Host header, without the port."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0]


def _key_of(headers: Headers) -> str:
    """The key that a request brings; as a password, where a browser has asked for it."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return headers.get("x-api-key", "")
