"""int4 by thousands of tokens on the card at hand: whole calls with other tiles than those in use, in turns.

    python benchmarks/gpu_tune_large.py [--out benchmarks/results/gpu_tune_large.csv]

A call widens the weight, narrows the activations and multiplies. Each round runs every candidate once, each behind a
pause, because under steady load the card lowers its clock: PyTorch's float16 product, in the same turns, shows by how
much. The median of the rounds counts.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gpu_linear import random_weight
from gpu_tune import timed

from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.launch import Kernel
from isobit.targets.table import target

SHAPES = ((4096, 4096), (12288, 4096), (22016, 4096), (4096, 11008))
TOKENS, PAUSE = 4096, 0.15
FIELDS = ("N", "K", "M", "config", "us", "figure", "of PyTorch's float16 product")
# Rows of weights, tokens, K, warps, stages, rows of tiles that share x in the cache; the first is in use.
PRODUCTS = (
    (256, 128, 64, 8, 4, 8), (256, 128, 64, 8, 4, 16), (256, 128, 64, 8, 3, 8), (128, 256, 64, 8, 3, 16),
    (128, 256, 64, 8, 4, 16), (128, 256, 64, 8, 4, 8),
)  # fmt: skip
FOLDS = ((16, 4), (16, 8), (8, 4), (32, 8))  # units, warps of the widening; the first is in use
# Values of a token that the narrowing holds at once, whether that is all of it, and warps; the first is in use.
NARROWS = ((0, True, 0), (4096, False, 8), (4096, False, 4), (2048, False, 4))


def call(bound: Any, x: torch.Tensor, tile: tuple[int, ...], fold: tuple[int, int],
         narrow: tuple[int, bool, int]) -> Callable[[], None]:  # fmt: skip
    """A call of a bound linear with these tiles."""
    run, where = bound.on(bound.machine)._run(x.shape[0], x.dtype), bound.machine
    assert run.row.name == "large-int4-bf16", run.row.name
    n, m, k, warps, stages, band = tile
    changed = run.config.with_constants(BLOCK_N=n, BLOCK_M=m, BLOCK_K=k, SWIZZLE=band, EVEN_K=True)
    run.config = replace(changed, num_warps=warps, num_stages=stages)
    run.kernel = Kernel(run.row.entry, run.config, where)
    units, warps = fold
    config = run.widened.kernel.config.with_constants(UNITS=units)
    run.widened.grid = (bound.held.n, -(-bound.held.k // (units * int(config.constexprs["UNIT"]))))
    run.widened.kernel = Kernel(run.widened.kernel.entry, replace(config, num_warps=warps), where)
    block, once, warps = narrow
    if block:
        config = run.narrowed.kernel.config.with_constants(BLOCK_K=block, ONCE=once)
        run.narrowed.kernel = Kernel(run.narrowed.kernel.entry, replace(config, num_warps=warps), where)
    y = torch.empty(x.shape[0], bound.held.n, dtype=x.dtype, device="cuda")
    return lambda: run(x, y)


def candidates(n: int, k: int) -> dict[str, Callable[[], Any]]:
    """By what they are; PyTorch's product of as many float16 numbers first."""
    x = torch.randn(TOKENS, k, device="cuda").bfloat16()
    half, wide = x.half(), torch.randn(n, k, device="cuda").half()
    found: dict[str, Callable[[], Any]] = {"PyTorch, float16": lambda: half @ wide.T}
    bound = bind(random_weight("int4", n, k), None, None, None, target=target("sm_90"))
    choices = [(tile, FOLDS[0], NARROWS[0]) for tile in PRODUCTS]
    choices += [(PRODUCTS[0], fold, NARROWS[0]) for fold in FOLDS[1:]]
    choices += [(PRODUCTS[0], FOLDS[0], narrow) for narrow in NARROWS[1:]]
    for tile, fold, narrow in choices:
        sizes = " ".join(f"{name}={size}" for name, size in zip("N M K warps stages band".split(), tile, strict=True))
        narrowing = f"{narrow[0]} values {narrow[2]} warps" if narrow[0] else "whole tokens"
        name = f"{sizes}; widening {fold[0]} units {fold[1]} warps; narrowing {narrowing}"
        found[name] = call(bound, x, tile, fold, narrow)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/results/gpu_tune_large.csv")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", default="", help="as 4096x4096,4096x11008: those alone")
    options = parser.parse_args()
    rows: list[tuple[Any, ...]] = []
    for n, k in SHAPES:
        if options.shapes and f"{n}x{k}" not in options.shapes.split(","):
            continue
        launches = candidates(n, k)
        times: dict[str, list[float]] = {name: [] for name in launches}
        for _ in range(options.rounds):
            for name, launch in launches.items():
                time.sleep(PAUSE)
                times[name].append(timed(lambda: [launch() for _ in range(4)], 5) / 4)  # noqa: B023
        base = statistics.median(next(iter(times.values())))
        for name, found in times.items():
            us = statistics.median(found)
            rows.append((n, k, TOKENS, name, f"{us:.2f}", f"{2 * TOKENS * n * k / us / 1e6:.1f}", f"{base / us:.3f}"))
            print(*rows[-1], flush=True)
    with open(options.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
