"""Rules that do nothing, or of whose checkpoint other engines make garbage, are refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import write

import isobit
from isobit.checkpoint.reader import Checkpoint
from isobit.cli.main import main
from isobit.errors import SchemeError, UsageError

INSIST = "--allow-mixed-fused"
MIXED = [
    ("(k|v)_proj=fp8", "self_attn and 1 more: q_proj int8, k_proj fp8, v_proj fp8", "without a word"),
    ("q_proj=fp8", "q_proj fp8, k_proj int8, v_proj int8", "without a word"),
    ("up_proj=fp8", "model.layers.0.mlp and 1 more: gate_proj int8, up_proj fp8", "without a word"),
    ("gate_proj=keep", "gate_proj not quantized, up_proj int8", "refuses to load"),
    (
        r"layers\.1\.self_attn\.v_proj=int4-g32",
        "model.layers.1.self_attn: q_proj int8, k_proj int8, v_proj int4",
        "without",
    ),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "src")


def quantized(source: Path, *options: str) -> int:
    return main(["quantize", str(source), "--scheme", "int8", "--out", str(source.parent / "out"), "-q", *options])


@pytest.mark.parametrize(("rule", "names", "words"), MIXED)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_layers_that_engines_fuse_get_one_scheme(
    source: Path, rule: str, names: str, words: str, dry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantized(source, "--rule", rule, *dry) == 2
    error = capsys.readouterr().err
    assert names in error and words in error
    assert "rules for whole groups, for example '(" in error and INSIST in error and "allow_mixed_fused=True" in error
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize(("rule", "names", "words"), MIXED)
def test_who_insists_gets_them_and_is_told(
    source: Path, rule: str, names: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantized(source, "--rule", rule, INSIST, "--dry-run", "--json") == 0
    assert any(names in note and words in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert quantized(source, "--rule", rule, INSIST, "--json") == 0
    assert any(names in note and words in note for note in json.loads(capsys.readouterr().out)["notes"])
    read_back = Checkpoint.open(source.parent / "out").notes  # whoever loads, plans or describes it is told as well
    assert any(names in note and words in note for note in read_back)


@pytest.mark.parametrize(
    "rule", ["(q|k|v)_proj=fp8", "(gate|up)_proj=fp8", "mlp=int4-g32", "down_proj=keep", r"layers\.0\.=fp8"]
)
def test_rules_for_whole_groups_are_fine(source: Path, rule: str) -> None:
    assert quantized(source, "--rule", rule, "--dry-run") == 0
    assert not Checkpoint.open(source).notes


def test_from_python(source: Path) -> None:
    rules = [("up_proj", "fp8")]
    with pytest.raises(SchemeError, match="allow_mixed_fused=True"):
        isobit.quantize(source, source.parent / "out", "int8", rules=rules, progress=False)
    report = isobit.quantize(source, source.parent / "out", "int8", rules=rules, progress=False, allow_mixed_fused=True)
    assert any("vLLM fuses" in note for note in report.notes)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["norm=fp8"], r"rule 'norm': model\..*norm.* cannot be quantized"),
        (["input_layernorm=int4"], "cannot be quantized"),
        (["qproj=fp8"], "rule 'qproj' matches no module"),
        (["proj=fp8", "down_proj=int4-g32"], "'down_proj': an earlier rule takes every module"),
        (["norm=fp8", "qproj=keep"], "(?s)useless rules:.*'norm'.*'qproj'"),
        (["(a+)+\\1=fp8"], "write it more simply"),
    ],
)
def test_rules_that_do_nothing(source: Path, rules: list[str], message: str) -> None:
    pairs = [tuple(rule.rsplit("=", 1)) for rule in rules]
    with pytest.raises((UsageError, SchemeError), match=message):
        isobit.quantize(source, source.parent / "out", "int8", rules=pairs, progress=False)  # type: ignore[arg-type]
    assert not (source.parent / "out").exists()


def test_rules_that_do_something_besides_nothing(source: Path) -> None:
    several = (
        [("norm", "keep")], [("model", "fp8")], [("down_proj", "keep"), ("mlp", "keep")], [("(a+)+$|lm_head", "int8")],
    )  # fmt: skip
    for number, rules in enumerate(several):
        assert isobit.quantize(source, source.parent / f"out{number}", "int8", rules=rules, progress=False)
