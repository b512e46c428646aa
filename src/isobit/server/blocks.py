"""Conversations and answers as ``/v1/messages`` has them: blocks in, blocks and events out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from isobit.server.errors import wrong
from isobit.server.parts import Part
from isobit.server.reading import Called, News
from isobit.server.schema.chat import Message

Event = dict[str, Any]


def messages(given: list[dict[str, Any]], system: str | list[dict[str, Any]] | None) -> list[Message]:
    """The messages of a conversation in blocks.

    Raises:
        Refusal: a block is none that is served.
    """
    found: list[Message] = []
    if system:
        found.append(Message("system", system if isinstance(system, str) else _texts(system, "system")))
    for place, one in enumerate(given):
        where = f"messages[{place}]"
        role, content = one.get("role"), one.get("content")
        if role not in ("user", "assistant", "system"):
            raise wrong(f"{where}.role must be user or assistant", "messages")
        if isinstance(content, str):
            found.append(Message(role, content))
        elif isinstance(content, list):
            found += _turn(role, content, where)
        else:
            raise wrong(f"{where}.content must be a text or a list of blocks", "messages")
    return found


def _turn(role: str, blocks: list[Any], where: str) -> Iterator[Message]:
    """A message's blocks: results of tools are messages of their own, before what else is said."""
    said: list[Part] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[Message] = []
    for place, block in enumerate(blocks):
        at = f"{where}.content[{place}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            said.append(Part(at, {"type": "text", "text": _text(block, "text", at)}))
        elif kind == "image":
            said.append(_image(block, at))
        elif kind == "thinking":
            thoughts.append(_text(block, "thinking", at))
        elif kind == "redacted_thinking":
            continue
        elif kind == "tool_use" and role == "assistant":
            calls.append(_use(block, at))
        elif kind == "tool_result" and role == "user":
            content = block.get("content") or ""
            result = content if isinstance(content, str) else _result(content, f"{at}.content")
            results.append(Message("tool", result, tool_call_id=_text(block, "tool_use_id", at)))
        else:
            raise wrong(f"{at}: {str(kind)[:40]!r} is not served in a message of the {role}", "messages")
    yield from results
    if said or calls or thoughts or not results:
        whole: Any = said if said else None if calls else ""
        yield Message(role, whole, tool_calls=calls or None, reasoning="\n".join(thoughts) or None)


def _image(block: Mapping[str, Any], where: str) -> Part:
    """As chats have it."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or kind not in ("base64", "url"):
        raise wrong(f'{where}.source must be {{"type": "base64", "media_type": ..., "data": ...}}', where)
    address = _text(source, "url", f"{where}.source") if kind == "url" else None
    if address is None:
        address = "data:" + str(source.get("media_type")) + ";base64," + _text(source, "data", f"{where}.source")
    return Part(where, {"type": "image_url", "image_url": {"url": address}})


def _result(blocks: Any, where: str) -> str | list[Any]:
    """What a tool gave: its texts, a line each; with images a list."""
    if not isinstance(blocks, list) or not any(isinstance(one, dict) and one.get("type") == "image" for one in blocks):
        return _texts(blocks, where)
    found: list[Any] = []
    for place, block in enumerate(blocks):
        at = f"{where}[{place}]"
        image = isinstance(block, dict) and block.get("type") == "image"
        found.append(_image(block, at) if image else Part(at, {"type": "text", "text": _texts([block], where)}))
    return found


def _texts(blocks: Any, where: str) -> str:
    if not isinstance(blocks, list):
        raise wrong(f"{where} must be a text or a list of blocks", "messages")
    for place, block in enumerate(blocks):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise wrong(f"{where}[{place}] must be a text", "messages")
    return "\n".join(_text(block, "text", where) for block in blocks)


def _text(block: Mapping[str, Any], name: str, where: str) -> str:
    found = block.get(name)
    if not isinstance(found, str):
        raise wrong(f"{where}.{name} must be a text", "messages")
    return found


def _use(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = block.get("input")
    if not isinstance(given, dict):
        raise wrong(f"{where}.input must be an object", "messages")
    function = {"name": _text(block, "name", where), "arguments": msgspec.json.encode(given).decode()}
    return {"id": _text(block, "id", where), "type": "function", "function": function}


def tools(given: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tools as chats have them."""
    if given is None:
        return None
    for place, tool in enumerate(given):
        if tool.get("type", "custom") != "custom":
            raise wrong(f"tools[{place}]: {str(tool['type'])[:40]!r} is not served; describe your own", "tools")
    return [
        {
            "type": "function",
            "function": {
                "name": tool.get("name"),
                "description": tool.get("description"),
                "parameters": tool.get("input_schema"),
            },
        }
        for tool in given
    ]


def choice(given: Mapping[str, Any] | None) -> tuple[str | dict[str, Any] | None, bool | None]:
    """``tool_choice``, and whether calls may stand beside each other, as chats have them."""
    if given is None:
        return None, None
    kind, parallel = given.get("type"), not given.get("disable_parallel_tool_use", False)
    if kind == "tool":
        return {"type": "function", "function": {"name": given.get("name")}}, parallel
    if kind not in ("auto", "any", "none"):
        raise wrong("tool_choice.type must be auto, any, tool or none", "tool_choice")
    return ("required" if kind == "any" else str(kind)), parallel


class Blocks:
    """The blocks of an answer, made of what is new of it, and the events that tell them.

    Attributes:
        content: blocks that are whole.
    """

    def __init__(self) -> None:
        self.content: list[dict[str, Any]] = []
        self._kind: str | None = None  # of the block that is being written
        self._texts: list[str] = []

    def add(self, news: News) -> Iterator[Event]:
        """What has come."""
        if news.thought:
            yield from self._said("thinking", news.thought)
        if news.text:
            yield from self._said("text", news.text)
        for call in news.calls:
            yield from self.close()
            yield from self._called(call)

    def close(self) -> Iterator[Event]:
        """The block that is being written ends."""
        kind, self._kind = self._kind, None
        if kind is not None:
            self.content.append({**_EMPTY[kind], kind: "".join(self._texts)})
            yield {"type": "content_block_stop", "index": len(self.content) - 1}

    def _said(self, kind: str, text: str) -> Iterator[Event]:
        if self._kind is not None and self._kind != kind:
            yield from self.close()
        index = len(self.content)
        if self._kind is None:
            self._kind, self._texts = kind, []
            yield {"type": "content_block_start", "index": index, "content_block": _EMPTY[kind]}
        self._texts.append(text)
        yield {"type": "content_block_delta", "index": index, "delta": {"type": f"{kind}_delta", kind: text}}

    def _called(self, call: Called) -> Iterator[Event]:
        index = len(self.content)
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": block}
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
        self.content.append({**block, "input": msgspec.json.decode(call.arguments)})


_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
