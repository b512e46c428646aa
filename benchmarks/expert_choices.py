"""How many experts the steps of gpu_experts.py read: its shapes and random weights, layer by layer, on a CPU.

    python benchmarks/expert_choices.py [--shapes qwen3-30b-a3b] [--schemes fp8,int4] [--batches 8,64] [--layers 12]

If each token chose its A of E experts by itself, a step of B tokens would read E (1 - (1 - A / E)^B) ("chance").
Tokens of random weights whose mean is not zero become alike from layer to layer, and choose the same ("read", the mean
of all layers; "tiles": in how many tiles GPU kernels put their tokens). Every sequence is random tokens, of which the
last is looked at. Layers are made, used and dropped.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common import RESULTS
from gpu_experts import SHAPES, random_weight
from torch import Tensor
from torch.nn import functional as F

from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import Scheme, scheme
from isobit.kernels.gpu.expert_tiles import width_of
from isobit.models.archs import model_config
from isobit.models.config import ModelConfig, SelfAttention
from isobit.models.feed_forward import Experts
from isobit.models.place import place

FIELDS = ("shape", "scheme", "mean", "layers", "batch", "prompt", "experts", "active", "chance", "read", "tiles")


Make = Callable[[int, int], Tensor]  # a weight of so many outputs and inputs


def made(row: Scheme, centred: bool) -> Make:
    """What makes weights of a scheme."""
    where = place("cpu")

    def make(outputs: int, inputs: int) -> Tensor:
        weight = random_weight(row, outputs, inputs, where, centred=centred)
        return (weight.dequantize() if isinstance(weight, QTensor) else weight).float()

    return make


def linear(x: Tensor, outputs: int, make: Make) -> Tensor:
    """``[..., K]`` through a weight that is made for it."""
    return x @ make(outputs, x.shape[-1]).T


def rotated(x: Tensor, theta: float) -> Tensor:
    """``[sequences, heads, tokens, dim]`` by their positions."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * theta ** (-torch.arange(half) / half)
    return x * angles.cos().repeat(1, 2) + torch.cat((-x[..., half:], x[..., :half]), -1) * angles.sin().repeat(1, 2)


def attention(x: Tensor, spec: SelfAttention, make: Make, theta: float) -> Tensor:
    """``[sequences, tokens, K]`` to the same."""
    heads, kept, dim = spec.heads, spec.kv_heads, spec.dim
    q, k, v = (
        linear(x, count * dim, make).unflatten(-1, (count, dim)).transpose(1, 2) for count in (heads, kept, kept)
    )
    if spec.qk_norm == "head":
        q, k = F.rms_norm(q, (dim,)), F.rms_norm(k, (dim,))
    found = F.scaled_dot_product_attention(rotated(q, theta), rotated(k, theta), v, is_causal=True, enable_gqa=True)
    return linear(found.transpose(1, 2).flatten(2), x.shape[-1], make)


def experts(x: Tensor, spec: Experts, make: Make) -> tuple[Tensor, Tensor]:
    """``[tokens, K]`` to the same, and the experts of each token."""
    router, inner = spec.router, spec.expert.size
    scores, ids = (x @ torch.randn(router.experts, x.shape[1]).T * x.shape[1] ** -0.5).softmax(-1).topk(router.active)
    weights = scores / scores.sum(-1, keepdim=True)
    result = torch.zeros_like(x)
    for expert in ids.unique().tolist():
        tokens, place_of = (ids == expert).nonzero(as_tuple=True)
        gate, up = (linear(x[tokens], inner, make) for _ in range(2))
        found = linear(F.silu(gate) * up, x.shape[1], make)
        result.index_add_(0, tokens, found * weights[tokens, place_of, None])
    return result, ids


def chosen(config: ModelConfig, make: Make, batch: int, prompt: int, layers: int) -> Iterator[tuple[int, int]]:
    """How many experts the last tokens of all sequences choose together, and how many tiles that are, by layer."""
    x = torch.randn(batch, prompt, config.hidden_size)  # of an embedding as random as that of gpu_experts.py
    for spec in config.layers[:layers]:
        assert isinstance(spec.attention, SelfAttention) and isinstance(spec.mlp, Experts)
        theta = spec.attention.rope.theta if spec.attention.rope else 1e4
        x = x + attention(F.rms_norm(x, x.shape[-1:]), spec.attention, make, theta)
        found, ids = experts(F.rms_norm(x, x.shape[-1:]).flatten(0, 1), spec.mlp, make)
        x = x + found.view_as(x)
        last = ids.view(batch, prompt, -1)[:, -1]
        counts, width = last.unique(return_counts=True)[1], width_of(batch, last.numel(), spec.mlp.router.experts)
        yield len(counts), int((-(-counts // width)).sum())


def main() -> None:
    """Counts, and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="qwen3-30b-a3b,mixtral-8x7b")
    parser.add_argument("--schemes", default="fp8,int4")
    parser.add_argument("--batches", default="8,64")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12, help="the first so many")
    parser.add_argument("--with-mean", action="store_true", help="integers as they were up to commit e499e69")
    parser.add_argument("--out", type=Path, default=RESULTS / "expert_choices.csv")
    options = parser.parse_args()
    torch.manual_seed(0)
    with open(options.out, "w", newline="") as file, torch.inference_mode():
        table = csv.writer(file)
        table.writerow(FIELDS)
        for shape in options.shapes.split(","):
            config = model_config(SHAPES[shape])
            for name in options.schemes.split(","):
                for batch in map(int, options.batches.split(",")):
                    counts = []
                    for both in chosen(
                        config, made(scheme(name), not options.with_mean), batch, options.prompt, options.layers
                    ):
                        counts.append(both)
                        print(shape, name, batch, f"layer {len(counts)}: {both}", flush=True)
                    spec = config.layers[0].mlp
                    assert isinstance(spec, Experts)
                    of, active = spec.router.experts, spec.router.active
                    chance = of * (1 - (1 - active / of) ** batch)
                    means = (f"{sum(one) / len(counts):.1f}" for one in zip(*counts, strict=True))
                    table.writerow(
                        (
                            shape,
                            name,
                            "with" if options.with_mean else "without",
                            len(counts),
                            batch,
                            options.prompt,
                            of,
                            active,
                            f"{chance:.1f}",
                            *means,
                        )
                    )
                    file.flush()


if __name__ == "__main__":
    main()
