"""JSON Schemas: every keyword is enforced or refused by name; what llguidance does with each is tried, not believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers_for_tests import byte_level

from isobit.engine import schema
from isobit.engine.grammar import Grammar
from isobit.errors import UsageError

TOKENS = LLTokenizer(byte_level().to_str())

# A schema, JSON that it allows, JSON that it does not. Each keyword of ENFORCED is in one of them.
ENFORCED: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "type": ({"type": ["string", "null"]}, ["a", None], [1, True, {}]),
    "enum": ({"enum": ["a", 2]}, ["a", 2], ["b", 1]),
    "const": ({"const": None}, [None], [1, ""]),
    "required": ({"required": ["a"]}, [{"a": 1}, 5], [{}, {"b": 1}]),
    "minProperties": ({"type": "object", "minProperties": 1}, [{"a": 1}], [{}]),
    "maxProperties": ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    "minItems": ({"type": "array", "minItems": 2}, [[1, 2]], [[], [1]]),
    "maxItems": ({"type": "array", "maxItems": 1}, [[], [1]], [[1, 2]]),
    "minimum": ({"type": "number", "minimum": 2}, [2, 2.5, 1e3], [1.5, -3]),
    "maximum": ({"type": "integer", "maximum": 2}, [2, -9], [3, 10]),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 1}, [2], [1, 0]),
    "exclusiveMaximum": ({"type": "integer", "exclusiveMaximum": 1}, [0], [1, 2]),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, [0, 14], [1, 15]),
    "minLength": ({"type": "string", "minLength": 2}, ["ab", "éé"], ["", "a", "é"]),
    "maxLength": ({"type": "string", "maxLength": 1}, ["", "é", "🙂"], ["ab"]),
    "pattern": ({"type": "string", "pattern": "^a+$"}, ["a", "aa"], ["", "b", "ab"]),
    "format": ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-2-1", "x"]),
    "$ref": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, [None], [1]),
    "$defs": ({"items": {"$ref": "#/$defs/a~1b"}, "$defs": {"a/b": {"type": "null"}}}, [[None]], [[1]]),
    "definitions": ({"$ref": "#/definitions/a", "definitions": {"a": {"type": "null"}}}, [None], [1]),
    "properties": ({"properties": {"a": {"type": "null"}}}, [{"a": None}, {}], [{"a": 1}]),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^a": {"type": "null"}}, "additionalProperties": False},
        [{"ab": None}, {}],
        [{"ab": 1}, {"b": None}],
    ),
    "additionalProperties": ({"type": "object", "additionalProperties": {"type": "null"}}, [{"x": None}], [{"x": 1}]),
    "items": ({"type": "array", "items": {"type": "null"}}, [[], [None]], [[1]]),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "null"}], "items": False}, [[None]], [[1], [None, 1]]),
    "additionalItems": (
        {"type": "array", "items": [{"type": "null"}], "additionalItems": False}, [[None]], [[1], [None, 1]],
    ),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, [5], [4, "a"]),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, [5, None], ["a"]),
    "oneOf": ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["a", None], [1]),
}  # fmt: skip

# What is written otherwise for the library.
REWRITTEN = [
    ({"type": "integer", "format": "int8"}, [127, -128], [128, -129]),
    ({"type": "integer", "format": "uint", "maximum": 7}, [0, 7], [-1, 8]),
    ({"type": "number", "format": "double"}, [0.5], ["a"]),
    ({"type": "string", "nullable": True}, ["a", None], [1]),
    ({"properties": {"a": {"enum": ["x"], "nullable": True}}}, [{"a": None}, {"a": "x"}], [{"a": 1}]),
    ({"type": "array", "uniqueItems": False}, [[1, 1]], ["a"]),
    (True, [1, "a", {}], []),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, [None], [1]),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}}, [{}, {"a": {"a": {}}}], [{"a": 1}]),
    ({"type": "array", "items": {"$ref": "#"}}, [[], [[], [[]]]], [[1]]),
    (
        {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]},
        [{"a": None}, {"a": {"a": None}}],
        [{}, {"a": {}}],
    ),
    ({"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, [None, {"a": None}], [{}]),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 1}, [[None]], [[]]),
    ({"$ref": "#/properties/a", "properties": {"a": {"type": "object"}}}, [{}], [1]),
    (
        {"type": "object", "nullable": True, "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        [None, {"a": None}, {"a": {"a": None}}],
        [{}, {"a": {}}, {"a": 1}],
    ),
    (  # references that lead through what is written otherwise
        {
            "nullable": True, "type": "object", "required": ["b"],
            "properties": {"b": {"$ref": "#/$defs/c/properties/i~1j/items"}},
            "$defs": {"c": {"nullable": True, "properties": {"i/j": {"type": "array", "items": {"type": "null"}}}}},
        },
        [None, {"b": None}],
        [{}, {"b": 1}, 5],
    ),
    (
        {"$ref": "#/$defs/n/$defs/m", "$defs": {"n": {"type": "integer", "format": "int8", "nullable": True,
                                                        "$defs": {"m": {"const": "a"}}}}},
        ["a"],
        ["b", 1, None],
    ),
]  # fmt: skip

REFUSED: list[tuple[Any, str]] = [
    *(({"items": {keyword: {}}}, keyword) for keyword in sorted(schema._INSTEAD)),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "string", "maxLenght": 1}, "maxLenght"),
    ({"type": "string", "contentEncoding": "base64"}, "contentEncoding"),
    ({"type": "string", "contentMediaType": "a/b"}, "contentMediaType"),
    ({"contentSchema": {}}, "contentSchema"),
    ({"extends": {}}, "extends"),
    ({"disallow": "integer"}, "disallow"),
    ({"type": "integer", "format": "date"}, "format 'date' of a integer"),
    ({"$ref": "http://example.com/a"}, "example.com"),
    ({"$ref": "#/default/a", "default": {"a": {"not": {}}}}, "#/default/a"),
    ({"$ref": "#/$defs/b"}, "#/$defs/b"),
    ({"$ref": "#"}, "$ref to '#', which leads back to itself"),
    ({"anyOf": [{"$ref": "#"}]}, "(at #/anyOf/0)"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "(at #/$defs/b)"),
    ({"properties": {"a": {"allOf": [{"$ref": "#/properties/a"}, {"type": "object"}]}}}, "(at #/properties/a/allOf/0)"),
    ({"oneOf": [{"$ref": "#"}, {"$ref": "#/oneOf/0"}]}, "(at #/oneOf/1)"),
    ({"type": "object", "properties": {"a/b": {"$ref": "#"}}, "required": ["a/b"]}, "(at #/properties/a~1b)"),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "(at #/items)"),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#"}], "minItems": 2}, "(at #/prefixItems/1)"),
    ({"properties": {"a": 1}}, "#/properties/a"),
    ({"properties": [1]}, "properties, which must be an object"),
    ({"required": "a"}, "required, which must be a list"),
    ({"format": {}}, "format, which must be a text"),
    ({"enum": 3}, "enum, which must be a list"),
    ({"anyOf": {}}, "anyOf, which must be a list"),
    ({"anyOf": [{"type": "null"}, {"properties": {"q": {"not": {}}}}]}, "#/anyOf/1/properties/q"),
    ({"x-guidance": {"lenient": True}, "contains": {}}, "x-guidance"),
]


def allows(given: Any, value: Any) -> bool:
    matcher = LLMatcher(TOKENS, Grammar.json_schema(given).source, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    assert not matcher.get_grammar_warnings()
    ids = TOKENS.tokenize_str(json.dumps(value, ensure_ascii=False))
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def test_every_keyword_is_tried() -> None:
    assert set(ENFORCED) == schema.ENFORCED


@pytest.mark.parametrize("keyword", sorted(ENFORCED))
def test_enforced(keyword: str) -> None:
    given, right, wrong = ENFORCED[keyword]
    assert [allows(given, value) for value in right] == [True] * len(right)
    assert [allows(given, value) for value in wrong] == [False] * len(wrong)
    nested = {"type": "object", "properties": {"k": given}, "required": ["k"]}
    if "$ref" not in json.dumps(given):
        assert allows(nested, {"k": right[0]}) and not allows(nested, {"k": wrong[0]})


@pytest.mark.parametrize("given, right, wrong", REWRITTEN)
def test_written_otherwise(given: Any, right: list[Any], wrong: list[Any]) -> None:
    assert [allows(given, value) for value in right] == [True] * len(right)
    assert [allows(given, value) for value in wrong] == [False] * len(wrong)


@pytest.mark.parametrize("keyword", sorted(schema.HARMLESS - {"$schema"}))
def test_harmless(keyword: str) -> None:
    assert allows({"type": "null", keyword: {"not": 1}, "x-anything": 2}, None)
    assert not allows({"type": "null", keyword: "text"}, 1)


@pytest.mark.parametrize("given, named", REFUSED)
def test_refused_by_name(given: Any, named: str) -> None:
    with pytest.raises(UsageError, match="cannot be enforced") as caught:
        Grammar.json_schema(given)
    assert named in str(caught.value)


def test_long_chains_of_references_are_followed_at_once() -> None:
    """To the end of a chain, and around one that has none."""
    count = 4000
    chain: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)}
    whole = {"$ref": "#/$defs/d0", "$defs": chain | {f"d{count}": {"type": "null"}}}
    assert schema.enforceable(whole) == whole
    with pytest.raises(UsageError, match=f"leads back to itself.*and {count + 2 - 8} more"):
        schema.enforceable({"$ref": "#/$defs/d0", "$defs": chain | {f"d{count}": {"$ref": "#"}}})


def test_all_reasons_are_listed_and_bounded() -> None:
    with pytest.raises(UsageError) as caught:
        Grammar.json_schema({"properties": {f"p{n}": {"not": {}, "if": {}} for n in range(30)}})
    assert "not: " in str(caught.value) and "if: " in str(caught.value) and "and 52 more" in str(caught.value)


def test_what_is_too_large_or_no_schema() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"items": deep}
    for wrong, reason in (
        (deep, "deeper than 64"),
        ({"enum": list(range(30_000))}, "larger than"),
        ({"description": "x" * 300_000}, "larger than"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("3", "an object, not int"),
        ([], "an object, not list"),
        ({"const": float("nan")}, "no JSON"),
        ({"const": {1, 2}}, "no JSON"),
        ('{"const": "\\ud800"', "no JSON"),
    ):
        with pytest.raises(UsageError, match=reason):
            Grammar.json_schema(wrong)
    while deep:  # Python's own end of so deep a dict is recursive
        deep = deep["items"]


def test_spaces_are_bounded() -> None:
    given = {"type": "object", "properties": {"a": {"type": "integer"}}}
    matcher = LLMatcher(TOKENS, Grammar.json_schema(given).source, log_level=0)

    def fits(text: str) -> bool:
        matcher.reset()
        ids = TOKENS.tokenize_str(text)
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())

    assert all(fits(json.dumps({"a": 1, "b": [1, {}]}, indent=indent)) for indent in (None, 2, 4, "\t"))
    assert fits('{"a":1}') and not fits('{  "a":1}') and not fits('{\n\n"a":1}') and not fits(' {"a":1}')


def test_long_names_above_many_parts() -> None:
    """The places of parts are held: a long name must not be held for each of them."""
    with pytest.raises(UsageError, match="below long names"):
        schema.enforceable({"type": "object", "properties": {"k" * 100_000: {"anyOf": [{"type": "null"}] * 6000}}})
