"""Which module gets which scheme."""

from __future__ import annotations

import pytest

from isobit.errors import SchemeError
from isobit.formats.rules import Policy, Rule, parse_rule
from isobit.formats.schemes import SCHEMES

KINDS = ("linear", "lm_head", "embedding", "router", "norm", "other")


def test_only_linears_are_quantized_by_default() -> None:
    policy = Policy(SCHEMES["fp8"])
    assert [policy.scheme_for("m", kind) for kind in KINDS] == [SCHEMES["fp8"], None, None, None, None, None]


def test_a_rule_reaches_kept_kinds_but_never_vectors() -> None:
    policy = Policy(SCHEMES["fp8"], (Rule(".*", "int8"),))
    found = [policy.scheme_for("m", kind) for kind in KINDS]
    assert found == [SCHEMES["int8"]] * 4 + [None, None]


def test_the_first_matching_rule_wins() -> None:
    rules = (Rule(r"layers\.0\.", "keep"), Rule("down_proj$", "W8A16"), Rule("lm_head", "int8"))
    policy = Policy(SCHEMES["int4"], rules)
    assert policy.scheme_for("model.layers.0.mlp.down_proj", "linear") is None
    assert policy.scheme_for("model.layers.10.mlp.down_proj", "linear") is SCHEMES["int8-w8a16"]
    assert policy.scheme_for("model.layers.1.mlp.down_proj_extra", "linear") is SCHEMES["int4"]
    assert policy.scheme_for("lm_head", "lm_head") is SCHEMES["int8"]
    assert policy.scheme_for("model.embed_tokens", "embedding") is None


def test_patterns_are_searched_and_can_be_anchored() -> None:
    assert Rule("mlp", "keep").matches("model.layers.3.mlp.up_proj")
    assert not Rule("^mlp", "keep").matches("model.layers.3.mlp.up_proj")


def test_bad_rules_are_refused() -> None:
    with pytest.raises(SchemeError, match="not a regular expression"):
        Rule("(", "keep")
    with pytest.raises(SchemeError, match="unknown scheme"):
        Rule("x", "int9")


def test_rules_from_text() -> None:
    assert parse_rule("lm_head=int8") == Rule("lm_head", "int8")
    assert parse_rule("(?=a)b=keep").pattern == "(?=a)b"
    assert parse_rule("x=KEEP").scheme is None
    for bad in ("lm_head", "=int8", "lm_head=", ""):
        with pytest.raises(SchemeError, match="PATTERN=SCHEME"):
            parse_rule(bad)
