"""Patterns over module names: the same answers as `re`, in bounded time whatever the pattern."""

from __future__ import annotations

import random
import re

import pytest

from isobit.formats import patterns
from isobit.formats.patterns import PatternError, compiled, compiled_all

NAMES = [
    "lm_head", "model.embed_tokens", "model.norm", "", "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj",
    "model.layers.7.mlp.experts.113.down_proj", "model.layers.3.self_attn", "visual.blocks.0.attn.qkv", "A.b\n", "ab",
]  # fmt: skip
ORDINARY = [
    ".*", ".*q_proj", r".*self_attn\.(q|k|v)_proj$", "lm_head", r"model\.layers\.\d+\.mlp\.down_proj$",
    r"^(?!.*(lm_head|embed)).*", r".*layers\.(0|1|2|31)\..*", r".*mlp\.(gate|up|gate_up|down)_proj.*", r"(?i).*MLP.*",
    r"model\.layers\.([0-9]|1[0-5])\.", r".*(?<!shared_)experts.*", r".*\bmlp\b.*", r"[^.]+\.[^.]+$",
    ".*lm_head.*|.*embed.*",
    r".*layers\.[0-9]+\.mlp\.experts\.[0-9]+\..*_proj$", "model.visual.*", ".*block_sparse_moe.gate",
    r"(?P<a>model)\.norm\Z",
    r"(?:.*\.)?(?:q|k|v|o)_proj", r".*\.layers\.(?:[1-9]|[12][0-9]|3[01])\.(?:self_attn|mlp)\..*",
    r"(a|b)\1?", r"(.)b", r"A\.b$",
    r"(.*)\.(\d+)\.(.*)", ".*layers.*experts.*down.*proj",
]  # fmt: skip
EXPONENTIAL = [
    r"(a+)+$", r"(a*)*$", r"(a|a)*$", r"(a|aa)+$", r"(.*)*x$", r"(.*a){25}$", r"(\w+\.?)+$x", r"((a+)*)*b",
    r"(?:a?){40}a{40}b",
    r"([a-z]+)*\d", r"(.+)+(.+)+(.+)+y", r"(?=(a+)+b)a", r"(?!(a|aa)+$)b", ".*.*.*.*.*.*.*.*.*.*.*.*z", r"(x+x+)+y",
    r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(?i:(A+)+)$", r"(a{1,20}){1,20}b",
    "(a|aa)" * 40 + "b", "(?:a|ab|)" * 40 + "c", r"(?:a+|b+|ab)*c",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_patterns_match_as_re_does(text: str) -> None:
    for name in NAMES:
        assert compiled(text).found_in(name) == (re.match(text, name) is not None), name
        assert compiled(text, search=True).found_in(name) == (re.search(text, name) is not None), name


@pytest.mark.parametrize("text", EXPONENTIAL)
def test_exponential_patterns_end(text: str) -> None:
    """What would take `re` years on a long name; on a short one the two agree."""
    pattern, searched = compiled(text), compiled(text, search=True)
    for name in ("a" * 60, "a" * 60 + "!", "ab" * 40, "model." * 30, "x" * 5000):
        assert isinstance(pattern.found_in(name) or searched.found_in(name), bool)
    for name in ("", "a", "aa!", "abc", "aab", "xxy", "az", "y"):
        assert pattern.found_in(name) == (re.match(text, name) is not None), name
        assert searched.found_in(name) == (re.search(text, name) is not None), name


def random_pattern(source: random.Random, depth: int = 0) -> str:
    kinds = ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", "$", "^", r"\b"]
    pick = source.random()
    if depth > 3 or pick < 0.4:
        return source.choice(kinds)
    inner = random_pattern(source, depth + 1)
    if pick < 0.6:
        return inner + random_pattern(source, depth + 1)
    if pick < 0.7:
        return f"(?:{inner}|{random_pattern(source, depth + 1)})"
    if pick < 0.9:
        return f"(?:{inner}){source.choice(['*', '+', '?', '{2}', '{1,3}', '*?', '{2,}'])}"
    return f"(?{source.choice(['=', '!', 'i:'])}{inner})"


def test_the_automaton_agrees_with_re(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "LONGEST_NAME", -1)  # nothing goes to `re`
    source = random.Random(5)
    for _ in range(1500):
        text = random_pattern(source)
        for search in (False, True):
            pattern = patterns.Pattern(text, search=search)
            for name in ("", "a", "ab", "ba.1", "AB", "aab.b", "b\n"):
                right = re.search(text, name) if search else re.match(text, name)
                assert pattern.found_in(name) == (right is not None), (text, name, search)


def test_look_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "LONGEST_NAME", -1)
    for text in (r".*(?<!shared_)experts", r".*(?<=a)b", r"(?<=x)a", r"a(?<!b)c*(?<=c)$"):
        for name in ("shared_experts", "experts", "ab", "bb", "a", "accc", "acb"):
            assert patterns.Pattern(text, search=False).found_in(name) == (re.match(text, name) is not None)


@pytest.mark.parametrize(
    "text", ["(", "[", "*", "(?P<1>a)", "a" * 30_000, "(" * 5000 + ")" * 5000, "a{99999999999999999999}"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(PatternError):
        compiled(text)


@pytest.mark.parametrize("text", [r"(a+)+\1", r"((a|b)+)+?\2$", r"(?>(a+)+)b", "((a{200}){200})+", "(a{1,50}){1,20}b"])
def test_what_only_backtracking_could_do_is_refused(text: str) -> None:
    with pytest.raises(PatternError, match="write it more simply"):
        compiled(text)


def test_so_many_patterns_that_nobody_waits() -> None:
    assert len(compiled_all([rf"model\.layers\.{i}\." for i in range(2000)])) == 2000
    for texts in ([f"m{i}" for i in range(100_000)], [rf"(a+)+{i}$" for i in range(500)]):
        with pytest.raises(PatternError, match="write names instead"):
            compiled_all(texts)
    with pytest.raises(PatternError, match=r"'\(': not a regular expression"):
        compiled_all(["a", "("])
