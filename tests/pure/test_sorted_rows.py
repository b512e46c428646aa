"""Linears of experts whose tokens lie sorted: where they run, which weights they take, what they are compiled with."""

from __future__ import annotations

import pytest

from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels.gpu.compile.request import block_of, specialize
from isobit.kernels.gpu.configure import Call, configure, finishes
from isobit.kernels.gpu.fits import Matrix, misfit
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rows import VARIANTS
from isobit.kernels.gpu.selection import candidates, pick, sizes
from isobit.kernels.gpu.sorted_tiles import GATES, WIDTH
from isobit.kernels.gpu.variant import Variant
from isobit.targets.table import TARGETS

ROWS = [row for row in VARIANTS if row.of_experts]
SM_90 = TARGETS["sm_90"]
FP8, TOKENS = WeightSpec("e4m3fn", "channel"), ActSpec("e4m3fn", "token")
MATRIX = Matrix(8 * 4096, 4096, FP8)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_they_run_on_one_target(row: Variant) -> None:
    assert [name for name, target in TARGETS.items() if row.requires(target) is None] == ["sm_90"]


def test_they_are_for_experts_alone_and_for_more_tokens_than_a_tile_has() -> None:
    assert len(ROWS) == 5
    for tokens in (WIDTH, WIDTH + 1, 8192):
        row, refused = pick(FP8, TOKENS, "bfloat16", tokens, SM_90, MATRIX, experts=True)
        assert row is not None and row.of_experts == (tokens > WIDTH), tokens
        plain, others = pick(FP8, TOKENS, "bfloat16", tokens, SM_90, MATRIX)
        assert plain is not None and not plain.of_experts
        assert not [one.name for one, _ in (*refused, *others) if one.of_experts]
        assert not [one for one in candidates(FP8, TOKENS, "bfloat16", tokens, SM_90) if one.of_experts]
    assert WIDTH + 1 not in sizes(), "no number of tokens of other linears at which something changes"


@pytest.mark.parametrize("target", ["sm_86", "sm_100"])
def test_elsewhere_experts_stay_as_they_are(target: str) -> None:
    row, _ = pick(FP8, TOKENS, "bfloat16", 8192, TARGETS[target], MATRIX, experts=True)
    assert row is not None and row.way == "matrix"


@pytest.mark.parametrize(
    ("matrix", "why"),
    [(Matrix(4096, 4104, FP8), "K = 4104"), (Matrix(4096, 4096, FP8, aligned=False), "begin")],
)
def test_what_they_do_not_take_has_a_reason_and_another_row(matrix: Matrix, why: str) -> None:
    row = next(row for row in ROWS if row.weights == "e4m3fn")
    assert why in (misfit(row, matrix, SM_90) or "")
    other, _ = pick(FP8, TOKENS, "bfloat16", 8192, SM_90, matrix, experts=True)
    assert other is not None and other.way == "matrix"
    assert misfit(row, Matrix(100, 4096, FP8), SM_90) is None, "results are stored by threads, at any place"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_inputs_of_tokens_leave_sorted_and_sorted_ones_by_pairs(row: Variant) -> None:
    spec = None if row.weights == "float" else WeightSpec(str(row.weights), "channel")
    dtype, matrix, machine = row.dtypes[0], Matrix(8 * 4096, 4096, spec), Machine.imagined(SM_90)
    first = configure(row, Call(matrix, dtype, WIDTH + 1, after="silu", experts=8, share=2), machine)
    last = configure(row, Call(matrix, dtype, WIDTH + 1, "float32", experts=8), machine)
    assert (first.constexprs["SORTED"], first.constexprs["SHARE"], first.constexprs["AFTER"]) == (True, 2, "silu")
    assert (last.constexprs["SORTED"], last.constexprs["SHARE"], last.signature["y"]) == (False, 0, "*fp32")
    for config in (first, last):
        request = specialize(row.entry, config, SM_90, ("x", "w", "scale", "N"))
        held = 0
        for name in ("x", "w"):
            block = block_of(request.signature[name])
            assert block is not None
            held += {"fp8e4nv": 1, "fp8e5": 1, "i8": 1}.get(block[0], 2) * block[1][0] * block[1][1]
        assert int(config.constexprs["DEPTH"] or 0) * held + (32 << 10) <= SM_90.shared_memory
        assert config.constexprs["PROMOTE"] == (row.weights in ("e4m3fn", "e5m2")), "whose unit rounds its sums"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_they_apply_gates_and_nothing_else(row: Variant) -> None:
    assert [after for after in ("", "add", "relu2", "only-relu2", *GATES) if finishes(row, after, SM_90)] == [
        "",
        *GATES,
    ]
