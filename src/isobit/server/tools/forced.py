"""Grammars of answers that have to be calls: written as the model's family writes them, arguments by their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from isobit.engine.grammar import Grammar, laid_out, quoted
from isobit.engine.schema import HARMLESS
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import UsageError
from isobit.server.tools.calls import Tools
from isobit.server.tools.forms import AROUND, Form

MOST = 16  # calls beside each other
_PARTS = re.compile(r"«(.*?)»|\{(name|arguments|number|pairs)\}", re.DOTALL)


def forced(form: Form, tokenizer: Tokenizer, tools: Tools, *, many: bool) -> Grammar:
    """An answer that is one call, or several.

    Args:
        form: how the model writes calls.
        tokenizer: of the model; marks that it has as tokens are written as these.
        tools: those that may be called.
        many: whether several calls may stand beside each other.

    Raises:
        UsageError: a schema cannot be enforced; names the tool and the keywords.
    """
    writer = _Writer(tokenizer)
    before, behind = (writer.template(part) for part in AROUND.get(form.name, ("", "")))
    between = writer.template(form.between)
    many = many and not form.channels
    again = f"({between} call){{0,{MOST - 1}}}" if many else ""
    rules = [f"start: {before} call {again} {behind}"]
    rules.append("call: " + " | ".join(f"call_{number}" for number in range(len(tools))))
    for number, (name, schema) in enumerate(tools.items()):
        rules += writer.call(form, number, name, schema)
    return Grammar.lark("\n".join(rules) + "\n", "tools")


class _Writer:
    """Parts of a grammar in Lark's syntax."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._added = {text: id for id, text in tokenizer.added()}

    def mark(self, text: str) -> str:
        """A mark: the token that it is, or its letters."""
        id = self._added.get(text)
        return quoted(text) if id is None else f"<[{id}]>"

    def template(self, text: str, **holes: str) -> str:
        """A text with marks in angle quotes and holes in braces."""
        items: list[str] = []
        at = 0
        for hit in _PARTS.finditer(text):
            if hit.start() > at:
                items.append(quoted(text[at : hit.start()]))
            items.append(holes[hit[2]] if hit[1] is None else self.mark(hit[1]))
            at = hit.end()
        if at < len(text):
            items.append(quoted(text[at:]))
        return " ".join(items)

    def call(self, form: Form, number: int, name: str, schema: Mapping[str, Any]) -> list[str]:
        """The rules of calls of one tool."""
        called = f"the parameters of the tool {name!r}"
        if "{pairs}" in form.call:
            pairs, rules = self._pairs(form, number, schema, called)
            return [f"call_{number}: " + self.template(form.call, name=quoted(name), pairs=pairs), *rules]
        arguments = laid_out({"type": "object", **schema}, called)
        holes = {"name": quoted(name), "arguments": f"args_{number}", "number": "/[0-9]{1,3}/"}
        rule = f"call_{number}: " + self.template(form.call, **holes)
        return [rule, f"args_{number}: %json {json.dumps(arguments)}"]

    def _pairs(self, form: Form, number: int, schema: Mapping[str, Any], called: str) -> tuple[str, list[str]]:
        """Keys and values, each behind the mark of its kind: texts as they are, others as JSON."""
        whole = {"type": "object", **schema}
        laid_out(whole, called)  # names all that cannot be enforced anywhere
        _require(whole, _OBJECT, called)
        properties = whole.get("properties") or {}
        required = whole.get("required") or []
        written: list[str] = []
        rules: list[str] = []
        for place, (key, about) in enumerate(properties.items()):
            value = f"value_{number}_{place}"
            before, behind = form.pair
            pair = self.template(before, name=quoted(key)) + f" {value} " + self.template(behind)
            written.append(pair if key in required else f"({pair})?")
            rules.append(f"{value}: " + _value(about, whole, f"{called}, {key!r},"))
        return " ".join(written), rules


_OBJECT = frozenset({"type", "properties", "required", "additionalProperties", "$defs", "definitions"})
_STRING = frozenset({"type", "enum"})


def _value(about: Any, schema: Mapping[str, Any], called: str) -> str:
    if isinstance(about, dict) and about.get("type") == "string":
        _require(about, _STRING, called)
        return " | ".join(quoted(str(one)) for one in about["enum"]) if about.get("enum") else r"/[^<]*/"
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    whole = {**definitions, **about} if isinstance(about, dict) else about
    return f"%json {json.dumps(laid_out(whole, called))}"


def _require(schema: Mapping[str, Any], known: frozenset[str], called: str) -> None:
    further = sorted(set(schema) - known - HARMLESS)
    if further:
        raise UsageError(
            f"{called} cannot be enforced: this model writes values as texts between marks, for which there is no "
            f"{', '.join(further)}"
        )
