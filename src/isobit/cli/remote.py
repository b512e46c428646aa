"""A conversation with a model that a server has, as with one that is loaded here. Needs nothing but Python."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from isobit.cli import media_input
from isobit.errors import SourceError, UsageError, printable

KEY = "ISOBIT_API_KEY"
LOCAL = ("revision", "dtype", "template", "kv_cache", "memory", "context")  # options of a model that is loaded here
SECONDS = 600.0  # that a server may be silent; it says that it is alive more often than that
LONGEST = 1 << 20  # bytes of a line or an error


def session(args: argparse.Namespace, system: str | None, given: dict[str, Any]) -> RemoteSession:
    """The conversation that options ask for.

    Raises:
        UsageError: an option is about a model that is loaded here, or the address is none.
    """
    used = [name for name in LOCAL if getattr(args, name, None) not in (None, "auto")]
    if used or args.device != "cpu":
        name = (used or ["device"])[0].replace("_", "-")
        raise UsageError(f"--{name} is about a model that is loaded here; with --server the server has it")
    options = {name: value for name, value in given.items() if value not in (None, False)}
    if args.no_thinking:
        options["chat_template_kwargs"] = {"enable_thinking": False}
    if args.model is not None:
        options["model"] = args.model
    return RemoteSession(Server(args.server, os.environ.get(KEY, "")), system, options)


class Server:
    """A server that has OpenAI's routes.

    Args:
        url: as ``http://127.0.0.1:8000``, with or without ``/v1``.
        key: sent to it and to nobody else; redirections are not followed.

    Raises:
        UsageError: the address is none of http or https, or the key has characters that no header can have.
    """

    def __init__(self, url: str, key: str = "") -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"--server {printable(url)}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise UsageError(f"--server must be an address like http://127.0.0.1:8000, not {printable(url)}")
        if not (key.isascii() and key.isprintable()):
            raise UsageError(f"the variable {KEY} has characters that no key can have")
        self.url = url
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=SECONDS)
        path = parts.path.rstrip("/")
        self._path = path if path.endswith("/v1") else f"{path}/v1"
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Ask, and read the events of the answer.

        Raises:
            SourceError: the server cannot be reached, or refuses; with what it says.
        """
        try:
            self._connection.request("POST", self._path + path, json.dumps(body), self._headers)
            reply = self._connection.getresponse()
            if reply.status != 200:
                raise SourceError(f"{self.url} answers {reply.status}: {_reason(reply.read(LONGEST))}")
            while line := reply.readline(LONGEST):
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise SourceError(f"{self.url}: {_reason(line[6:])}")
                    yield event
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SourceError(f"{self.url} cannot be asked: {reason}") from None
        finally:
            self._connection.close()  # the server ends an answer whose reader has gone


def _reason(body: bytes) -> str:
    """What a server says of an error."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace") or "nothing more"


class RemoteSession:
    """A conversation; what :class:`isobit.cli.chat.Session` is for a model that is loaded here.

    Args:
        server: that has the model.
        system: the system message.
        options: fields of every request.
    """

    def __init__(self, server: Server, system: str | None, options: dict[str, Any]) -> None:
        self._server, self._options = server, options
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, Any]] = list(self._first)
        self.turns: list[dict[str, Any]] = []
        self.unanswered: str | None = None

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages, self.turns = list(self._first), []

    def require(self, kind: str) -> None:
        """Nothing: what its model takes the server says when it is asked."""

    def answer(self, text: str, files: Sequence[media_input.File] = (), *, quiet: bool = False) -> None:
        """Answer a message with these media, and print the answer as it comes; Ctrl-C stops it, and it is kept as far
        as it came."""
        self.unanswered = text
        messages = [*self.messages, {"role": "user", "content": media_input.content(text, files, sent=True)}]
        asked = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        said: list[str] = []
        turn: dict[str, Any] = {"finish_reason": "interrupted"}
        try:
            for event in self._server.events("/chat/completions", self._options | asked):
                for choice in event.get("choices") or []:
                    said.append(choice.get("delta", {}).get("content") or "")
                    if not quiet:
                        print(said[-1], end="", flush=True)
                    if choice.get("finish_reason"):
                        turn["finish_reason"] = choice["finish_reason"]
                turn |= _usage(event.get("usage"))
        except KeyboardInterrupt:
            print(" [stopped]", file=sys.stderr)
        if not quiet:
            print(flush=True)
        self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]
        self.turns.append(turn)
        self.unanswered = None


def _usage(usage: Any) -> dict[str, Any]:
    if not isinstance(usage, dict):
        return {}
    details = usage.get("prompt_tokens_details") or {}
    return {
        "prompt_tokens": usage.get("prompt_tokens"),
        "cached_tokens": details.get("cached_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
    }
