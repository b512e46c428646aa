"""Linears whose tiles TMA copies: where they run, which weights they take, what they are compiled with. Pure."""

from __future__ import annotations

import pytest

from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels.gpu.compile.request import block_of, specialize
from isobit.kernels.gpu.configure import Call, configure, finishes
from isobit.kernels.gpu.fits import Matrix, misfit
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rows import VARIANTS, variant
from isobit.kernels.gpu.selection import not_of_experts, pick
from isobit.kernels.gpu.tiles import LARGE
from isobit.kernels.gpu.variant import Variant
from isobit.targets.table import TARGETS

ROWS = [row for row in VARIANTS if row.way == "tma"]
SM_90 = TARGETS["sm_90"]
CHANNELS, TOKENS = WeightSpec("int8", "channel"), ActSpec("int8", "token")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_they_run_on_one_target(row: Variant) -> None:
    assert [name for name, target in TARGETS.items() if row.requires(target) is None] == ["sm_90"]


@pytest.mark.parametrize("target", ["sm_86", "sm_90", "sm_100"])
def test_they_are_chosen_for_very_many_tokens_there(target: str) -> None:
    matrix = Matrix(4096, 4096, CHANNELS)
    for tokens, wanted in ((LARGE - 1, False), (LARGE, target == "sm_90"), (8192, target == "sm_90")):
        row, _ = pick(CHANNELS, TOKENS, "bfloat16", tokens, TARGETS[target], matrix)
        assert row is not None and (row.way == "tma") == wanted, (tokens, row.name)


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
@pytest.mark.parametrize("out", ["bfloat16", "float32"])
def test_ring_and_results_fit_the_shared_memory(row: Variant, out: str) -> None:
    call = Call(Matrix(4096, 4096, CHANNELS), "bfloat16", 8192, out_dtype=out)
    config = configure(row, call, Machine.imagined(SM_90))
    request = specialize(row.entry, config, SM_90, ("x", "w", "scale", "N"))
    assert request.aligned == ("N", "scale"), "descriptors say themselves what is aligned"
    sizes, held = {"i8": 1, "fp16": 2, "bf16": 2, "fp32": 4}, 1024
    for name, times in (("x", config.num_stages), ("w", config.num_stages), ("y", 1)):
        block = block_of(request.signature[name])
        assert block is not None and block[1] == tuple(config.constexprs[one] for one in config.copied[name])
        held += times * sizes[block[0]] * block[1][0] * block[1][1]
        assert name != "y" or block[0] == {"bfloat16": "bf16", "float32": "fp32"}[out]
    assert config.resident * held <= 228 << 10
    assert config.constexprs["BLOCK_N"] in (times * int(config.constexprs["BLOCK_Y"] or 0) for times in (1, 2, 4))


def test_other_types_are_no_descriptors() -> None:
    assert block_of("*fp16") is None and block_of("i32") is None
    assert block_of("tensordesc<fp16[128,64]>") == ("fp16", (128, 64))
    assert block_of("tensordesc<i8[128,128],NVMMASharedLayout(128, 8, 2)>") == ("i8", (128, 128))
    assert block_of("tensordesc<i8[128,128],anything>") is None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_they_finish_all_but_gates_and_run_no_experts(row: Variant) -> None:
    done = [after for after in ("", "add", "silu", "only-relu2") if finishes(row, after, SM_90)]
    assert done == ["", "add", "only-relu2"]
    assert "side by side" in (not_of_experts(row) or "")
