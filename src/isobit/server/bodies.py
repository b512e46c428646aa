"""Bodies of requests: read with a limit, strictly parsed, and held against what they may be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from isobit.checkpoint.jsonfile import bare, strict
from isobit.server.errors import Refusal, wrong
from isobit.server.settings import Limits

T = TypeVar("T")
_LISTED = 8  # unknown fields that are named
_LINGER = 30.0  # seconds in which what is left of a refused body is dropped, as nginx's lingering_time


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object that a request carries.

    Raises:
        Refusal: it is no JSON, not strictly so, too large, no object, or does not come.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise Refusal(415, f"the body must be application/json, not {bare(kind)}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "the body must not be compressed")
    data = await _bytes(request, limits)
    try:
        found = strict(data, finite=True)
    except ValueError as error:
        raise wrong(f"the body {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise wrong(f"the body must be a JSON object, not {_name(found)}", code="invalid_json")
    return found


async def _bytes(request: Request, limits: Limits) -> bytes:
    return b"".join([part async for part in arriving(request, limits.body, limits.silence)])


async def arriving(request: Request, most: int, silence: float) -> AsyncGenerator[bytes]:
    """The parts of a body as they come.

    Args:
        request: whose body it is.
        most: bytes of all of them; where more come, as many again are read and dropped before the refusal.
        silence: seconds that the next one may take.

    Raises:
        Refusal: there are more, or nothing comes.
    """
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() and len(declared) < 20 else 0
    if length > 2 * most or (length > most and "expect" in request.headers):  # nobody reads it, or it is not sent yet
        raise _too_large(most)
    size = 0
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout(silence):
                part = await anext(stream, None)
            if part is None:
                return
            size += len(part)
            if size > most:
                await _drop(stream, most)
                raise _too_large(most)
            yield part
    except TimeoutError:
        raise Refusal(
            408, f"nothing of the body has come for {silence:g} seconds", headers={"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise wrong("the body ends before it is whole") from None


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is larger than {most:,} bytes", headers={"connection": "close"})


async def _drop(stream: AsyncIterator[bytes], most: int) -> None:
    """Lets at most so many more bytes of a refused body come.

    Who still sends when a connection closes is reset, and has no chance to read why: the answer waits for the end of a
    body that is not far off.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            async for part in stream:
                most -= len(part)
                if most < 0:
                    return


def _name(value: object) -> str:
    return {list: "an array", str: "a string", type(None): "null", bool: "a boolean"}.get(type(value), "a number")


def read_as(
    found: Mapping[str, Any],
    kind: type[T],
    refused: Mapping[str, str],
    idle: frozenset[str] = frozenset(),
    *,
    texts: bool = False,
) -> tuple[T, tuple[str, ...]]:
    """An object as a structure.

    Args:
        found: the object.
        kind: a :class:`msgspec.Struct`.
        refused: fields that this server has no answer to, with the reason; null and what is empty ask for nothing.
        idle: fields that change nothing here.
        texts: whether values are texts, as forms have them, and are read as what they are to be.

    Returns:
        The structure, and the names of fields that it does not know.

    Raises:
        Refusal: a field has the wrong type, or is one of ``refused``.
    """
    for name, why in refused.items():
        if found.get(name) not in (None, False, [], {}, ""):
            raise wrong(f"{name}: {why}", name, "unsupported_parameter")
    known = kind.__struct_encode_fields__  # type: ignore[attr-defined]
    unknown = [name for name in found if name not in known and name not in refused and name not in idle]
    try:
        value = msgspec.convert(found, kind, strict=not texts)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        field = place.rstrip("`").lstrip(".")
        raise wrong(f"{field or 'the body'}: {reason}", field or None) from None
    return value, tuple(unknown)


def warning(unknown: tuple[str, ...]) -> dict[str, str]:
    """The header that names fields which were ignored; nothing if there are none."""
    if not unknown:
        return {}
    shown = [name if name.isidentifier() and name.isascii() and len(name) < 60 else "?" for name in unknown[:_LISTED]]
    more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
    return {"warning": f'299 isobit "fields that are not known, ignored: {", ".join(shown)}{more}"'}
