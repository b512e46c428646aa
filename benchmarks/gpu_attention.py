"""Attention on a GPU: decoding and prompts, every format of the cache, beside PyTorch's; and a search for tiles.

  python gpu_attention.py [--tune] [--csv FILE] [--commit ID] [--rounds N]

PyTorch's attention is given keys and values of just the right length. Each figure is the median of a CUDA graph of
several calls, each with a cache of its own, more than the level-2 cache holds where it is decoding. --tune compiles
many tiles beside each other, compares each with float64 first, and prints the fastest of every shape.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from gpu_tune import timed

from isobit.formats.caches import known_by
from isobit.formats.pack import code_dtype
from isobit.formats.table import element as lookup
from isobit.kernels.cached import Cached
from isobit.kernels.gpu import layer_tiles as tiles
from isobit.kernels.gpu.compile.build import compile_request
from isobit.kernels.gpu.compile.request import specialize
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences

FIELDS = (
    "date",
    "commit",
    "device",
    "torch",
    "model",
    "cache",
    "what",
    "tile",
    "us",
    "torch us",
    "figure",
    "unit",
    "error",
)
MODELS = {"7B": AttentionSpec(32, 32, 128), "8B": AttentionSpec(32, 8, 128)}
BLOCK = 64  # tokens, as the engine's
DECODE = ((1, 192), (1, 1024), (1, 4096), (1, 16384), (8, 1024), (8, 4096), (64, 512), (64, 1024), (256, 512))
PROMPTS = ((1, 512), (1, 2048), (1, 4096), (8, 2048))
L2 = 128 << 20  # bytes that are more than the level-2 cache keeps
MOST = 24 << 30  # bytes of caches at once


def sequences(count: int, new: int, length: int) -> Sequences:
    """Sequences of equal length, their blocks dealt out at random."""
    columns = -(-length // BLOCK)
    deal = torch.randperm(count * columns, generator=torch.Generator().manual_seed(0)).int()
    table = deal.view(count, columns).cuda()
    positions = torch.arange(length - new, length, device="cuda")
    slots = table[:, positions // BLOCK].long() * BLOCK + positions % BLOCK
    starts = new * torch.arange(count + 1, dtype=torch.int32, device="cuda")
    lengths = torch.full((count,), length, dtype=torch.int32, device="cuda")
    return Sequences(starts, lengths, table, slots.flatten(), BLOCK, new, length)


def cache(spec: AttentionSpec, batch: Sequences, element: str, dtype: torch.dtype) -> Cached:
    """Random keys and values of a batch's sequences."""
    shape = (batch.table.numel(), spec.kv_heads, BLOCK, spec.dim)
    if not element:
        return Cached(*(torch.randn(shape, device="cuda", dtype=dtype) for _ in "kv"))
    if element == "int8":
        codes = [torch.randint(-127, 128, shape, device="cuda", dtype=code_dtype(lookup(element))) for _ in "kv"]
    else:
        codes = [
            torch.randn(shape, device="cuda").to(getattr(torch, f"float8_{element}")).view(torch.uint8) for _ in "kv"
        ]
    scales = [torch.rand(shape[:3], device="cuda") * (0.02 if element == "int8" else 1.0) for _ in "kv"]
    return Cached(codes[0], codes[1], scales[0], scales[1], known_by(element))


def wanted(spec: AttentionSpec, q: torch.Tensor, held: Cached, batch: Sequences, b: int) -> torch.Tensor:
    """Sequence ``b`` in float64."""
    length, new = int(batch.lengths[b]), int(batch.starts[1])
    blocks = tuple(batch.table[b].tolist())
    keys, values = (part.double() for part in held.read(blocks, length, q.dtype))
    query = q[b * new : (b + 1) * new].double().view(new, spec.heads, spec.dim).transpose(0, 1)
    keys, values = (part.repeat_interleave(spec.heads // spec.kv_heads, 0) for part in (keys, values))
    found = []
    for head in range(0, spec.heads, 4):
        scores = query[head : head + 4] @ keys[head : head + 4].transpose(1, 2) * spec.factor
        hidden = (
            torch.arange(length, device="cuda")[None, :] > torch.arange(length - new, length, device="cuda")[:, None]
        )
        found.append(scores.masked_fill_(hidden, float("-inf")).softmax(-1) @ values[head : head + 4])
    return torch.cat(found).transpose(0, 1).flatten(1)


def ours(
    layer: GpuLayer, spec: AttentionSpec, element: str, count: int, new: int, length: int
) -> tuple[float, float, int]:
    """(microseconds, error of one sequence, bytes of keys and values)."""
    batch = sequences(count, new, length)
    dtype = torch.bfloat16 if layer.machine.target.name != "sm_75" else torch.float16
    held = 2 * count * spec.kv_heads * length * (spec.dim + 4 if element else 2 * spec.dim)
    q = torch.randn(count * new, spec.heads * spec.dim, device="cuda", dtype=dtype)
    several = 1 if new > 1 else max(2, min(16, 1 + L2 // held, MOST // held))
    caches = [cache(spec, batch, element, dtype) for _ in range(several)]
    found = layer.attend(spec, q, caches[0], batch)[:new]
    exact = wanted(spec, q, caches[0], batch, 0)
    error = float((found.double() - exact).norm() / exact.norm())
    us = timed(lambda: [layer.attend(spec, q, one, batch) for one in caches], 15) / several
    return us, error, held


def torchs(spec: AttentionSpec, count: int, new: int, length: int) -> float:
    """PyTorch's microseconds, in bfloat16."""
    held = 4 * count * spec.kv_heads * length * spec.dim
    plain = (count, spec.kv_heads, length, spec.dim)
    queries = torch.randn(count, spec.heads, new, spec.dim, device="cuda").bfloat16()
    several = 1 if new > 1 else max(2, min(16, 1 + L2 // held, MOST // held))
    caches = [[torch.randn(plain, device="cuda", dtype=torch.bfloat16) for _ in "kv"] for _ in range(several)]

    def run(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        grouped = spec.heads > spec.kv_heads
        return F.scaled_dot_product_attention(queries, k, v, is_causal=new > 1, enable_gqa=grouped)

    return timed(lambda: [run(k, v) for k, v in caches], 15) / several


def candidates(prompt: bool, element: str) -> Iterator[tuple[int, int, int, int, int]]:
    """(queries, keys, warps, stages, keys that are one part)."""
    if prompt:
        for m, n, warps, stages in itertools.product((64, 128), (32, 64), (4, 8), (2, 3, 4)):
            if (m, warps) not in ((64, 8), (128, 4)):
                yield m, n, warps, stages, 512
        yield 128, 128, 8, 2, 512
        yield 64, 128, 4, 2, 512
        return
    for n, warps, stages in itertools.product((32, 64), (2, 4), (2, 3, 4, 5)):
        yield 16, n, warps, stages, 512
    yield 16, 128, 4, 3, 512
    yield 16, 64, 4, 3, 256
    yield 16, 64, 4, 3, 1024


def use(prompt: bool, tile: tuple[int, int, int, int, int]) -> None:
    """Makes the kernels be compiled so from now on."""
    made = tiles._Tile(*tile[:4])
    if prompt:
        tiles._many_tile = lambda shape, target: made  # type: ignore[assignment]
    else:
        tiles._few_tile = lambda shape, target, rows: replace(made, m=rows)  # type: ignore[assignment]
        tiles.ONE_PART = tile[4]


def compiled(job: tuple[str, str, bool, Any, tuple[int, ...]]) -> str:
    """Compiles one candidate, for the cache on disk; what went wrong."""
    model, element, prompt, tile, columns = job
    from isobit.kernels.gpu import card

    try:
        if tile:
            use(prompt, tile)
        spec, machine = MODELS[model], card.machine()
        shape = tiles.AttentionShape(
            "bfloat16", spec.heads, spec.kv_heads, spec.dim, block=BLOCK, columns=columns[0], element=element
        )
        module, configure = (
            ("attention_many:attention_many", tiles.attention_many)
            if prompt
            else ("attention_few:attention_few", tiles.attention_few)
        )
        config = configure(shape, machine.target)
        pointers = tuple(name for name, kind in config.signature.items() if kind.startswith("*"))
        compile_request(specialize(f"isobit.kernels.gpu.triton.{module}", config, machine.target, pointers))
        if not prompt and not tile:
            config = tiles.attention_merge(shape, machine.target)
            pointers = tuple(name for name, kind in config.signature.items() if kind.startswith("*"))
            compile_request(
                specialize("isobit.kernels.gpu.triton.attention_few:attention_merge", config, machine.target, pointers)
            )
        return ""
    except Exception as error:  # a tile that does not fit is no candidate
        return f"{type(error).__name__}: {str(error)[:80]}"


def tune(add: Any, options: argparse.Namespace) -> None:
    from isobit.kernels.gpu import card

    plans = [(model, element, prompt) for prompt in (True, False) for model in MODELS for element in options.formats]
    jobs = [(*plan, tile, (2,)) for plan in plans for tile in candidates(plan[2], plan[1])]
    begin = time.time()
    with multiprocessing.get_context("spawn").Pool(min(15, os.cpu_count() or 1)) as pool:
        problems = dict(zip(jobs, pool.map(compiled, jobs, chunksize=1), strict=True))
    failed = sum(map(bool, problems.values()))
    print(f"{len(jobs)} candidates compiled in {time.time() - begin:.0f} s; {failed} do not fit", flush=True)
    for model, element, prompt in plans:
        shapes = (
            [(count, length, length) for count, length in PROMPTS]
            if prompt
            else [(count, 1, length) for count, length in DECODE]
        )
        best: dict[tuple[int, int, int], tuple[float, Any]] = {}
        for tile in candidates(prompt, element):
            if problems[model, element, prompt, tile, (2,)]:
                continue
            use(prompt, tile)
            layer = GpuLayer(card.machine(), Workspace(torch.device("cuda")))
            line = []
            for count, new, length in shapes:
                if time.time() - begin > options.seconds:
                    print("out of time", flush=True)
                    return
                try:
                    us, error, held = ours(layer, MODELS[model], element, count, new, length)
                except Exception as problem:
                    print("failed", model, element, tile, count, length, str(problem)[:100], flush=True)
                    break
                torch.cuda.empty_cache()
                if error > 4e-3:
                    print("WRONG", model, element, tile, count, new, length, error, flush=True)
                    continue
                line.append(us)
                add(
                    model,
                    element,
                    f"{'prompt' if prompt else 'decode'} {count} x {length}",
                    tile,
                    us,
                    0.0,
                    *figure(MODELS[model], prompt, count, length, held, us),
                    error,
                )
                best[count, new, length] = min(best.get((count, new, length), (1e9, None)), (us, tile))
            print(
                model,
                element or "bf16",
                "prompt" if prompt else "decode",
                tile,
                " ".join(f"{us:8.1f}" for us in line),
                flush=True,
            )
        for (count, new, length), (us, tile) in best.items():
            print("BEST", model, element or "bf16", count, new, length, f"{us:.1f}", tile, flush=True)


def figure(spec: AttentionSpec, prompt: bool, count: int, length: int, held: int, us: float) -> tuple[float, str]:
    if prompt:
        return 4 * spec.heads * spec.dim * count * length * (length + 1) / 2 / us / 1e6, "TFLOP/s"
    return held / us / 1e6, "TB/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv")
    parser.add_argument("--commit", default="")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--formats", default="bf16")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    options.formats = ["" if name == "bf16" else name for name in options.formats.split(",")]
    fixed = (time.strftime("%Y-%m-%d"), options.commit, torch.cuda.get_device_name(), torch.__version__)
    out = open(options.csv, "w", newline="") if options.csv else None
    writer = csv.writer(out) if out else None
    if writer:
        writer.writerow(FIELDS)

    def add(
        model: str,
        element: str,
        what: str,
        tile: tuple[int, ...],
        us: float,
        other: float,
        rate: float,
        unit: str,
        error: float,
    ) -> None:
        if writer and out:
            writer.writerow(
                (
                    *fixed,
                    model,
                    element or "bf16",
                    what,
                    "x".join(map(str, tile)),
                    f"{us:.2f}",
                    f"{other:.2f}",
                    f"{rate:.2f}",
                    unit,
                    f"{error:.1e}",
                )
            )
            out.flush()

    if options.tune:
        tune(add, options)
        return
    from isobit.kernels.gpu import card

    with multiprocessing.get_context("spawn").Pool(min(12, os.cpu_count() or 1)) as pool:
        pool.map(
            compiled,
            [
                (model, element, prompt, (), (2,))
                for model in MODELS
                for element in options.formats
                for prompt in (True, False)
            ],
        )
    layer = GpuLayer(card.machine(), Workspace(torch.device("cuda")))
    for model, spec in MODELS.items():
        for prompt, shapes in ((True, PROMPTS), (False, DECODE)):
            for count, length in shapes:
                new = length if prompt else 1
                other = 0.0 if options.no_torch else torchs(spec, count, new, length)
                for element in options.formats:
                    us, error, held = ours(layer, spec, element, count, new, length)
                    torch.cuda.empty_cache()
                    rate = figure(spec, prompt, count, length, held, us)
                    what = f"{'prompt' if prompt else 'decode'} {count} x {length}"
                    add(model, element, what, (), us, other, *rate, error)
                    figures = f"{us:9.1f} us, torch {other:9.1f}  {rate[0]:7.2f} {rate[1]}  {error:.1e}"
                    print(f"{model} {element or 'bf16':6} {what:20} {figures}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
