"""Grammars compiled for one model's tokens, and the state of each answer under one (llguidance does both).

A grammar is a stranger's program: it is compiled in a helper process first, within limits on time and memory, and
here only after that. Compiled ones are kept, as far as a bound on their bytes goes.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.engine.constraint import Constraint
from isobit.engine.detokenizer import DecodeStream
from isobit.engine.grammar import Grammar, Section
from isobit.engine.helper import Helper
from isobit.engine.tokenizer import Tokenizer
from isobit.errors import IsobitError, Unsupported, UsageError

# Of llguidance's own: about a second of compiling, some 20 ms for a token, 100 MB of a lexer's states.
PARSER = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}


@dataclass(frozen=True)
class Limits:
    """What grammars may cost."""

    seconds: float = 5.0  # of processor time to compile one
    memory: int = 4 << 30  # bytes of address space of the compiling process
    kept: int = 64 << 20  # bytes of compiled grammars, as estimated


LIMITS = Limits()
_LEAST, _FOR_EACH = 256 << 10, 64  # bytes of a compiled grammar: at least, and for each character of its source

_FAILURES = {
    "wrong": "{kind} cannot be used: {message}",
    "time": "{kind} takes longer than {limits.seconds:g} seconds of the processor to compile: make it simpler",
    "crashed": "{kind} needs more memory or a deeper stack than compiling has ({message}): make it simpler",
}
_KINDS = {
    "json": "the JSON schema",
    "regex": "the regular expression",
    "choice": "the choice",
    "grammar": "the grammar",
    "tools": "a tool's parameters",
}
_HINTS = {
    "oneOf constraints": "its oneOf has branches that overlap: use anyOf, or branches of different types",
    "circular references with sibling keys": (
        "a $ref that leads back to itself has other keywords beside it: put them into the schema that it names"
    ),
    "Schema intersection stack level": "its allOf are too deep in each other: write out what they say together",
    "NoExtensionBias": "no text is right by it, or none that ends: it asks for what cannot be, or leads back to itself",
}


class Grammars:
    """What compiles grammars for one model. Any thread may ask.

    Args:
        tokenizer: of the model.
        vocabulary: its number of tokens.
        limits: what grammars may cost.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, limits: Limits = LIMITS) -> None:
        self._tokenizer, self._vocabulary, self._limits = tokenizer, vocabulary, limits
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, Any] = OrderedDict()
        self._own: Any = None
        self._helper: Helper | None = None

    def constraint(self, grammar: Grammar) -> Constraint:
        """The state of an answer that has not begun. Takes up to seconds for a grammar that is new.

        Raises:
            UsageError: the grammar is wrong, cannot be enforced, or costs too much; the message says why.
            Unsupported: grammars cannot be used with this model's tokenizer.
        """
        section, grammar = grammar.after, replace(grammar, after=None)
        with self._lock:
            compiled = self._kept.get(grammar)
            if compiled is None:
                compiled = self._compiled(grammar)
                self._keep(grammar, compiled)
            self._kept.move_to_end(grammar)
            matched = Matched(compiled.deep_copy())
        return matched if section is None else Behind(matched, section, self._tokenizer)

    def _keep(self, grammar: Grammar, compiled: Any) -> None:
        self._kept[grammar] = compiled
        while len(self._kept) > 1 and sum(_bytes(one) for one in self._kept) > self._limits.kept:
            self._kept.popitem(last=False)

    def _compiled(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        own = self._prepared()
        assert self._helper is not None
        reply = self._helper.ask(json.dumps({"source": grammar.source, "gbnf": grammar.gbnf}))
        if "grammar" not in reply:
            raise UsageError(self._failure(grammar, reply))
        compiled = LLMatcher(own, reply["grammar"], log_level=0, limits=LLParserLimits(**PARSER))  # type: ignore[arg-type]
        if compiled.is_error():
            raise UsageError(self._failure(grammar, {"error": "wrong", "message": compiled.get_error()}))
        return compiled

    def _failure(self, grammar: Grammar, reply: dict[str, Any]) -> str:
        message = " ".join(str(reply.get("message", "")).split())
        message = next((hint for found, hint in _HINTS.items() if message.startswith(found)), message)
        kind = _KINDS[grammar.kind]
        return _FAILURES[reply["error"]].format(kind=kind, message=message, limits=self._limits)

    def _prepared(self) -> Any:
        """The library's tokenizer, and the helper that has the same."""
        if self._own is not None:
            return self._own
        greeting = self._greeting()
        try:
            from llguidance import LLTokenizer

            own = LLTokenizer(greeting["tokenizer"], n_vocab=greeting["vocabulary"], eos_token=greeting["eos"])
        except Exception as error:
            raise _unsupported(f"{error}") from None
        arguments = (str(self._limits.seconds), str(self._limits.memory))
        self._helper = Helper("grammar_worker.py", arguments, _unsupported, json.dumps(greeting))
        self._own = own
        return own

    def _greeting(self) -> dict[str, Any]:
        known = self._tokenizer.vocab_size
        eos = sorted(id for id in self._tokenizer.eos_ids if 0 <= id < min(known, self._vocabulary))
        return {
            "tokenizer": self._tokenizer.as_json(),
            "vocabulary": max(known, self._vocabulary),
            "eos": eos or None,
            "limits": PARSER,
        }


def _bytes(grammar: Grammar) -> int:
    return _LEAST + _FOR_EACH * len(grammar.source)


def _unsupported(reason: str) -> IsobitError:
    return Unsupported("an answer by a grammar", [f"this model's tokenizer cannot be used for it: {reason}"])


class Matched:
    """The state of one answer under a grammar: a :class:`isobit.engine.constraint.Constraint`."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._mask: NDArray[np.uint32] | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def whole(self) -> bool:
        """Whether the answer could end here."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> NDArray[np.uint32]:
        """The tokens that may come next, a bit each.

        Raises:
            UsageError: the grammar's state has grown beyond the limits.
        """
        if self._mask is None:
            mask = self._matcher.compute_bitmask()
            if self._matcher.is_error():
                reason = self._matcher.get_error()
                raise UsageError(f"the answer's grammar cannot go on: {reason}: make it simpler")
            self._mask = np.frombuffer(mask, dtype=np.uint32)
        return self._mask

    def accept(self, token: int) -> None:
        """This token was chosen; one that may not come ends the answer with the next :meth:`allowed`."""
        self._mask = None
        self._matcher.consume_token(token)


class Behind:
    """A constraint that begins behind a section in which the model writes what it wants to.

    Args:
        inner: what holds behind it.
        section: it.
        tokenizer: of the model.
    """

    def __init__(self, inner: Matched, section: Section, tokenizer: Tokenizer) -> None:
        self._inner, self._section = inner, section
        self._stream = DecodeStream(tokenizer, skip_special=False)
        self._inside = section.open
        self._begun = section.open  # a token has come, or the prompt has begun the section
        self._tail = ""

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        return not self._inside and self._inner.finished

    def allowed(self) -> NDArray[np.uint32] | None:
        """The tokens that may come next, a bit each; None for all."""
        if self._inside:
            return None
        mask = self._inner.allowed()
        begin = self._section.begin
        if self._begun or begin is None or begin // 32 >= len(mask):
            return mask
        mask = mask.copy()
        mask[begin // 32] |= np.uint32(1 << begin % 32)
        return mask

    def accept(self, token: int) -> None:
        """This token was chosen."""
        if not self._begun and token == self._section.begin:
            self._inside = True
        elif self._inside:
            seen = self._tail + self._stream.push(token)
            self._inside = self._section.end not in seen
            self._tail = seen[-len(self._section.end) :]
        else:
            self._inner.accept(token)
        self._begun = True
