"""Linears of a 7B's layer by some tokens on the card at hand: tiles and splits of K beside those in use.

    python benchmarks/gpu_tune_some.py [--schemes fp8,int8,int4,bf16] [--tokens 8,64] [--out ...]

Every candidate runs as a model would run it: after each other in a CUDA graph, over weights that together are more than
the level-2 cache holds. Kernels are compiled beforehand, by several processes.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS
from gpu_linear import random_weight
from gpu_tune import timed

from isobit.formats.schemes import scheme
from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.compile.build import compile_request
from isobit.kernels.gpu.compile.request import Request, specialize
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.run import Run
from isobit.kernels.gpu.tiles import Config
from isobit.kernels.gpu.workspace import Workspace

SHAPES = {"qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)}
ROTATED = 160 << 20  # bytes of weights that follow each other
FIELDS = ("scheme", "tokens", "linear", "BLOCK_N", "BLOCK_M", "BLOCK_K", "warps", "stages", "SPLIT_K", "us", "off")
Tile = tuple[int, int, int, int, int, int]  # as FIELDS has them


def candidates(name: str, tokens: int) -> Iterator[Tile]:
    """Tiles for a scheme and a number of tokens."""
    m = tokens if tokens <= 8 else max(16, tokens)
    if name == "int4":
        shapes = [(64, 0, 4, 3), (64, 0, 4, 2), (128, 0, 4, 2), (128, 0, 8, 2), (128, 0, 8, 3)]
        widths = {min(m, wide) for wide in (16, 32, 64)} if tokens > 16 else {m}
        if tokens > 64:
            shapes, widths = [*shapes, (64, 0, 8, 2), (64, 0, 8, 3), (64, 0, 4, 4), (256, 0, 8, 2)], {64, 128}
    else:
        k = 64 if name == "bf16" else 128
        shapes = [(64, k, 4, 4), (64, k, 4, 6), (64, 2 * k, 4, 3), (128, k, 4, 4), (128, k, 8, 4)]
        widths = {min(m, wide) for wide in (64, 128)}
    for wide in sorted(widths):
        for n, step, warps, stages in shapes:
            for splits in (1, 2, 4, 8) if name == "int4" and tokens <= 64 else (1, 2, 4):
                yield n, wide, step, warps, stages, splits


def configured(run: Run, tile: Tile) -> Config:
    """A run's configuration with another tile."""
    n, m, k, warps, stages, splits = tile
    known = run.config.constexprs
    changed: dict[str, Any] = {"BLOCK_N": n, "BLOCK_M": m, "SPLIT_K": splits}
    if known.get("BLOCK_K"):
        changed["BLOCK_K"] = k
    if "EVEN_K" in known:
        changed["EVEN_K"] = run.held.k % k == 0
    return replace(run.config.with_constants(**changed), num_warps=warps, num_stages=stages)


def use(run: Run, config: Config) -> None:
    """Makes a run launch another configuration."""
    run.config, run.kernels = config, {"": Kernel(run.row.entry, config, run.machine)}
    run.split_k = int(config.constexprs.get("SPLIT_K") or 1)


def request(run: Run, tile: Tile) -> Request:
    """What has to be compiled for that."""
    config = configured(run, tile)
    pointers = tuple(name for name, kind in config.signature.items() if kind.startswith("*"))
    return specialize(run.row.entry, config, run.machine.target, (*pointers, *config.divisible))


def compiled(one: Request) -> bool:
    """Whether it could be; the result is in Triton's cache."""
    try:
        compile_request(one)
    except Exception:  # what does not fit the card is no candidate
        return False
    return True


def microseconds(runs: list[Run], given: Any, y: torch.Tensor) -> float:
    """Of one of several linears that follow each other."""
    return timed(lambda: [run(given, y) for run in runs], 7) / len(runs)


def measure(name: str, tokens: int, linear: str, room: Workspace) -> Iterator[tuple[Any, ...]]:
    """Rows of one linear: what is in use, and every candidate, with its distance from that."""
    (n, k), formats = SHAPES[linear], scheme(name)
    size = n * k * {"bf16": 2.0, "int4": 0.5}.get(name, 1.0)
    bounds = [
        bind(random_weight(name, n, k), formats.activations, None, None, workspace=room)
        for _ in range(max(2, min(12, int(ROTATED // size) + 1)))
    ]
    runs = [found for bound in bounds if isinstance(found := bound._run(tokens, torch.bfloat16), Run)]
    if not runs:
        return  # PyTorch's product is in use
    x = torch.randn(tokens, k, device="cuda").bfloat16()
    given = x if runs[0].rounding is None else runs[0].rounding(x)
    y = torch.empty(tokens, n, device="cuda", dtype=torch.bfloat16)
    runs[0](given, y)
    wanted, kept = y.float(), runs[0].config
    tiles = list(candidates(name, tokens))
    with ProcessPoolExecutor(12, mp_context=multiprocessing.get_context("spawn")) as pool:
        fits = list(pool.map(compiled, [request(runs[0], tile) for tile in tiles]))
    yield name, tokens, linear, *["in use"] * 6, f"{microseconds(runs, given, y):.2f}", 0
    for tile in (tile for tile, does in zip(tiles, fits, strict=True) if does):
        for run in runs:
            use(run, configured(run, tile))
        runs[0](given, y)
        off = float((y.float() - wanted).norm() / wanted.norm())
        yield name, tokens, linear, *tile, f"{microseconds(runs, given, y):.2f}", f"{off:.1e}"
        for run in runs:
            use(run, kept)


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", default="fp8,int8,int4,bf16")
    parser.add_argument("--tokens", default="8,64")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_tune_some.csv")
    options = parser.parse_args()
    room = Workspace(torch.device("cuda"))
    room.reserve(256 << 20, 1 << 16)
    with options.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(FIELDS)
        for name in options.schemes.split(","):
            for tokens in map(int, options.tokens.split(",")):
                for linear in SHAPES:
                    for row in measure(name, tokens, linear, room):
                        table.writerow(row)
                        file.flush()


if __name__ == "__main__":
    main()
