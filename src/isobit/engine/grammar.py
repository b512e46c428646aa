"""Grammars of answers: JSON, a JSON Schema, a regular expression, a choice of texts, a grammar in Lark or GBNF."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isobit.engine.schema import enforceable
from isobit.errors import UsageError

MOST_CHARACTERS = 256 << 10  # of a grammar
MOST_CHOICES = 4096
# Between the parts of JSON: nothing, a space, or a line end and what indents the next line. A model that likes spaces
# could go on with them for ever.
_SPACE = r"( |\r?\n[ \t]{0,80})"
_GBNF = re.compile(r"(?m)^\s*[\w-]+\s*::=")


@dataclass(frozen=True)
class Section:
    """A part of answers in front of what a grammar is about: what the model thinks.

    Attributes:
        begin: the token that begins it, if the model has one.
        end: the text that ends it.
        open: whether the prompt has begun it.
    """

    begin: int | None
    end: str
    open: bool


@dataclass(frozen=True)
class Grammar:
    """Which answers are right. Whether it can be used is found out when it is compiled.

    Attributes:
        kind: "json", "regex", "choice", "grammar" or "tools": what messages call it.
        source: what is compiled: llguidance's own JSON, or GBNF.
        gbnf: whether it is GBNF.
        after: what may come before the answer; None for nothing.
    """

    kind: str
    source: str
    gbnf: bool = False
    after: Section | None = None

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: Any) -> Grammar:
        """JSON that a schema allows, the properties of objects in the order in which it has them.

        Args:
            schema: a JSON Schema, as text or parsed.

        Raises:
            UsageError: it is none, too large, or has keywords that cannot be enforced; names all of them.
        """
        return cls("json", json.dumps({"grammars": [{"json_schema": laid_out(schema)}]}))

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Texts that a regular expression matches as a whole; without look-around and backreferences."""
        from llguidance import LLMatcher

        return cls("regex", LLMatcher.grammar_from_regex(_text("the regular expression", pattern)))

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts."""
        listed = None if isinstance(texts, str) else list(texts)
        if not listed or len(listed) > MOST_CHOICES or not all(isinstance(one, str) and one for one in listed):
            raise UsageError(f"a choice is a list of 1 to {MOST_CHOICES} texts that are not empty")
        return cls.lark("start: " + " | ".join(quoted(one) for one in listed), "choice")

    @classmethod
    def grammar(cls, text: str) -> Grammar:
        """A grammar in Lark's syntax, or in GBNF (llama.cpp's); Lark's has a rule named ``start``.

        Raises:
            UsageError: it is empty or too large, or has a JSON schema or a temperature in it.
        """
        _text("the grammar", text)
        if re.search(r"\btemperature\s*=", text):
            raise UsageError("the grammar sets a temperature, which holds for whole answers: leave it out there")
        if re.search(r"%\s*json\b", text):
            raise UsageError("the grammar has a %json in it, which is not served: use a JSON schema of its own")
        return cls("grammar", text, gbnf=True) if _GBNF.search(text) else cls.lark(text)

    @classmethod
    def lark(cls, text: str, kind: str = "grammar") -> Grammar:
        """A grammar in Lark's syntax, whatever is in it."""
        return cls(kind, json.dumps({"grammars": [{"lark_grammar": _text("the grammar", text)}]}))


def laid_out(schema: Any, called: str = "the JSON schema") -> dict[str, Any]:
    """A schema, as text or parsed, that is enforced whole, with the spaces that its JSON may have.

    Messages name it as ``called`` says. Takes and raises what :meth:`Grammar.json_schema` does.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(_text(called, schema))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{called} is no JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise UsageError(f"{called} is an object, not {type(schema).__name__}")
    found = enforceable(schema, called)
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{called} is no JSON: {error}") from None
    found = {"allOf": [found]} if isinstance(found, bool) else found
    return {**found, "x-guidance": {"whitespace_pattern": _SPACE}}


def quoted(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def _text(what: str, text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{what} must be a text that is not empty")
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"{what} has {len(text)} characters; at most {MOST_CHARACTERS} are compiled")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{what} has half a character in it (a lone surrogate)") from None
    return text
