"""Conversations and answers as ``/v1/responses`` has them: items in, items and events out."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isobit.server.errors import wrong
from isobit.server.parts import Part
from isobit.server.reading import Called, News
from isobit.server.schema.chat import Message

Event = dict[str, Any]
_KEPT = ("description", "parameters", "strict")


def messages(given: str | list[dict[str, Any]] | None, instructions: str | None) -> list[Message]:
    """The messages of a conversation in items.

    Raises:
        Refusal: an item is none that is served.
    """
    found = [] if instructions is None else [Message("system", instructions)]
    if not given:
        raise wrong("input is empty: a text, or a list of items", "input")
    if isinstance(given, str):
        return [*found, Message("user", given)]
    thoughts: list[str] = []
    for place, item in enumerate(given):
        where = f"input[{place}]"
        kind = item.get("type", "message")
        if kind == "reasoning":
            thoughts.append(_thoughts(item, where))
        elif kind == "message":
            role = item.get("role")
            content = item.get("content")
            if not isinstance(role, str) or not isinstance(content, str | list):
                raise wrong(f"{where} needs a role and a content", "input")
            content = _placed(content, f"{where}.content")
            found.append(Message(role, content, reasoning=_taken(thoughts) if role == "assistant" else None))
        elif kind == "function_call":
            call = _call(item, where)
            last = found[-1] if found else None
            if last is None or last.role != "assistant":
                last = Message("assistant", reasoning=_taken(thoughts))
                found.append(last)
            last.tool_calls = [*(last.tool_calls or []), call]
        elif kind == "function_call_output":
            output = item.get("output")
            if not isinstance(output, str | list):
                raise wrong(f"{where}.output must be a text", "input")
            output = _placed(output, f"{where}.output")
            found.append(Message("tool", output, tool_call_id=_text(item, "call_id", where)))
        else:
            raise wrong(f"{where} is of type {str(kind)[:40]!r}, which is not served", "input")
    return found


def _placed(content: str | list[Any], where: str) -> str | list[Any]:
    """The parts of an item, which know where they stood."""
    if isinstance(content, str):
        return content
    return [Part(f"{where}[{n}]", part) if isinstance(part, dict) else part for n, part in enumerate(content)]


def _taken(thoughts: list[str]) -> str | None:
    found = "\n".join(thoughts) or None
    thoughts.clear()
    return found


def _thoughts(item: Mapping[str, Any], where: str) -> str:
    parts: list[Any] = []
    for name in ("content", "summary"):
        listed = item.get(name) or []
        if not isinstance(listed, list):
            raise wrong(f"{where}.{name} must be a list", "input")
        parts += listed
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    found = item.get(name)
    if not isinstance(found, str):
        raise wrong(f"{where}.{name} must be a text", "input")
    return found


def _call(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = {"name": _text(item, "name", where), "arguments": _text(item, "arguments", where)}
    return {"id": _text(item, "call_id", where), "type": "function", "function": function}


def tools(given: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools, which are flat here, as chats have them; what is no function stays and is refused there."""
    if given is None:
        return None
    return [
        {"type": "function", "function": {"name": tool.get("name"), **{key: tool[key] for key in _KEPT if key in tool}}}
        if tool.get("type") == "function" and "function" not in tool
        else tool
        for tool in given
    ]


@dataclass
class _Open:
    """The item that is being written."""

    kind: str
    item: dict[str, Any]
    index: int
    text: str = ""


_DELTA = {"reasoning": "response.reasoning_text", "message": "response.output_text"}


class Items:
    """The items of an answer, made of what is new of it, and the events that tell them.

    Attributes:
        output: items that are whole.
    """

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._open: _Open | None = None

    def add(self, news: News, logprobs: list[dict[str, Any]] | None = None) -> Iterator[Event]:
        """What has come; ``logprobs`` are of its tokens."""
        if news.thought:
            yield from self._said("reasoning", news.thought, None)
        if news.text:
            yield from self._said("message", news.text, logprobs)
        for call in news.calls:
            yield from self.close()
            yield from self._called(call)

    def close(self, whole: bool = True) -> Iterator[Event]:
        """The item that is being written ends, cut short unless it is whole."""
        open, self._open = self._open, None
        if open is None:
            return
        place = {"item_id": open.item["id"], "output_index": open.index, "content_index": 0}
        part = open.item["content"][0]
        part["text"] = open.text
        open.item["status"] = "completed" if whole else "incomplete"
        more = {"logprobs": part["logprobs"]} if open.kind == "message" else {}
        yield {"type": f"{_DELTA[open.kind]}.done", **place, "text": open.text, **more}
        yield {"type": "response.content_part.done", **place, "part": part}
        yield {"type": "response.output_item.done", "output_index": open.index, "item": open.item}
        self.output.append(open.item)

    def _said(self, kind: str, text: str, logprobs: list[dict[str, Any]] | None) -> Iterator[Event]:
        if self._open is not None and self._open.kind != kind:
            yield from self.close()
        if self._open is None:
            self._open = _Open(kind, _item(kind), len(self.output))
            begun = {**self._open.item, "content": []}
            yield {"type": "response.output_item.added", "output_index": self._open.index, "item": begun}
            part = {**self._open.item["content"][0]}
            place = {"item_id": self._open.item["id"], "output_index": self._open.index, "content_index": 0}
            yield {"type": "response.content_part.added", **place, "part": part}
        open = self._open
        open.text += text
        place = {"item_id": open.item["id"], "output_index": open.index, "content_index": 0}
        more = {"logprobs": logprobs or []} if kind == "message" else {}
        if logprobs and kind == "message":
            open.item["content"][0]["logprobs"] = [*open.item["content"][0]["logprobs"], *logprobs]
        yield {"type": f"{_DELTA[kind]}.delta", **place, "delta": text, **more}

    def _called(self, call: Called) -> Iterator[Event]:
        index = len(self.output)
        item = {"id": new("fc"), "type": "function_call", "status": "in_progress", "call_id": call.id}
        item |= {"name": call.name, "arguments": ""}
        place = {"item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.added", "output_index": index, "item": item}
        yield {"type": "response.function_call_arguments.delta", **place, "delta": call.arguments}
        done = {"type": "response.function_call_arguments.done", **place, "name": call.name}
        yield done | {"arguments": call.arguments}
        item = {**item, "status": "completed", "arguments": call.arguments}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
        self.output.append(item)


def _item(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        return {"id": new("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": [part]}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"id": new("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": [part]}


def new(kind: str) -> str:
    """An id that nobody has had."""
    return f"{kind}_{uuid.uuid4().hex}"
