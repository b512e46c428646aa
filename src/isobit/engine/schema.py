"""JSON Schemas as the grammar library enforces them: what it would ignore is refused by name, or written otherwise.

Pure; nothing here compiles anything. The tables are of llguidance 1.9 (tests/cpu/test_schemas.py tries every keyword).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from isobit.errors import UsageError, printable

MOST_BYTES = 256 << 10  # of a schema as JSON
DEEPEST = 64  # levels of lists and objects
MOST_PARTS = 20_000  # lists, objects and values
MOST_POINTERS = 8_000_000  # characters of the JSON pointers to all parts together
_SHOWN = 8  # reasons

# Keywords that hold schemas, and how.
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS = frozenset({"prefixItems", "allOf", "anyOf", "oneOf"})
_SINGLE = frozenset({"items", "additionalProperties", "additionalItems"})  # items may be a list, too
_ARRAYS = _LISTS | {"required", "enum"}
ENFORCED = (
    frozenset(
        """type enum const required minProperties maxProperties minItems maxItems minimum maximum exclusiveMinimum
        exclusiveMaximum multipleOf minLength maxLength pattern format $ref""".split()
    )
    | _MAPS
    | _LISTS
    | _SINGLE
)
# Keywords that say nothing about which texts are right, beside those that begin with "x-".
HARMLESS = frozenset(
    """title description default examples example $comment $schema deprecated readOnly writeOnly discriminator
    externalDocs xml""".split()
)
# Keywords that are not enforced, with what to do instead.
_INSTEAD = {
    "not": "list what may be there",
    "if": "use anyOf",
    "then": "use anyOf",
    "else": "use anyOf",
    "uniqueItems": "leave it out",
    "contains": "use prefixItems",
    "propertyNames": "use patternProperties with additionalProperties: false",
    "dependentRequired": "use anyOf",
    "dependentSchemas": "use anyOf",
    "dependencies": "use anyOf",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items: false",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "$anchor": "use $ref with a path like #/$defs/name",
    "$dynamicAnchor": "use $ref with a path like #/$defs/name",
    "$id": "leave it out: references are paths like #/$defs/name",
    "x-guidance": "it is the server's",
}
# Formats of numbers: the least and the greatest.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    **{f"int{bits}": (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
    "uint": (0, None),
    "float": (None, None),
    "double": (None, None),
}


def enforceable(schema: Any, called: str = "the JSON schema") -> Any:
    """The schema as the library enforces it whole.

    Args:
        schema: a JSON Schema, parsed: an object, True or False.
        called: how messages name it.

    Raises:
        UsageError: it is too large or too deep, or has keywords that cannot be enforced; names all of them.
    """
    _require_size(schema, called)
    reasons: list[str] = []
    found = [*_schemas(schema)]
    places = {pointer for pointer, _ in found}
    endless = _endless(dict(found))
    for pointer, part in found:
        reasons += [f"{reason} (at #{pointer})" for reason in _problems(part, places)]
        if pointer in endless and isinstance(part.get("$ref"), str):
            named = str(part["$ref"])[:80]
            reasons.append(
                f"$ref to {named!r}, which leads back to itself, and nothing on the way ends it (at #{pointer})"
            )
    if reasons:
        more = "" if len(reasons) <= _SHOWN else f"; and {len(reasons) - _SHOWN} more"
        listed = "; ".join(printable(reason, 300) for reason in reasons[:_SHOWN])
        raise UsageError(f"{called} has what cannot be enforced: {listed}{more}")
    return _rewritten(schema, "", {place: deeper for place, part in found if (deeper := _deeper(part))})


def _require_size(schema: Any, called: str) -> None:
    """Without recursion: what is too deep may be deeper than Python's stack."""
    size, parts, pointers = 0, 0, 0
    waiting: list[tuple[Any, int, int]] = [(schema, 1, 0)]  # (part, how deep, characters of the pointer to it)
    while waiting:
        value, depth, length = waiting.pop()
        parts += 1
        pointers += length
        if depth > DEEPEST:
            raise UsageError(f"{called} is nested deeper than {DEEPEST} levels")
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, Mapping):
            size += sum(len(str(key)) for key in value)
            waiting += [(one, depth + 1, length + len(str(key)) + 1) for key, one in value.items()]
        elif isinstance(value, Sequence):
            waiting += [(one, depth + 1, length + 6) for one in value]
        if parts + len(waiting) > MOST_PARTS or size > MOST_BYTES:
            raise UsageError(f"{called} is larger than {MOST_BYTES} characters or {MOST_PARTS} parts")
        if pointers > MOST_POINTERS:
            raise UsageError(f"{called} has too many parts below long names: their places alone would fill memory")


def _schemas(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every schema in it, itself first, with its place as a JSON pointer."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        place, part = waiting.pop()
        yield place, part
        if not isinstance(part, Mapping):
            continue
        for key, value in part.items():
            here = f"{place}/{_escaped(key)}"
            if key in _MAPS and isinstance(value, Mapping):
                waiting += [(f"{here}/{_escaped(name)}", one) for name, one in value.items()]
            elif key in _LISTS | {"items"} and isinstance(value, list):
                waiting += [(f"{here}/{number}", one) for number, one in enumerate(value)]
            elif key in _SINGLE:
                waiting.append((here, value))


def _endless(schemas: Mapping[str, Any]) -> set[str]:
    """The places of schemas that hold, by ``$ref`` and in every branch they offer, themselves again for ever.

    Of what stands below properties and items, only what an object or a list cannot do without is asked.
    """
    waits: dict[str, list[set[str]]] = {}  # for each place: of each of these sets one must end
    for place, part in schemas.items():
        groups = []
        if isinstance(part, Mapping) and not _nullable(part):
            target = part.get("$ref")
            if isinstance(target, str) and target.startswith("#"):
                groups.append({target[1:]})
            for key in _LISTS - {"prefixItems"}:
                branches = part.get(key)
                if isinstance(branches, list) and branches:
                    each = [f"{place}/{key}/{number}" for number in range(len(branches))]
                    groups += [{one} for one in each] if key == "allOf" else [{*each}]
            groups += [{f"{place}/{one}"} for one in _needed(part)]
        waits[place] = groups
    asked: dict[str, list[tuple[str, int]]] = {}
    left = {place: len(groups) for place, groups in waits.items()}
    for place, groups in waits.items():
        for number, group in enumerate(groups):
            for one in group:
                asked.setdefault(one, []).append((place, number))
    done: set[tuple[str, int]] = set()
    ending = [place for place, count in left.items() if not count] + [one for one in asked if one not in schemas]
    while ending:
        for place, number in asked.pop(ending.pop(), ()):
            if (place, number) not in done:
                done.add((place, number))
                left[place] -= 1
                if not left[place]:
                    ending.append(place)
    return {place for place, count in left.items() if count}


def _needed(part: Mapping[str, Any]) -> Iterator[str]:
    """Where, below a schema of objects alone or of lists alone, the schemas stand of what each must have."""
    if part.get("type") == "object":
        own, required = part.get("properties"), part.get("required")
        if isinstance(own, Mapping) and isinstance(required, list):
            yield from (f"properties/{_escaped(name)}" for name in required if isinstance(name, str) and name in own)
    elif part.get("type") == "array":
        first, least = part.get("prefixItems"), part.get("minItems")
        count = len(first) if isinstance(first, list) else 0
        if isinstance(least, int):
            yield from (f"prefixItems/{number}" for number in range(min(count, least)))
            if least > count and isinstance(part.get("items"), Mapping):
                yield "items"


def _escaped(key: Any) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _problems(part: Any, places: set[str]) -> Iterator[str]:
    if isinstance(part, bool):
        return
    if not isinstance(part, Mapping):
        yield f"a schema must be an object, not {str(part)[:40]!r}"
        return
    for key, value in part.items():
        if (key in _MAPS and not isinstance(value, Mapping)) or (key in _ARRAYS and not isinstance(value, list)):
            yield f"{key}, which must be {'an object' if key in _MAPS else 'a list'}"
        elif key == "$ref":
            if not isinstance(value, str) or not value.startswith("#") or value[1:] not in places:
                yield f"$ref to {str(value)[:80]!r}, which is no schema in it (nothing is fetched)"
        elif key == "format":
            if not isinstance(value, str):
                yield "format, which must be a text"
            elif isinstance(part.get("type"), str) and part["type"] != "string" and value not in _NUMBERS:
                yield f"format {str(value)[:40]!r} of a {part['type']}"
        elif key in ("uniqueItems", "nullable") and isinstance(value, bool):
            if key == "uniqueItems" and value:
                yield f"uniqueItems: {_INSTEAD[key]}"
        elif key in _INSTEAD:
            yield f"{key}: {_INSTEAD[key]}"
        elif key not in ENFORCED and key not in HARMLESS and not key.startswith("x-"):
            yield f"{key[:80]!r}, which is no keyword that is known here"


def _nullable(part: Any) -> bool:
    """Whether a schema is OpenAPI's way to say: this, or null."""
    return isinstance(part, Mapping) and part.get("nullable") is True


def _ranged(part: Any) -> bool:
    """Whether a schema's format becomes a range of numbers."""
    return isinstance(part, Mapping) and part.get("type") in ("integer", "number") and part.get("format") in _NUMBERS


def _deeper(part: Any) -> str:
    """By how much deeper what is in a schema stands once it is rewritten, as a JSON pointer."""
    ranged = _ranged(part) and any(bound is not None for bound in _NUMBERS[part["format"]])
    return "/anyOf/0" * _nullable(part) + "/allOf/0" * ranged


def _led(target: str, moved: Mapping[str, str]) -> str:
    """Where a ``$ref`` leads once what it passes through stands elsewhere."""
    names, place, there = target[1:].split("/")[1:], "", "#"
    for name in names:
        there += f"{moved.get(place, '')}/{name}"
        place += f"/{name}"
    return there


def _rewritten(part: Any, place: str, moved: Mapping[str, str]) -> Any:
    """A schema as the library takes it.

    Args:
        part: it.
        place: where it stood, as a JSON pointer.
        moved: by how much deeper the parts of schemas stand that are rewritten, by their places.
    """
    if not isinstance(part, Mapping):
        return part
    found: dict[str, Any] = {}
    for key, value in part.items():
        here = f"{place}/{_escaped(key)}"
        if key in _MAPS and isinstance(value, Mapping):
            found[key] = {name: _rewritten(one, f"{here}/{_escaped(name)}", moved) for name, one in value.items()}
        elif key in _LISTS | {"items"} and isinstance(value, list):
            found[key] = [_rewritten(one, f"{here}/{number}", moved) for number, one in enumerate(value)]
        elif key in _SINGLE:
            found[key] = _rewritten(value, here, moved)
        elif key in ENFORCED or key == "$schema":
            found[key] = _led(value, moved) if key == "$ref" else value
    if _ranged(part):
        found = _in_range(found, *_NUMBERS[found.pop("format")])
    return {"anyOf": [found, {"type": "null"}]} if _nullable(part) else found


def _in_range(schema: dict[str, Any], least: int | None, most: int | None) -> dict[str, Any]:
    bounds = {key: value for key, value in (("minimum", least), ("maximum", most)) if value is not None}
    return {"allOf": [schema, bounds]} if bounds else schema
