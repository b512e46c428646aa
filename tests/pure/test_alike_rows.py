"""Batch-invariant linears on GPUs: for many tokens the same is launched as for few, in wider tiles."""

from __future__ import annotations

import pytest

from isobit.formats.schemes import SCHEMES
from isobit.kernels.gpu import alike_tiles, selection
from isobit.kernels.gpu.configure import Call, configure
from isobit.kernels.gpu.fits import Matrix
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.rows import VARIANTS
from isobit.kernels.gpu.tiles import FEW
from isobit.targets.table import TARGETS

SIZES = ("BLOCK_N", "BLOCK_M", "SWIZZLE")  # of which the order of sums does not depend
GPUS = [name for name, target in TARGETS.items() if target.backend is not None]


@pytest.mark.parametrize("name", GPUS)
def test_sums_have_one_order_for_any_number_of_tokens(name: str) -> None:
    target, seen = TARGETS[name], 0
    machine = Machine.imagined(target)
    for row in SCHEMES.values():
        if selection.unsupported(row.weights, row.activations):
            continue
        for n, k in ((4096, 4096), (22016, 4096), (4096, 11008), (1000, 1280)):
            matrix = Matrix(n, k, row.weights)
            picked, _ = selection.pick(row.weights, row.activations, "float16", FEW, target, matrix)
            if picked is None:
                continue
            assert not picked.library and not picked.widen, "its sums are not isobit's, or have another order"
            known = []
            for tokens in (1, 8, 9, 16, 17, 300, 5000):
                size = alike_tiles.size_class(tokens, target)
                config = configure(picked, Call(matrix, "float16", size, alike=True), machine)
                constants = {key: value for key, value in config.constexprs.items() if key not in SIZES}
                known.append((constants, dict(config.signature)))
            assert all(one == known[0] for one in known), (row.name, n, k)
            seen += 1
    assert seen > 10


def test_more_tokens_have_wider_tiles_where_they_were_compared() -> None:
    machine, matrix = Machine.imagined(TARGETS["sm_90"]), Matrix(4096, 4096, SCHEMES["fp8"].weights)
    row, _ = selection.pick(SCHEMES["fp8"].weights, SCHEMES["fp8"].activations, "bfloat16", FEW, machine.target, matrix)
    assert row is not None
    sizes = alike_tiles.sizes(machine.target)
    found = [configure(row, Call(matrix, "bfloat16", size, alike=True), machine).constexprs for size in sizes]
    assert [one["BLOCK_M"] for one in found] == [16, 16, 64, 128]
    assert {one["IMPRECISE"] for one in found} == {128}, "one token in float8, too: float16 has other bits"
    assert [alike_tiles.size_class(tokens, machine.target) for tokens in (1, 8, 9, 16, 17, 64, 65, 9999)] == [
        sizes[at] for at in (0, 0, 1, 1, 2, 2, 3, 3)
    ]  # fmt: skip


def test_integers_need_no_order() -> None:
    exact = {row.name for row in VARIANTS if alike_tiles.exact(row)}
    usual = {"vector-int8-dp4a", "few-int8-native", "many-int8-native", "large-int8-native-tma"}
    assert exact == usual | {"experts-int8-native"}
