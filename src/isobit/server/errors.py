"""Errors as clients read them: OpenAI's shape, a status, and nothing of the machine they happened on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from isobit.errors import CapacityError, IsobitError, TemplateError, UsageError

# status: what OpenAI calls it
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    431: "request_too_large",
    500: "server_error",
    503: "overloaded_error",
}
LONGEST = 2000  # characters of a message
INTERNAL = "something went wrong within the server; it is written in its log"

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}\b")
_PATH = re.compile(r"(?<![\w.:/<~])(?!/v1/)(?:~|\.{0,2})?/(?:[^\s/'\"`,;:()]+/)+[^\s'\"`,;:()]*")


class Refusal(IsobitError):
    """What a client is told instead of an answer.

    Args:
        status: of HTTP.
        message: the reason, and what to do instead.
        param: the field that it is about.
        code: a word for programs.
        headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The reply."""
        error = {"message": clean(str(self)), "type": TYPES.get(self.status, "server_error")}
        return {"error": error | {"param": self.param, "code": self.code}}

    @property
    def all_headers(self) -> dict[str, str]:
        """Headers of the reply. Clients repeat what failed with a status of 5xx, unless they are told."""
        fixed = self.status != 503 and self.status != 429
        return {**({"x-should-retry": "false"} if fixed else {"retry-after": "1"}), **self.headers}


def wrong(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that cannot be answered as it stands."""
    return Refusal(400, message, param=param, code=code)


def clean(message: str) -> str:
    """A message without paths and addresses of this machine, and of bounded length."""
    text = _ADDRESS.sub("(address)", _PATH.sub("(path)", message))
    return text if len(text) <= LONGEST else text[: LONGEST - 4] + " ..."


def refusal(error: BaseException, *, asked: bool = True) -> Refusal:
    """What to tell a client of an error.

    Args:
        error: anything that was raised.
        asked: it was raised while the request was read, so that it is about the request; not by the engine's steps.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, CapacityError):
        if asked:
            return Refusal(400, str(error), code="context_length_exceeded")
        return Refusal(503, "there is not enough memory for this request now", code="out_of_memory")
    if isinstance(error, TemplateError) and error.of_model:
        return Refusal(500, f"this model cannot talk, which is no fault of the request: {error}", code="model_error")
    if isinstance(error, UsageError):
        return Refusal(400, str(error), param=error.field)
    if isinstance(error, TemplateError):
        return Refusal(400, str(error))
    if isinstance(error, IsobitError) and not asked:
        return Refusal(500, f"the model gave no answer: {error}", code="model_error")
    return Refusal(500, INTERNAL, code="internal_error")
