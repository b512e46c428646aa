"""The rows of GPU kernels: each is chosen somewhere, none by its name."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from isobit.formats.schemes import SCHEMES, Scheme, WeightSpec
from isobit.kernels.gpu import selection
from isobit.kernels.gpu.fits import Matrix
from isobit.kernels.gpu.rows import VARIANTS
from isobit.kernels.gpu.sorted_tiles import WIDTH
from isobit.kernels.gpu.variant import FLOATS, Variant
from isobit.kernels.held import on_gpu
from isobit.targets.spec import Target
from isobit.targets.table import TARGETS

# As other tools' checkpoints can have them.
FURTHER = (
    Scheme("e5m2-w8a16", WeightSpec("e5m2", "channel")), Scheme("int8-g32", WeightSpec("int8", "group", 32)),
    Scheme("mxfp4-by-mxfp8", SCHEMES["mxfp4"].weights, SCHEMES["mxfp8"].activations),
)  # fmt: skip
# With and without matrix units, bfloat16, float8, PyTorch's products, block scales, and units that flush small numbers.
GENERATIONS = [TARGETS[name] for name in ("sm_75", "sm_86", "sm_90", "sm_120", "gfx90a")]
# A usual weight; K that no group of 16 words, or no word at all, divides; scales that do not fold; one that lies askew.
MATRICES = (
    Matrix(4096, 4096, None), Matrix(48, 4080, None), Matrix(48, 4098, None), Matrix(48, 4096, None, foldable=False),
    Matrix(48, 4096, None, aligned=False, bias=True),
)  # fmt: skip


def chosen(target: Target) -> dict[tuple[object, ...], Variant | None]:
    """What is taken for every scheme, dtype, class of tokens and kind of weight."""
    found: dict[tuple[object, ...], Variant | None] = {}
    for scheme in (*SCHEMES.values(), *FURTHER):
        weights, activations = on_gpu(scheme.weights, scheme.activations)
        if selection.unsupported(weights, activations):
            continue
        for dtype, tokens, matrix in itertools.product(FLOATS, selection.sizes(), MATRICES):
            own = replace(matrix, spec=weights)
            row, _ = selection.pick(weights, activations, dtype, tokens, target, own)
            found[scheme.name, dtype, tokens, matrix] = row
        for dtype, matrix in itertools.product(FLOATS, MATRICES):
            own = replace(matrix, spec=weights)
            row, _ = selection.pick(weights, activations, dtype, WIDTH + 1, target, own, experts=True)
            found[scheme.name, dtype, "experts", matrix] = row
    return found


def test_names_are_unique() -> None:
    assert len({row.name for row in VARIANTS}) == len(VARIANTS)


def test_every_row_is_chosen_somewhere_it_is_proved() -> None:
    taken = {(row.name, target.name) for target in GENERATIONS for row in chosen(target).values() if row is not None}
    products = [row for row in VARIANTS if row.way not in ("rounding", "prepare")]
    assert {row.name for row in products} - {name for name, _ in taken} == set()
    prepared = {part.name for row in products for part in (row.widen, row.narrow) if part is not None}
    assert {row.name for row in VARIANTS if row.way == "prepare"} == prepared


@pytest.mark.parametrize("name", ["sm_75", "sm_90"])
def test_a_name_decides_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = chosen(TARGETS[name])
    other = {row.name: replace(row, name=f"kernel {place}") for place, row in enumerate(VARIANTS)}
    monkeypatch.setattr(selection, "VARIANTS", tuple(other.values()))
    after = chosen(TARGETS[name])
    assert after == {key: None if row is None else other[row.name] for key, row in before.items()}


def test_an_invented_kernel_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that ranks before others is taken for its formats and tokens, and for nothing else."""
    like = next(row for row in VARIANTS if row.name == "few-e4m3fn-native")
    invented = replace(like, name="invented", tokens=(3, 5), rank=-1)
    monkeypatch.setattr(selection, "VARIANTS", (*VARIANTS, invented))
    assert {1, 3, 6, 17} <= {*selection.sizes(), 6}
    fp8, sm_90 = SCHEMES["fp8"], TARGETS["sm_90"]
    for tokens in (1, 2, 3, 5, 6, 16):
        matrix = replace(MATRICES[0], spec=fp8.weights)
        row, _ = selection.pick(fp8.weights, fp8.activations, "bfloat16", tokens, sm_90, matrix)
        assert row is not None and (row is invented) == (3 <= tokens <= 5), tokens
