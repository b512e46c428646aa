"""The form that a request asks its answer to have: OpenAI's ``response_format`` and its cousins of other servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from isobit.engine.grammar import Grammar
from isobit.errors import UsageError
from isobit.server.errors import wrong

if TYPE_CHECKING:
    from isobit.server.serving import Serving

# Fields of vLLM's ``structured_outputs``, and of the older ``guided_...``.
KINDS: dict[str, Callable[[Any], Grammar]] = {
    "json": Grammar.json_schema,
    "json_object": lambda wanted: Grammar.json_object(),
    "regex": Grammar.regex,
    "choice": Grammar.choice,
    "grammar": Grammar.grammar,
}
_IDLE = frozenset({"disable_any_whitespace", "disable_additional_properties", "disable_fallback", "whitespace_pattern"})


class Shaped(Protocol):
    """What requests for text say of the answer's form."""

    response_format: dict[str, Any] | None
    structured_outputs: dict[str, Any] | None
    guided_json: dict[str, Any] | str | bool | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def grammar_of(asked: Shaped) -> Grammar | None:
    """The grammar that a request asks for; None for any answer.

    Raises:
        Refusal: it asks for two, for one that is not served, or for one that cannot be enforced; names the field.
    """
    found: list[tuple[str, Grammar]] = []
    for field, make in _asked(asked):
        try:
            grammar = make()
        except UsageError as error:
            raise wrong(f"{field}: {error}", field) from None
        if grammar is not None:
            found.append((field, grammar))
    if len(found) > 1:
        raise wrong(f"{found[0][0]} and {found[1][0]} ask for two forms of one answer: give one", found[1][0])
    return found[0][1] if found else None


async def require_usable(serving: Serving, asked: Shaped, grammar: Grammar) -> None:
    """Compiles the grammar of an answer: what is wrong with it is told before anything is sent.

    Raises:
        Refusal: it cannot be used; names the field that asked for it.
    """
    try:
        await serving.aside(serving.llm.constraint, grammar)
    except UsageError as error:
        field = "tools" if grammar.kind == "tools" else next((name for name, make in _asked(asked) if make()), None)
        raise wrong(str(error) if field is None else f"{field}: {error}", field) from None


def _asked(asked: Shaped) -> list[tuple[str, Callable[[], Grammar | None]]]:
    found: list[tuple[str, Callable[[], Grammar | None]]] = []
    if asked.response_format is not None:
        format = asked.response_format
        found.append(("response_format", lambda: of_format(format)))
    if asked.structured_outputs is not None:
        outputs = asked.structured_outputs
        found.append(("structured_outputs", lambda: _of_outputs(outputs)))
    for name in ("json", "regex", "choice", "grammar"):
        value = getattr(asked, f"guided_{name}")
        if value is not None:
            found.append((f"guided_{name}", lambda make=KINDS[name], value=value: make(value)))  # type: ignore[misc]
    return found


def of_format(format: Mapping[str, Any]) -> Grammar | None:
    """Of OpenAI's ``response_format``: ``text``, ``json_object``, ``json_schema`` (enforced, strict or not).

    Also takes ``text.format`` of ``/v1/responses``, where name and schema stand beside the type.

    Raises:
        UsageError: it is none of these.
    """
    kind = format.get("type")
    if kind in ("text", None):
        return None
    if kind == "json_object":
        # A schema here is how some servers have had it.
        return Grammar.json_schema(format["schema"]) if format.get("schema") is not None else Grammar.json_object()
    if kind == "json_schema":
        inner = format.get("json_schema", format)
        if not isinstance(inner, Mapping) or "schema" not in inner:
            raise UsageError('json_schema needs {"name": ..., "schema": {...}}')
        return Grammar.json_schema(inner["schema"])
    if kind == "grammar" and isinstance(format.get("grammar"), str):
        return Grammar.grammar(format["grammar"])
    raise UsageError(f"the type must be text, json_object or json_schema, not {str(kind)[:40]!r}")


def _of_outputs(outputs: Mapping[str, Any]) -> Grammar | None:
    given = {name: value for name, value in outputs.items() if value not in (None, False) and name not in _IDLE}
    strange = sorted(set(given) - set(KINDS))
    if strange:
        raise UsageError(f"there is {', '.join(KINDS)}, not {', '.join(map(repr, strange[:4]))}")
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} ask for two forms of one answer: give one")
    return next((KINDS[name](value) for name, value in given.items()), None)
