"""The rules: what is proved exact, what the traps give, and that a new GPU or format is one row."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest

from isobit.formats.schemes import SCHEMES, ActSpec, Scheme, WeightSpec, scheme
from isobit.formats.spec import Element
from isobit.formats.table import ELEMENTS
from isobit.legalize import exact
from isobit.legalize.ops import Decision, Lowering, Op, Refusal
from isobit.legalize.planner import decide, nearest, sample_ops, under, verify
from isobit.legalize.rules import RULES
from isobit.targets.spec import MatrixUnit
from isobit.targets.table import TARGETS


def linear(name: str, target: str, **options: bool) -> Decision:
    row = TARGETS[target]
    return decide(sample_ops(scheme(name), row)[0], row, **options)


# ---------------------------------------------------------------------- proofs


@pytest.mark.parametrize("name", ELEMENTS)
def test_widening_agrees_with_a_direct_check_of_every_code(name: str) -> None:
    """float16 and bfloat16 by their definition: 11 and 8 significant bits, and their exponents."""
    for target, significant, low, high in (("float16", 11, -24, 16), ("bfloat16", 8, -133, 128)):
        fits = True
        for value in ELEMENTS[name].values:
            if math.isfinite(value) and value:
                fraction, exponent = math.frexp(abs(value))
                lowest = max(exponent - significant, low)
                fits = fits and exponent <= high and math.ldexp(fraction, exponent - lowest).is_integer()
        assert (exact.widen(name, target) is not None) == fits


@pytest.mark.parametrize("code", ["e2m1", "e4m3fn"])
@pytest.mark.parametrize("scale", ["e8m0", "e4m3fn"])
def test_codes_times_scales_agree_with_a_direct_check_of_every_product(code: str, scale: str) -> None:
    codes, scales = ({abs(v) for v in ELEMENTS[name].values if math.isfinite(v) and v} for name in (code, scale))
    products = {Fraction(a) * Fraction(b) for a in codes for b in scales}
    normal = [product for product in products if Fraction(2) ** -126 <= product < Fraction(2) ** 128]
    for target, significant, smallest, beyond in (("float16", 11, -24, 16), ("bfloat16", 8, -133, 128)):
        fits = all(
            product < Fraction(2) ** beyond
            and (product / Fraction(2) ** smallest).denominator == 1
            and odd_part(product) < 2**significant
            for product in normal
        )
        assert (exact.widen(code, target, scales=scale) is not None) == fits
    assert exact.widen(code, "int8", scales=scale) is None


def odd_part(number: Fraction) -> int:
    """A number without its powers of two."""
    whole = number.numerator
    return whole // (whole & -whole)


def test_what_16_bits_hold_of_few_bit_scales() -> None:
    assert exact.widen("e2m1", "float16", scales="e4m3fn") and exact.widen("e2m1", "bfloat16", scales="e4m3fn")
    assert exact.widen("e2m1", "bfloat16", scales="e8m0") and exact.widen("e4m3fn", "bfloat16", scales="e8m0")
    assert not exact.widen("e2m1", "float16", scales="e8m0")
    held = exact.widen("e2m1", "float16", scales="e4m3fn")
    assert held is not None and not held.needs_subnormals


@pytest.mark.parametrize("target", ["sm_100", "sm_103", "sm_110", "sm_120", "sm_121", "gfx950"])
@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "nvfp4"])
def test_block_scaled_units_take_few_bit_scales_as_they_are_and_that_is_said(name: str, target: str) -> None:
    answer = linear(name, target)
    if (name, target) == ("nvfp4", "gfx950"):
        assert isinstance(answer, Lowering) and answer.action == "legalized"
        return
    assert isinstance(answer, Lowering) and answer.action == "native" and answer.sizes[-1][1] == f"many-{name}-native"
    assert any("not measured on a card" in note for note in answer.notes)
    assert ("sums moved to f32" in answer.how) == target.startswith("sm_12")
    kept = linear(f"{name}-w16", target)
    assert isinstance(kept, Lowering) and kept.action == "legalized"
    assert all("by integer decoding" in one.decode for one in (answer, kept))


def test_few_bit_scales_without_bfloat16() -> None:
    nv = linear("nvfp4", "sm_75")
    assert isinstance(nv, Lowering) and nv.kernels == ("few-nvfp4-f16", "many-nvfp4-f16")
    mx = linear("mxfp4", "sm_75")
    assert isinstance(mx, Refusal) and any("float16 ends at 65504" in reason for reason in mx.reasons)


def test_known_proofs() -> None:
    assert exact.widen("bfloat16", "float16") is None and exact.widen("float16", "bfloat16") is None
    assert exact.widen("e8m0", "float16") is None
    assert exact.widen("e4m3fn", "e5m2") is None and exact.widen("int8", "e4m3fn") is None
    mapped = exact.widen("e4m3fn", "e4m3fnuz")
    assert mapped is not None and mapped.exponent == -1
    for code in range(0x80):  # the same bits mean half the value
        value = ELEMENTS["e4m3fn"].decode(code)
        assert math.isnan(value) or ELEMENTS["e4m3fnuz"].decode(code) == value / 2
    doubled = exact.widen("e2m1", "int8")
    assert doubled is not None and doubled.exponent == 1


def test_zero_points_widen_the_range() -> None:
    assert exact.widen("uint4", "int4") is None
    assert exact.widen("uint4", "int8", zero_points=True) is not None
    assert exact.widen("int8", "int8", zero_points=True) is None


def test_subnormals_are_noticed() -> None:
    for name, target, needs in (("e5m2", "float16", True), ("e4m3fn", "float16", False), ("e5m2", "bfloat16", False)):
        proof = exact.widen(name, target)
        assert proof is not None and proof.needs_subnormals == needs


# ---------------------------------------------------------------------- the traps


def test_fp8_on_ampere_is_widened_with_its_rounding_kept() -> None:
    for name, text in (("fp8", "e4m3 -> f16"), ("fp8-e5m2", "e5m2 -> f16")):
        answer = linear(name, "sm_86")
        assert isinstance(answer, Lowering) and answer.action == "legalized"
        assert text in answer.how and "activations rounded to" in answer.how and answer.instruction == "HMMA"
        assert answer.rounds == (SCHEMES[name].weights, SCHEMES[name].activations)


def test_e5m2_runs_natively_on_hopper_though_libraries_refuse_it() -> None:
    answer = linear("fp8-e5m2", "sm_90")
    assert isinstance(answer, Lowering) and answer.action == "native" and answer.instruction == "QGMMA"
    assert any("refuse e5m2 x e5m2" in note for note in answer.notes)


def test_fast_accumulation_is_not_used() -> None:
    for target in ("sm_89", "sm_90", "sm_120"):
        answer = linear("fp8", target)
        assert isinstance(answer, Lowering) and "sums moved to f32 every 128" in answer.how


def test_fnuz_units_are_not_taken_for_e4m3() -> None:
    answer = linear("fp8", "gfx942")
    assert isinstance(answer, Lowering) and answer.action == "legalized" and answer.compute == "float16"
    assert any("e4m3fnuz" in note for note in answer.notes)


@pytest.mark.parametrize("scheme", ["fp8", "fp8-static", "fp8-block", "fp8-e5m2"])
def test_units_that_flush_subnormals_are_not_given_what_needs_them(scheme: str) -> None:
    answer = linear(scheme, "gfx90a")
    assert isinstance(answer, Lowering) and answer.compute == "bfloat16"
    assert all("bf16" in name for name in answer.kernels)
    other = linear(scheme, "sm_86")
    assert isinstance(other, Lowering) and other.compute == "float16"


def test_what_changes_with_very_many_tokens_stands_in_the_plan() -> None:
    widened, native = linear("int4", "sm_86"), linear("fp8", "sm_90")
    assert isinstance(widened, Lowering) and isinstance(native, Lowering)
    assert widened.workspace == 2 * 15360 * 15360 and native.workspace == 0
    assert any("widened once per call" in note and "2**-41" in note for note in widened.notes)
    assert any("PyTorch's own product" in note for note in native.notes)


@pytest.mark.parametrize("target", ["sm_100", "sm_103", "sm_110", "sm_120", "sm_121"])
def test_int8_and_block_scales_on_blackwell_are_native(target: str) -> None:
    assert linear("int8", target).action == "native"
    answer = linear("fp8-block", target)
    assert isinstance(answer, Lowering) and answer.action == "native"
    assert any("powers of two" in note for note in answer.notes)


def test_block_scales_on_ada_are_native() -> None:
    answer = linear("fp8-block", "sm_89")
    assert answer.action == "native" and isinstance(answer, Lowering) and answer.instruction == "QMMA"


def test_turing_and_bfloat16() -> None:
    answer = linear("bf16", "sm_75")
    assert isinstance(answer, Refusal) and nearest(SCHEMES["bf16"], [_op("bf16")], TARGETS["sm_75"]) == "f16"


def _op(name: str) -> Op:
    row = SCHEMES[name]
    return Op("linear", "linear", 4096, 4096, row.weights, row.activations, row.dtype or "bfloat16")


# ---------------------------------------------------------------------- the rules


def test_int4_by_int8_runs_in_integers_on_cpus_and_nowhere_else_yet() -> None:
    for name, row in TARGETS.items():
        answer = linear("w4a8", name)
        if row.is_gpu:
            assert isinstance(answer, Refusal)
            assert any("no GPU kernel multiplies int4 weights by rounded activations" in why for why in answer.reasons)
            assert nearest(scheme("w4a8"), sample_ops(scheme("w4a8"), row)[:1], row) == "int4"
        else:
            assert isinstance(answer, Lowering) and answer.rounds == sample_ops(scheme("w4a8"), row)[0].rounds
            assert answer.action == ("native" if row.matrix else "legalized")
            assert not answer.matrix or answer.compute == "int8"  # at whose rate it runs


def test_only_the_last_rule_moves_rounding_and_it_is_not_asked_unless_allowed() -> None:
    assert [rule.name for rule in RULES if rule.moves_rounding] == ["weight-only"]
    refused = linear("w4a8", "sm_86")
    assert isinstance(refused, Refusal)
    row, target = scheme("w4a8"), TARGETS["sm_86"]
    op = sample_ops(row, target)[0]
    allowed = decide(op, target, allow_relaxed=True)
    assert isinstance(allowed, Lowering) and allowed.action == "relaxed" and verify(op, allowed) == []
    assert allowed.rounds == (row.weights, None) and "activations not rounded" in allowed.how


def test_a_group_that_does_not_divide_is_refused_with_what_would() -> None:
    target, row = TARGETS["sm_86"], SCHEMES["int3"]
    op = replace(sample_ops(row, target)[0], k=4096)
    answer = decide(op, target)
    assert isinstance(answer, Refusal) and "4096 is not a multiple of the group size 40" in answer.reasons[0]
    assert nearest(row, [op], target) == "int3-g32"


def test_verify_finds_what_is_wrong() -> None:
    target = TARGETS["sm_86"]
    op = sample_ops(SCHEMES["fp8"], target)[0]
    good = decide(op, target)
    assert isinstance(good, Lowering) and verify(op, good) == []
    assert verify(op, replace(good, rounds=(op.weights, None)))
    assert verify(op, replace(good, action="native"))
    assert verify(op, Refusal(()))


# ---------------------------------------------------------------------- one row each


def test_a_new_gpu_is_one_row() -> None:
    unit = MatrixUnit("e4m3fn", "e4m3fn", "float32", "XMMA")
    new = replace(TARGETS["sm_86"], name="xpu_1", matrix=(*TARGETS["sm_86"].matrix, unit))
    fp8, e5m2 = (decide(sample_ops(SCHEMES[name], new)[0], new) for name in ("fp8", "fp8-e5m2"))
    assert isinstance(fp8, Lowering) and (fp8.action, fp8.instruction) == ("native", "XMMA")
    assert isinstance(e5m2, Lowering) and (e5m2.action, e5m2.instruction) == ("legalized", "HMMA")


def test_a_new_format_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ELEMENTS, "e3m2x", Element("e3m2x", "float", 6, 3, 2, 4, True, "finite"))
    row = Scheme("fp6x", WeightSpec("e3m2x", "channel"), ActSpec("e3m2x", "token"))
    proof = exact.widen("e3m2x", "e4m3fn")
    assert proof is not None and not proof.needs_subnormals
    cpu, gpu = TARGETS["cpu-avx2"], TARGETS["sm_90"]
    here = decide(sample_ops(row, cpu)[0], cpu)
    assert isinstance(here, Lowering) and here.action == "legalized" and here.kernels == ("reference",)
    there = decide(sample_ops(row, gpu)[0], gpu)
    assert isinstance(there, Refusal) and any("no GPU kernel has e3m2x weights" in reason for reason in there.reasons)
    assert nearest(row, [sample_ops(row, gpu)[0]], gpu) in SCHEMES


def test_under_a_plain_scheme_nothing_is_rounded() -> None:
    op = under(_op("fp8"), SCHEMES["f16"], TARGETS["sm_86"])
    assert (op.weights, op.activations, op.dtype, op.w) == (None, None, "float16", "float16")
