"""Linears whose tiles TMA copies: where they run, which weights they take, what they are compiled with. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels.gpu import alike_tiles
from isobit.kernels.gpu.compile.request import block_of, specialize
from isobit.kernels.gpu.configure import Call, configure, finishes
from isobit.kernels.gpu.fits import Matrix, misfit
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rows import VARIANTS, variant
from isobit.kernels.gpu.selection import not_of_experts, pick
from isobit.kernels.gpu.tiles import FEW, LARGE
from isobit.kernels.gpu.variant import HALVES, Variant
from isobit.targets.table import TARGETS

ROWS = [row for row in VARIANTS if row.way == "tma"]
SM_90 = TARGETS["sm_90"]
CHANNELS, TOKENS = WeightSpec("int8", "channel"), ActSpec("int8", "token")
WIDENED = [row for row in ROWS if row.widen is not None]
GROUPS = WeightSpec("int4", "group", 128)
FORMATS = (*(WeightSpec(element, "channel") for element in ("e4m3fn", "e5m2", "int8")), GROUPS)


def spec_of(row: Variant) -> WeightSpec:
    return next(one for one in FORMATS if one.element == row.weights)


def constants_of(row: Variant, dtype: str = "float16", **call: Any) -> dict[str, Any]:
    call = {"tokens": 8192, **call}
    return dict(
        configure(row, Call(Matrix(4096, 4096, spec_of(row)), dtype, **call), Machine.imagined(SM_90)).constexprs
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_they_run_on_one_target(row: Variant) -> None:
    assert [name for name, target in TARGETS.items() if row.requires(target) is None] == ["sm_90"]


@pytest.mark.parametrize("target", ["sm_86", "sm_90", "sm_100"])
def test_they_are_chosen_for_very_many_tokens_there(target: str) -> None:
    matrix = Matrix(4096, 4096, CHANNELS)
    for tokens, wanted in ((LARGE - 1, False), (LARGE, target == "sm_90"), (8192, target == "sm_90")):
        row, _ = pick(CHANNELS, TOKENS, "bfloat16", tokens, TARGETS[target], matrix)
        assert row is not None and (row.way == "tma") == wanted, (tokens, row.name)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("spec", FORMATS, ids=lambda spec: spec.element)
def test_weights_that_are_widened_go_there_and_back_to_the_rows_that_were_there(spec: WeightSpec, dtype: str) -> None:
    for tokens, target, by_tma in ((LARGE - 1, "sm_90", False), (LARGE, "sm_90", True), (LARGE, "sm_100", False)):
        row, _ = pick(spec, None, dtype, tokens, TARGETS[target], Matrix(4096, 4096, spec))
        assert row is not None and (row.way == "tma") == by_tma, (tokens, row.name)
    taken, _ = pick(spec, None, dtype, LARGE, SM_90, Matrix(4096, 4096, spec, aligned=False))
    assert taken is not None and taken.way == "tma" and taken.widen is not None, "the workspace is aligned"
    for n, k, why in ((4100, 4096, "N = 4100"), (4096, 4100, "K = 4100")):
        if spec is GROUPS and k == 4100:
            continue  # which no kernel takes: its units are 64 codes and more
        matrix = Matrix(n, k, spec)
        other, refused = pick(spec, None, dtype, LARGE, SM_90, matrix)
        assert other is not None and other.way == "matrix"
        assert any(row is taken and why in reason for row, reason in refused)
    if spec is not GROUPS:
        assert misfit(taken, Matrix(4096, 4104, spec), SM_90) is None, "16 bytes are 8 numbers"


def test_they_differ_from_the_rows_behind_them_in_how_they_multiply() -> None:
    assert len(WIDENED) == 8 and all(row.optional for row in ROWS)
    for row in WIDENED:
        behind = variant(row.name.removesuffix("-tma"))
        same = ("family", "weights", "granularity", "activations", "compute", "operand", "tokens", "dtypes", "layout",
                "widen", "narrow")  # fmt: skip
        assert behind.way == "matrix" and row.rank < behind.rank
        assert [getattr(row, name) for name in same] == [getattr(behind, name) for name in same]
        theirs, ours = constants_of(behind), constants_of(row)
        assert ours["HAS_TOKEN_SCALE"] == theirs["HAS_TOKEN_SCALE"] == (row.narrow is not None)
        assert theirs["HAS_SCALE"], "this kernel has always one"


def test_the_next_kernel_does_not_start_while_the_workspace_is_read() -> None:
    assert {constants_of(row)["OVERLAP"] for row in WIDENED} == {-1}
    assert {constants_of(row)["OVERLAP"] for row in ROWS if row.widen is None} == {True}


def test_plain_weights_and_batch_invariant_models_keep_what_they_have() -> None:
    for dtype in HALVES:
        row, _ = pick(None, None, dtype, 8192, SM_90, Matrix(4096, 4096, None))
        assert row is not None and row.library
    assert [row.name for row in ROWS if alike_tiles.exact(row)] == ["large-int8-native-tma"]
    assert all(row.tokens[0] > FEW for row in ROWS), "such a model has the rows of a few tokens for all"


@pytest.mark.parametrize(
    ("matrix", "why"),
    [
        (Matrix(4096, 4104, CHANNELS), "K = 4104"),
        (Matrix(4100, 4096, CHANNELS), "N = 4100"),
        (Matrix(4096, 4096, CHANNELS, aligned=False), "begin"),
    ],
)
def test_what_they_do_not_take_has_a_reason_and_another_row(matrix: Matrix, why: str) -> None:
    row = variant("large-int8-native-tma")
    found = misfit(row, matrix, SM_90)
    assert found is not None and why in found
    other, refused = pick(matrix.spec, TOKENS, "bfloat16", 8192, SM_90, matrix)
    assert other is not None and other.way == "matrix"
    assert (row.name, found) in [(row.name, reason) for row, reason in refused]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("after", ["", "add"])
@pytest.mark.parametrize("out", ["float16", "bfloat16", "float32"])
def test_ring_and_results_fit_the_shared_memory(row: Variant, out: str, after: str) -> None:
    call = Call(Matrix(4096, 4096, spec_of(row)), row.dtypes[0], 8192, out_dtype=out, after=after)
    config = configure(row, call, Machine.imagined(SM_90))
    request = specialize(row.entry, config, SM_90, ("x", "w", "scale", "N"))
    assert request.aligned == ("N", "scale"), "descriptors say themselves what is aligned"
    sizes, held = {"i8": 1, "fp16": 2, "bf16": 2, "fp32": 4}, 1024
    for name, times in (("x", config.num_stages), ("w", config.num_stages), ("y", 1)):
        block = block_of(request.signature[name])
        assert block is not None and block[1] == tuple(config.constexprs[one] for one in config.copied[name])
        if name == "y" and after == "add":
            times = 2  # the residual lies beside it
        held += times * sizes[block[0]] * block[1][0] * block[1][1]
        assert name != "y" or block[0] == {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[out]
    several = 1 if (after, out) == ("add", "float32") else config.resident  # of int8, too, one then
    assert several * held <= 228 << 10
    assert config.constexprs["BLOCK_N"] in (times * int(config.constexprs["BLOCK_Y"] or 0) for times in (1, 2, 4))


def test_other_types_are_no_descriptors() -> None:
    assert block_of("*fp16") is None and block_of("i32") is None
    assert block_of("tensordesc<fp16[128,64]>") == ("fp16", (128, 64))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_they_finish_all_but_gates_and_run_no_experts(row: Variant) -> None:
    done = [after for after in ("", "add", "silu", "only-relu2") if finishes(row, after, SM_90)]
    assert done == ["", "add", "only-relu2"]
    assert "side by side" in (not_of_experts(row) or "")
