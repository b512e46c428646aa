"""Speed of a layer's parts beside its linears on the card at hand, beside PyTorch's; one CSV row a figure.

    python benchmarks/gpu_layer_ops.py [--out benchmarks/results/gpu_layer_ops.csv]

Shapes of a Llama-2-7B layer (and of a Llama-3-8B, whose heads are grouped). Every figure is the time of one call in a
CUDA graph of many, each with a cache or rows of its own, more than the level-2 cache holds. PyTorch's attention is
given keys and values of just the right length, without a mask, and does not store anything; ours reads lengths and a
table of blocks of 256 on the device.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_tune import timed

from isobit.formats.schemes import ActSpec
from isobit.kernels.cached import Cached
from isobit.kernels.gpu import card
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences
from isobit.targets.table import target

FIELDS = ("date", "commit", "device", "lowering", "what", "us", "torch us", "figure", "unit")
ROTATED = 256 << 20  # bytes
BLOCK = 256
MODELS = {"7B": AttentionSpec(32, 32, 128), "8B": AttentionSpec(32, 8, 128)}
CALLS = ((1, 192), (1, 4032), (8, 1024), (64, 512))
HIDDEN, INNER = 4096, 11008


def rotated(bytes_of_one: int, make: Callable[[], Any]) -> list[Any]:
    """Enough of something that the level-2 cache cannot hold it, at least 8 and at most 64."""
    return [make() for _ in range(max(8, min(64, ROTATED // bytes_of_one)))]


def each(calls: list[Callable[[], Any]], replays: int = 20) -> float:
    """Microseconds of one of several calls that follow each other in a graph."""
    return timed(lambda: [call() for call in calls], replays) / len(calls)


def sequences(count: int, new: int, length: int) -> Sequences:
    """Sequences of equal length, their blocks in order."""
    columns = -(-length // BLOCK)
    table = torch.arange(count * columns, dtype=torch.int32, device="cuda").view(count, columns)
    positions = torch.arange(length - new, length, device="cuda")
    slots = table[:, positions // BLOCK].long() * BLOCK + positions % BLOCK
    starts = new * torch.arange(count + 1, dtype=torch.int32, device="cuda")
    lengths = torch.full((count,), length, dtype=torch.int32, device="cuda")
    return Sequences(starts, lengths, table, slots.flatten(), BLOCK, new, length)


def attentions(layer: GpuLayer, spec: AttentionSpec, count: int, new: int, length: int) -> tuple[float, float, int]:
    """(ours, PyTorch's, bytes of keys and values) of one attention, queries rotated before."""
    batch = sequences(count, new, length)
    shape = (count * batch.table.shape[1], spec.kv_heads, BLOCK, spec.dim)
    held = 4 * count * spec.kv_heads * length * spec.dim
    q = torch.randn(count * new, spec.heads * spec.dim, device="cuda").bfloat16()
    caches = rotated(held, lambda: [torch.randn(shape, device="cuda").bfloat16() for _ in "kv"])
    ours = each([lambda k=k, v=v: layer.attend(spec, q, Cached(k, v), batch) for k, v in caches])  # type: ignore[misc]
    del caches
    plain = (count, spec.kv_heads, length, spec.dim)
    queries = torch.randn(count, spec.heads, new, spec.dim, device="cuda").bfloat16()
    caches = rotated(held, lambda: [torch.randn(plain, device="cuda").bfloat16() for _ in "kv"])

    def torchs(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        gqa = spec.heads > spec.kv_heads
        return F.scaled_dot_product_attention(queries, k, v, is_causal=new > 1, enable_gqa=gqa)

    return ours, each([lambda k=k, v=v: torchs(k, v) for k, v in caches]), held  # type: ignore[misc]


def rope(layer: GpuLayer, spec: AttentionSpec, count: int) -> tuple[float, float]:
    """(ours, PyTorch's) of rotating and storing one new token of each sequence."""
    batch = sequences(count, 1, 512)
    shape = (count * batch.table.shape[1], spec.kv_heads, BLOCK, spec.dim)
    keys, values = (torch.randn(shape, device="cuda").bfloat16() for _ in "kv")
    q, k, v = (torch.randn(count, heads * spec.dim, device="cuda").bfloat16()
               for heads in (spec.heads, spec.kv_heads, spec.kv_heads))  # fmt: skip
    cos, sin = (torch.randn(count, spec.dim, device="cuda").bfloat16() for _ in "cs")
    position = torch.full((1,), 511, device="cuda")
    flat = [torch.randn(count, spec.kv_heads, 512, spec.dim, device="cuda").bfloat16() for _ in "kv"]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        x = x.view(count, -1, spec.dim)
        first, second = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]

    def torchs() -> None:
        rotate(q)
        for held, new in ((flat[0], rotate(k)), (flat[1], v.view(count, -1, spec.dim))):
            held.index_copy_(2, position, new[:, :, None])

    ours = each([lambda: layer.rope_append(spec, q, k, v, cos, sin, Cached(keys, values), batch)] * 16)
    return ours, each([torchs] * 16)


def rows(layer: GpuLayer, tokens: int) -> dict[str, tuple[float, float]]:
    """What rows of activations go through: (ours, PyTorch's and, for roundings, ours in two launches)."""
    rounding = Rounding(ActSpec("e4m3fn", "token"), None, "*fp8e4nv", layer.machine)
    weight = torch.rand(HIDDEN, device="cuda") + 0.5
    x = rotated(2 * tokens * HIDDEN, lambda: [torch.randn(tokens, HIDDEN, device="cuda").bfloat16() for _ in "xd"])
    g = rotated(2 * tokens * INNER, lambda: [torch.randn(tokens, INNER, device="cuda").bfloat16() for _ in "gu"])

    def norm(a: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(a.float(), (HIDDEN,), weight, 1e-5).to(a.dtype)

    def add_norm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return norm(a + b)

    measured: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[Any]]] = {
        "norm": (lambda a, b: layer.norm(a, weight, 1e-5), lambda a, b: norm(a), x),
        "add, norm": (lambda a, b: layer.add_norm(a, b, weight, 1e-5), add_norm, x),
        "add, norm, round": (
            lambda a, b: layer.add_norm(a, b, weight, 1e-5, rounding), lambda a, b: rounding(add_norm(a, b)), x
        ),
        "gate": (layer.gate, lambda a, b: F.silu(a) * b, g),
        "gate, round": (lambda a, b: layer.gate(a, b, "silu", rounding), lambda a, b: rounding(F.silu(a) * b), g),
    }  # fmt: skip
    found = {}
    for name, (ours, other, held) in measured.items():
        calls = [[partial(function, a, b) for a, b in held] for function in (ours, other)]
        found[name] = each(calls[0]), each(calls[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    parser.add_argument("--commit", default="")
    parser.add_argument("--lowering")
    options = parser.parse_args()
    machine = card.machine(target(options.lowering) if options.lowering else None)
    layer = GpuLayer(machine, Workspace(torch.device("cuda")))
    fixed = (time.strftime("%Y-%m-%d"), options.commit, torch.cuda.get_device_name(), machine.target.name)
    found: list[tuple[Any, ...]] = []

    def add(what: str, ours: float, torchs: float, figure: float, unit: str) -> None:
        found.append((*fixed, what, f"{ours:.2f}", f"{torchs:.2f}", f"{figure:.2f}", unit))
        print(f"{what:34} {ours:9.2f} us, torch {torchs:9.2f} us  {figure:8.2f} {unit}", flush=True)

    for model, spec in MODELS.items():
        for count, length in CALLS:
            ours, torchs, held = attentions(layer, spec, count, 1, length)
            add(f"{model} attention {count} x {length}", ours, torchs, held / ours / 1e6, "TB/s")
        ours, torchs, _ = attentions(layer, spec, 1, 4096, 4096)
        flops = 4 * spec.heads * spec.dim * 4096 * 4097 / 2
        add(f"{model} attention prompt of 4096", ours, torchs, flops / ours / 1e6, "TFLOP/s")
    for count in (1, 64):
        add(f"rope, append {count}", *rope(layer, MODELS["7B"], count), 0.0, "")
    for tokens in (1, 64, 4096):
        for name, (ours, torchs) in rows(layer, tokens).items():
            add(f"{name} {tokens}", ours, torchs, torchs / ours, "times")
    if options.out:
        with open(options.out, "a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(FIELDS)
            writer.writerows(found)


if __name__ == "__main__":
    main()
