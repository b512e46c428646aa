"""Decoding through layers with mixtures of experts on the CPU: share of the memory's read bandwidth.

    python benchmarks/cpu_experts.py                        # eight layers of Qwen3-30B-A3B, int4: 2.6 GB
    python benchmarks/cpu_experts.py --schemes int8 fp8 --layers 2
    python benchmarks/cpu_experts.py --quick                # small, not recorded: shows that it works

A layer has hidden 2048, 32 heads on 4 of 128, and 128 experts of 768, of which a token goes to 8; codes and scales are
random, and so is the router, whose choice is another for every token. One token at a time goes through all layers in
one call, behind 64 tokens. GB/s counts what that reads: codes and scales of the attention and of the experts that are
chosen, and the router in float32; keys and values are left out. The read bandwidth is measured before and after each
turn of steps, in this process; "share" is the median over turns of GB/s divided by the mean of those two; on a
machine that does other things, too, "best_over_best" says more: the fastest step over the fastest reading. Results are
appended to benchmarks/results/cpu_experts.csv.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common import RESULTS, ReadBandwidth, median, provenance, save, seconds, stop, use_threads
from runs import instruction_set

from isobit.errors import IsobitError
from isobit.formats.schemes import Scheme, scheme

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.formats.qtensor import QTensor

PAST = 64  # tokens behind which decoding goes on


@dataclass(frozen=True)
class Shape:
    """A model's layers."""

    title: str
    hidden: int
    inner: int
    experts: int
    active: int
    heads: int
    kv_heads: int
    dim: int
    layers: int


FULL = Shape("Qwen3-30B-A3B", 2048, 768, 128, 8, 32, 4, 128, 8)
QUICK = Shape("small", 256, 128, 16, 4, 4, 2, 64, 2)


def random_weight(row: Scheme, n: int, k: int, seed: int) -> QTensor:
    """Random codes and scales of about 1 / sqrt(k) / the largest code."""
    import torch

    from isobit.formats.pack import code_dtype
    from isobit.formats.qtensor import QTensor
    from isobit.formats.table import element

    assert row.weights is not None
    generator, kind = torch.Generator().manual_seed(seed), element(row.weights.element)
    if kind.bits < 8:
        words = (n, -(-k * kind.bits // 32))
        codes = torch.empty(words, dtype=torch.int32).random_(-(2**31), 2**31 - 1, generator=generator)
    else:
        codes = torch.empty(n, k, dtype=code_dtype(kind)).random_(0, 119, generator=generator)  # no NaN among them
    scale = torch.rand(row.weights.scale_shape(n, k), generator=generator) / k**0.5 / 16
    zero = torch.full(scale.shape, 8, dtype=torch.uint8) if kind.name == "uint4" else None
    return QTensor(row.weights, (n, k), codes, scale.to(torch.bfloat16), zero)


@dataclass(frozen=True)
class Run:
    """Layers that are ready to decode, and what one token reads of them."""

    step: Callable[[], object]
    bytes: int


def make(shape: Shape, row: Scheme) -> Run:
    """All layers in one call."""
    import torch

    from isobit.kernels.cached import Cached
    from isobit.kernels.cpu.experts import CpuMixture, CpuRouter
    from isobit.kernels.cpu.linear import bind
    from isobit.kernels.cpu.stack import CpuStack, LayerParts, MixtureParts, Places
    from isobit.kernels.grouped import Grouped, Mixture, Routing
    from isobit.kernels.heads import AttentionSpec
    from isobit.kernels.norm import NormSpec
    from isobit.kernels.sequences import Sequences

    hidden, wide, narrow = shape.hidden, shape.heads * shape.dim, shape.kv_heads * shape.dim
    norm, heads = NormSpec(torch.ones(hidden), 1e-6), AttentionSpec(shape.heads, shape.kv_heads, shape.dim)
    layers, read = [], 0
    for layer in range(shape.layers):
        seed = 100 * layer
        shapes = ((wide, hidden), (narrow, hidden), (narrow, hidden), (hidden, wide))
        weights = [random_weight(row, *size, seed + i) for i, size in enumerate(shapes)]
        roles = [
            random_weight(row, shape.experts * n, k, seed + 10 + i)
            for i, (n, k) in enumerate(((shape.inner, hidden), (shape.inner, hidden), (hidden, shape.inner)))
        ]
        parts = (
            Grouped(role, shape.experts, role.shape[0] // shape.experts, role.shape[0] // shape.experts,
                    activations=row.activations)
            for role in roles
        )  # fmt: skip
        router = torch.randn(shape.experts, hidden, generator=torch.Generator().manual_seed(seed))
        read += (
            sum(map(size_of, weights)) + sum(map(size_of, roles)) * shape.active // shape.experts + 4 * router.numel()
        )
        q, k, v, o = (bind(weight, row.activations, None, None) for weight in weights)
        mixture = MixtureParts(CpuRouter(Routing(router, shape.active)), CpuMixture(Mixture(*parts), alike=False))
        layers.append(LayerParts((q, k, v, o), heads, None, norm, norm, mixture=mixture))
    stack, block = CpuStack(layers), 2 * PAST
    cache = (shape.layers, 1, shape.kv_heads, block, shape.dim)
    memory = Cached(torch.randn(cache), torch.randn(cache))
    angles = torch.rand(1, shape.dim // 2).repeat(1, 2)
    places = [Places(angles.cos(), angles.sin())]
    first = Cached(memory.keys[0], memory.values[0])
    sequences = Sequences(
        torch.tensor([0, 1], dtype=torch.int32), torch.tensor([PAST + 1], dtype=torch.int32),
        torch.zeros(1, 1, dtype=torch.int32), torch.tensor([PAST]), block, 1, PAST + 1,
    )  # fmt: skip

    def step() -> Tensor:
        return stack.run(torch.randn(1, hidden), places, first, sequences, memory.keys.stride(0) // shape.dim)

    return Run(step, read)


def size_of(weight: QTensor) -> int:
    """Bytes of codes, scales and zero points."""
    return sum(
        part.numel() * part.element_size() for part in (weight.codes, weight.scale, weight.zero) if part is not None
    )


def measure(shape: Shape, name: str, turns: int, steps: int, buffer: int) -> dict[str, object]:
    """One line of the CSV."""
    row = scheme(name)
    if row.weights is None:
        stop(f"{name} has no codes; name a scheme that quantizes weights")
    run, bandwidth = make(shape, row), ReadBandwidth(buffer)
    run.step()
    shares, rates, ceilings, times = [], [], [], []
    before, best, fastest = bandwidth(), 0.0, float("inf")
    for _ in range(turns):
        taken = [seconds(run.step) for _ in range(steps)]
        took, fastest, after = median(taken), min(fastest, *taken), bandwidth()
        times.append(took), rates.append(run.bytes / took), ceilings.append((before + after) / 2)
        shares.append(rates[-1] / ceilings[-1])
        before, best = after, max(best, before, after)
    return {
        "kernel": "cpu", "isa": instruction_set("cpu"), "shape": shape.title, "layers": shape.layers, "scheme": name,
        "active_mb": round(run.bytes / 1e6, 1), "turns": turns, "steps": steps,
        "ms_per_token": round(1e3 * median(times), 2), "gb_s": round(median(rates) / 1e9, 2),
        "read_gb_s": round(median(ceilings) / 1e9, 2), "share_of_read": round(median(shares), 3),
        "best_gb_s": round(run.bytes / fastest / 1e9, 2), "best_read_gb_s": round(best / 1e9, 2),
        "best_over_best": round(run.bytes / fastest / best, 3), "load_before": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="+", default=["int4"], metavar="NAME", help="default: int4")
    parser.add_argument("--layers", type=int, help="default: 8")
    parser.add_argument("--turns", type=int, default=9, help="repetitions; figures are their medians (default: 9)")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or the cores this process may use")
    parser.add_argument("--quick", action="store_true", help="small layers; nothing is recorded unless --csv is given")
    parser.add_argument("--csv", type=Path, help="where the results go (default: benchmarks/results/cpu_experts.csv)")
    args = parser.parse_args()
    threads, base = use_threads(args.threads), QUICK if args.quick else FULL
    shape = base if args.layers is None else Shape(**(vars(base) | {"layers": args.layers}))
    try:
        for name in args.schemes:
            found = measure(shape, name, args.turns, 3 if args.quick else 10, 1 << (24 if args.quick else 28))
            print(", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
            if not args.quick or args.csv is not None:
                row = provenance() | {"threads": threads} | found
                save([row], args.csv or RESULTS / "cpu_experts.csv")
    except IsobitError as error:
        stop(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
