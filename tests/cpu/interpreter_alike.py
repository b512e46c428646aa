"""Batch-invariant linears of the GPU kernels in Triton's interpreter: prints one result a line.

The interpreter adds bfloat16 wrongly and rounds float8 wrongly, so everything here is codes and float16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch

from isobit.formats.schemes import scheme
from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.machine import Machine
from isobit.quantizer.grid import quantize_weight
from isobit.targets.table import target

MACHINE = Machine.imagined(target("sm_86"))
SCHEMES = ("f16", "int8", "fp8", "fp8-w8a16", "int8-w8a16", "int4", "int4-asym", "int3-g32", "fp8-block")
FLOAT_CODES = ("fp8", "fp8-w8a16", "fp8-block")
TILES = ((1, 3, 8), (9, 16), (17, 70))  # numbers of tokens in tiles of one width
MOST = TILES[-1][-1]


def linears() -> Iterator[tuple[str, str, bool]]:
    """In tiles of one width any numbers. In tiles of several widths those whose sums have no rounding.

    NumPy's products, which the interpreter takes, may add up in another order when a matrix is wider. On a GPU columns
    of a tile do not meet (tests/gpu/test_alike_on_gpu.py).
    """
    generator = torch.Generator().manual_seed(1)
    for name in SCHEMES:
        row, n, k = scheme(name), 40, 2048 if name == "int8" else 512
        values = (torch.randn(n, k, generator=generator) * 64).round() / 64
        weight = (
            values.half()
            if row.weights is None
            else quantize_weight(values, row.weights, search="absmax", scale_dtype=torch.float16)
        )
        bound = bind(weight, row.activations, None, None, machine=MACHINE, alike=True)
        x = torch.randn(MOST, k, generator=generator).half()
        for numbers in TILES:
            whole = bound(x[: numbers[-1]])
            for tokens in numbers:
                yield name, f"the first {tokens}", torch.equal(bound(x[:tokens]), whole[:tokens])
                at = numbers[-1] - tokens
                yield name, f"the last {tokens}", torch.equal(bound(x[at : numbers[-1]]), whole[at:])
        x = torch.randint(-3, 4, (MOST, k), generator=generator).half()
        if name not in FLOAT_CODES:
            for tokens in (1, 9):
                yield name, f"{tokens} of {MOST}", torch.equal(bound(x[:tokens]), bound(x)[:tokens])


def cut() -> Iterator[tuple[str, str, bool]]:
    """More rows than are launched at once where K is split; of whole numbers, whose sums have no rounding."""
    generator = torch.Generator().manual_seed(2)
    row = scheme("int8-w8a16")
    assert row.weights is not None
    weight = quantize_weight(
        torch.randn(32, 2048, generator=generator), row.weights, search="absmax", scale_dtype=torch.float16
    )
    bound = bind(weight, row.activations, None, None, machine=MACHINE, alike=True)
    x = torch.randint(-3, 4, (700, 2048), generator=generator).half()
    whole = bound(x)
    yield "int8-w8a16", "700 rows", torch.equal(whole[510:], torch.cat([bound(x[510:516]), bound(x[516:])]))


if __name__ == "__main__":
    for result in (*linears(), *cut()):
        print(json.dumps(result), flush=True)
