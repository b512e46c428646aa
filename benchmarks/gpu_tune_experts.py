"""Linears of experts on the card at hand, for random choices: tiles beside those in use.

    python benchmarks/gpu_tune_experts.py [--shapes qwen3-30b-a3b] [--schemes fp8,int4] [--tokens 8,64,2048] [--out ...]

Every candidate runs after itself in a CUDA graph, each time with the weights of another layer, of which the level-2
cache holds none, and with another choice. "share" is the time in which 4.5 TB/s read the experts that are chosen, over
the time that it took. Kernels are compiled beforehand, by several processes.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS
from gpu_experts import BANDWIDTH, random_weight, weight_bytes
from gpu_tune import timed
from gpu_tune_some import compiled

from isobit.formats.schemes import scheme
from isobit.kernels.gpu import card
from isobit.kernels.gpu.compile.request import specialize
from isobit.kernels.gpu.expert_tiles import width_of
from isobit.kernels.gpu.launch import Kernel
from isobit.kernels.gpu.mixture import _Experts, _Places, _Run
from isobit.kernels.gpu.routing import GpuRouter
from isobit.kernels.gpu.tiles import SOME, Config
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.grouped import Grouped
from isobit.models.place import place

SHAPES = {"qwen3-30b-a3b": (128, 8, 2048, 768), "mixtral-8x7b": (8, 2, 4096, 14336)}  # experts, active, hidden, inner
FIELDS = (
    "shape", "scheme", "tokens", "linear", "BLOCK_N", "BLOCK_M", "BLOCK_K", "warps", "stages", "us", "share", "off"
)  # fmt: skip
Tile = tuple[int, int, int, int, int]
LAYERS = 3


def candidates(name: str, width: int) -> Iterator[Tile]:
    """Tiles for a scheme, and as many tokens a tile as are in use, half of them and twice as many."""
    for wide in (wide for wide in (width // 2, width, 2 * width) if wide >= 8):
        if name == "int4":
            for n, warps, stages in ((64, 4, 2), (64, 4, 3), (128, 4, 3), (128, 8, 3)):
                yield n, wide, 0, warps, stages
            continue
        for n, k, warps, stages in ((64, 128, 4, 4), (64, 256, 4, 4), (128, 128, 4, 3), (128, 128, 4, 5),
                                    (128, 256, 4, 3), (128, 128, 8, 4)):  # fmt: skip
            if wide < SOME or k == 128:
                yield n, wide, k if name in ("fp8", "int8") else k // 2, warps, stages


def configured(run: _Run, tile: Tile) -> Config:
    """A run's configuration with another tile."""
    n, m, k, warps, stages = tile
    changed: dict[str, Any] = {"BLOCK_N": n, "BLOCK_M": m}
    if "BLOCK_K" in run.config.constexprs:
        changed |= {"BLOCK_K": k, "EVEN_K": run.held.k % k == 0}
    return replace(run.config.with_constants(**changed), num_warps=warps, num_stages=stages)


def measure(shape: str, name: str, tokens: int, linear: str) -> Iterator[tuple[Any, ...]]:
    """Rows of one linear: what is in use, and every candidate, with its distance from that."""
    experts, active, hidden, inner = SHAPES[shape]
    n, k = (2 * inner, hidden) if linear == "gate_up" else (hidden, inner)
    formats, here, where = scheme(name), card.machine(), place("cuda")
    router, share = GpuRouter(here, Workspace(torch.device("cuda"))), active if linear == "gate_up" else 1
    parts = [
        _Experts(
            Grouped(random_weight(formats, experts * n, k, where), experts, n, n, activations=formats.activations),
            here, False,
        )
        for _ in range(LAYERS)
    ]  # fmt: skip
    chosen = [torch.stack([torch.randperm(experts)[:active] for _ in range(tokens)]).int() for _ in range(LAYERS)]
    least = sum(weight_bytes(formats, len(ids.unique()) * n, k) for ids in chosen) / LAYERS / BANDWIDTH * 1e6
    places = [_Places(router, ids.flatten().cuda(), experts, tokens, share) for ids in chosen]
    after = "silu" if linear == "gate_up" else ""
    runs = [part.run(places[0], torch.bfloat16, after, "" if after else "float32") for part in parts]
    x = torch.randn(tokens * active // share, k, device="cuda").bfloat16()
    given = x if runs[0].rounding is None else runs[0].rounding(x)
    kept = runs[0].config
    tiles = list(candidates(name, width_of(tokens, tokens * active, experts)))
    requests = []
    for tile in tiles:
        config = configured(runs[0], tile)
        pointers = tuple(key for key, kind in config.signature.items() if kind.startswith("*"))
        requests.append(specialize(runs[0].row.entry, config, here.target, (*pointers, *config.divisible)))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        fits = list(pool.map(compiled, requests))
    wanted = runs[0](given, places[0]).float()
    for tile in (None, *(tile for tile, does in zip(tiles, fits, strict=True) if does)):
        config = kept if tile is None else configured(runs[0], tile)
        for run in runs:
            run.config, run.kernel = config, Kernel(run.row.entry, config, here)
        found = [run(given, one).float() for run, one in zip(runs, places, strict=True)][0]
        off = float((found - wanted).norm() / wanted.norm())
        us = timed(lambda: [run(given, one) for run, one in zip(runs, places, strict=True)], 7) / LAYERS
        yield shape, name, tokens, linear, *(tile or ["in use"] * 5), f"{us:.1f}", f"{least / us:.2f}", f"{off:.1e}"


def main() -> None:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--schemes", default="fp8,int4")
    parser.add_argument("--tokens", default="8,64,2048")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_tune_experts.csv")
    options = parser.parse_args()
    with open(options.out, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(FIELDS)
        for shape in options.shapes.split(","):
            for name in options.schemes.split(","):
                for tokens in map(int, options.tokens.split(",")):
                    for linear in ("gate_up", "down"):
                        for row in measure(shape, name, tokens, linear):
                            table.writerow(row)
                            file.flush()


if __name__ == "__main__":
    main()
