"""Calls of tools as models write them in text, taken apart. What is no whole call is None: its text stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_NAME = 256
MOST_CALLS = 128  # in one answer
Tools = Mapping[str, Mapping[str, Any]]  # JSON Schemas of the arguments, by name


@dataclass(frozen=True)
class Call:
    """A call: the tool's name, its arguments as JSON text, and its id if the model gives one."""

    name: str
    arguments: str
    id: str | None = None


Calls = list[Call] | None
_DECODER = json.JSONDecoder(parse_constant=lambda name: _refuse())
_BETWEEN = re.compile(r"[\s;,]*")


def _refuse() -> None:
    raise ValueError


def made(name: object, arguments: object, id: str | None = None) -> Call | None:
    """A call, if the name is one and the arguments are an object, or JSON text of one."""
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
        return None
    if isinstance(arguments, str):
        found = values(arguments)
        arguments = found[0] if found is not None and len(found) == 1 else None
    if not isinstance(arguments, dict):
        return None
    try:
        return Call(name.strip(), json.dumps(arguments, ensure_ascii=False, allow_nan=False), id)
    except (ValueError, RecursionError):
        return None


def values(text: str) -> list[Any] | None:
    """JSON values one behind the other, with spaces, commas or semicolons between them; None for anything else."""
    found: list[Any] = []
    at = _BETWEEN.match(text).end()  # type: ignore[union-attr]
    try:
        while at < len(text):
            value, at = _DECODER.raw_decode(text, at)
            found.append(value)
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return None
    return found or None


def objects(block: str, tools: Tools) -> Calls:
    """``{"name": ..., "arguments": {...}}``, one or more, or a list; "parameters" is another word for arguments."""
    found = values(block)
    if found is None:
        return None
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    return _all(_of_object(one) for one in found)


def _of_object(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    arguments: Any = next((value[key] for key in ("arguments", "parameters") if key in value), {})
    return made(value.get("name", value.get("tool_name")), arguments)


def _all(calls: Iterator[Call | None]) -> Calls:
    found = [*calls]
    if not found or len(found) > MOST_CALLS or None in found:
        return None
    return [call for call in found if call is not None]


def mistral(block: str, tools: Tools) -> Calls:
    """A list of objects, or ``name[ARGS]{...}`` for each call, perhaps with ``[CALL_ID]...`` before the arguments."""
    if block.lstrip()[:1] in ("[", "{"):
        return objects(block, tools)
    return _all(_named(part) for part in block.split("[TOOL_CALLS]"))


def _named(part: str) -> Call | None:
    name, _, arguments = part.partition("[ARGS]")
    if not arguments:
        at = part.find("{")
        name, arguments = (part[:at], part[at:]) if at > 0 else (part, "")
    name, _, id = name.partition("[CALL_ID]")
    return made(name, arguments, id.strip() or None)


_FENCED = re.compile(r"\s*([^\n]*)\n```(?:json)?\n(.*?)\n?```\s*", re.DOTALL)


def deepseek(block: str, tools: Tools) -> Calls:
    """``function<sep>name``, a line end and the arguments in a fence (V3, R1); or ``name<sep>{...}`` (V3.1)."""
    before, mark, behind = block.partition("<｜tool▁sep｜>")
    if not mark:
        return None
    if before.strip() == "function" and "```" in behind:
        fenced = _FENCED.fullmatch(behind)
        return None if fenced is None else _all(iter([made(fenced[1], fenced[2])]))
    return _all(iter([made(before, behind)]))


def kimi(block: str, tools: Tools) -> Calls:
    """``functions.name:0<begin>{...}``; what is before the arguments is the call's id."""
    id, mark, arguments = block.partition("<|tool_call_argument_begin|>")
    name = id.strip().removeprefix("functions.").rpartition(":")[0]
    return _all(iter([made(name, arguments, id.strip())])) if mark else None


def glm(block: str, tools: Tools) -> Calls:
    """A name, then keys and values; a value is a text where the tool says so, or where it is no JSON."""
    name, *pairs = block.split("<arg_key>")
    schema = tools.get(name.strip(), {})
    properties = schema.get("properties")
    found: dict[str, Any] = {}
    for pair in pairs:
        key, between, rest = pair.partition("</arg_key>")
        gap, begin, rest = rest.partition("<arg_value>")
        text, end, behind = rest.partition("</arg_value>")
        if not (between and begin and end) or gap.strip() or behind.strip():
            return None
        about = properties.get(key.strip()) if isinstance(properties, dict) else None
        found[key.strip()] = _value(text, about)
    return _all(iter([made(name, found)]))


_FUNCTION = re.compile(r"\s*(?:<function=)?([^<>\n]{1,300})>(.*?)(?:</function>\s*|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^<>\n]+)>(.*?)</parameter>", re.DOTALL)
_INVOKE = re.compile(r'\s*<invoke name="?([^"<>\n]{1,300})"?>(.*?)</invoke>\s*', re.DOTALL)
_NAMED = re.compile(r'\s*<parameter name="?([^"<>\n]+)"?>(.*?)</parameter>', re.DOTALL)


def functions(block: str, tools: Tools) -> Calls:
    """``<function=name><parameter=key>value</parameter></function>``, one or more; the first mark may be missing."""
    return _tagged(block, tools, _FUNCTION, _PARAMETER)


def invokes(block: str, tools: Tools) -> Calls:
    """``<invoke name="name"><parameter name="key">value</parameter></invoke>``, one or more."""
    return _tagged(block, tools, _INVOKE, _NAMED)


def _tagged(block: str, tools: Tools, call: re.Pattern[str], parameter: re.Pattern[str]) -> Calls:
    found: list[Call | None] = []
    at = 0
    while at < len(block) and len(found) <= MOST_CALLS:
        hit = call.match(block, at)
        if hit is None:
            return None
        found.append(_of_tags(hit[1].strip(), hit[2], tools, parameter))
        at = hit.end()
    return _all(iter(found))


def _of_tags(name: str, body: str, tools: Tools, parameter: re.Pattern[str]) -> Call | None:
    properties = tools.get(name, {}).get("properties")
    found: dict[str, Any] = {}
    at = 0
    while (hit := parameter.match(body, at)) is not None:
        key, text = hit[1].strip(), hit[2].removeprefix("\n").removesuffix("\n")
        found[key] = _value(text, properties.get(key) if isinstance(properties, dict) else None)
        at = hit.end()
    return made(name, found) if not body[at:].strip() else None


def _value(text: str, about: Any) -> Any:
    kind = about.get("type") if isinstance(about, dict) else None
    kinds = kind if isinstance(kind, list) else [kind]
    if "string" in kinds:
        return None if text == "null" and "null" in kinds else text
    read = values(text)
    if read is None and "boolean" in kinds and text.strip() in ("True", "False"):  # as Python writes them
        return text.strip() == "True"
    return read[0] if read is not None and len(read) == 1 else text
