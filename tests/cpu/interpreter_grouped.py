"""Attention over caches whose groups share a scale, in Triton's interpreter: a program that prints a result a line.

Run with TRITON_INTERPRET=1; with "thin" one of each kind, else all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import interpreted_bfloat16
import latent_oracle
import layer_oracle as oracle
import torch

from isobit.kernels.cached import rounded
from isobit.kernels.gpu import attending
from isobit.kernels.gpu.latent import GpuLatent
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.heads import AttentionSpec
from isobit.targets.table import target

MACHINE = Machine.imagined(target("sm_86"))
FORMATS = ("mxfp8", "mxfp4", "nvfp4")

# Formats, sequences as (new tokens, length; 0: padding), tokens of a block. Parts of the few have 128 keys.
ATTENTIONS: dict[str, tuple[AttentionSpec, tuple[str, ...], list[tuple[int, int]], int]] = {
    "thin": (AttentionSpec(2, 1, 64), FORMATS, [(1, 40), (1, 0), (9, 12)], 32),
    "decoding": (AttentionSpec(4, 2, 64), FORMATS, [(1, 600), (1, 5), (1, 0), (2, 257)], 32),
    "each its own": (AttentionSpec(2, 2, 128), ("mxfp4", "nvfp4"), [(1, 130), (70, 90)], 16),
    "window, cap, norms": (
        AttentionSpec(4, 2, 64, window=40, softcap=5.0, scale=0.3, q_norm=torch.linspace(0.5, 1.5, 64),
                      k_norm=torch.linspace(0.5, 1.5, 64), eps=1e-5),
        FORMATS, [(1, 300), (70, 190), (33, 33)], 16,
    ),
    "sinks, partial rope": (
        AttentionSpec(6, 2, 32, rope_dims=8, interleaved=True, sinks=torch.linspace(-3, 3, 6)), ("mxfp8", "nvfp4"),
        [(1, 70), (20, 40)], 16,
    ),
    "80": (AttentionSpec(2, 1, 80), ("mxfp8",), [(1, 30), (20, 20)], 128),
    "256": (AttentionSpec(2, 1, 256), ("mxfp4", "nvfp4"), [(1, 30), (20, 20)], 64),
}  # fmt: skip
# Heads, plain, rotated, value, rank.
LATENTS: dict[str, tuple[tuple[int, int, int, int, int], tuple[str, ...], list[tuple[int, int]]]] = {
    "thin": ((2, 16, 64, 16, 64), FORMATS, [(1, 20), (1, 0), (3, 9)]),
    "wide": ((3, 16, 64, 16, 128), FORMATS, [(1, 300), (5, 40)]),
    "narrow": ((3, 16, 32, 16, 96), ("mxfp8",), [(1, 20), (5, 9)]),
}


def layer(*, alike: bool = False) -> GpuLayer:
    return GpuLayer(MACHINE, Workspace(torch.device("cpu")), alike=alike)


def attention(name: str, dtype: torch.dtype, kv: str) -> Iterator[tuple[str, float]]:
    """What is stored are the bits of the law, and what is read is what they stand for."""
    spec, _, sizes, block = ATTENTIONS[name]
    given, plain = (oracle.batch(spec, sizes, block, dtype, 1, kv=one) for one in (kv, ""))
    uneven(given)
    uneven(plain)
    wanted, _, _ = oracle.attention(spec, given)
    found = layer().attention(spec, *given.arguments)  # type: ignore[arg-type]
    yield f"result {dtype} heads {kv} {name}", oracle.error(found, wanted)
    real = given.sequences.slots >= 0
    yield f"same: padding of heads {kv} {dtype} {name}", float(bool(found[~real].any()))
    with apart():
        layer().rope_append(spec, *plain.arguments)  # type: ignore[arg-type]
    for what, held, numbers in zip(("keys", "values"), given.cached.parts, (plain.keys, plain.values), strict=True):
        law = rounded(oracle.stored(plain, numbers), given.form, dtype)
        same = all(
            torch.equal(oracle.stored(given, part), one) for part, one in zip(held.tensors, law.tensors, strict=True)
        )
        yield f"same: {what} {kv} {dtype} {name}", float(not same)


@contextmanager
def apart() -> Iterator[None]:
    """Norms and rotations by the kernel that stores scales of groups: another one may round to the other side."""
    usual, attending._is_rare = attending._is_rare, lambda spec: True
    yield
    attending._is_rare = usual


def uneven(given: oracle.Batch) -> None:
    """New keys and values of which some groups are much larger than others, and some are zeros."""
    size = given.v.shape[1]
    scales = 2.0 ** torch.linspace(-6, 6, size)[torch.randperm(size, generator=torch.Generator().manual_seed(9))]
    given.v[::2] = (given.v[::2].float() * scales).to(given.v.dtype)
    given.v[1::3, : size // 2] = 0.0


def extremes(kv: str, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Values at the ends of the range, at edges of scales, zeros of both signs, infinities and NaN: the law's bits."""
    spec, dim = AttentionSpec(1, 1, 64), 64
    tiny, top = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    given = oracle.batch(spec, [(11, 11)], 16, dtype, 3, kv=kv)
    v = given.v
    v[0], v[1], v[2] = 0.0, -0.0, tiny
    v[3], v[4], v[5] = top, -top / 3, v[5] * tiny
    v[6, 5], v[7, 40], v[8, 3] = float("nan"), float("inf"), float("-inf")
    v[9] = torch.tensor([1.75, 1.75 - 2**-7, 1.0, 0.25, 0.75, 2.5, 5.0, -0.0]).repeat(dim // 8)
    v[10] = torch.linspace(-7, 7, dim).to(dtype)
    layer().rope_append(spec, *given.arguments)  # type: ignore[arg-type]
    law = rounded(v.view(-1, 1, dim), given.form, dtype)
    for part, wanted in zip(given.cached.parts[1].tensors, law.tensors, strict=True):
        found = oracle.stored(given, part)
        same = torch.equal(found.nan_to_num(-1.0), wanted.nan_to_num(-1.0))
        yield f"same: extremes {kv} {dtype} {tuple(wanted.shape)}", float(not same)


def latent(name: str, dtype: torch.dtype, kv: str) -> Iterator[tuple[str, float]]:
    sizes, _, members = LATENTS[name]
    spec = latent_oracle.spec(*sizes, dtype)
    given, plain = (latent_oracle.batch(spec, members, 32, dtype, 1, kv=one) for one in (kv, ""))
    kernels = GpuLatent(MACHINE, Workspace(torch.device("cpu")))
    wanted, _, _ = latent_oracle.attention(spec, given)
    yield f"result {dtype} latent {kv} {name}", oracle.error(kernels.latent(spec, *given), wanted)
    kernels.latent(spec, *plain)
    sequences = given[-1]
    for what, held, numbers in zip(("latents", "turned"), given[4].parts, plain[4].tensors, strict=True):
        law = rounded(latent_oracle.stored(sequences, numbers), given[4].form, dtype)
        same = all(
            torch.equal(latent_oracle.stored(sequences, part), one)
            for part, one in zip(held.tensors, law.tensors, strict=True)
        )
        yield f"same: {what} {kv} {dtype} {name}", float(not same)


def alike(kv: str) -> Iterator[tuple[str, float]]:
    """A token alone and in a prompt, where its bits must not depend on that."""
    spec, made = AttentionSpec(2, 1, 64, window=100, sinks=torch.tensor([0.3, 4.0])), layer(alike=True)
    for dtype in (torch.float16, torch.bfloat16):
        given = oracle.batch(spec, [(1, 0), (270, 270)], 32, dtype, 2, kv=kv)
        together = made.attention(spec, *given.arguments)  # type: ignore[arg-type]
        yield f"result {dtype} alike {kv}", oracle.error(together, oracle.attention(spec, given)[0])
        for position in (3, 64, 255, 256, 269):
            own = slice(1 + position, 2 + position)
            one = replace(
                given.sequences, starts=torch.tensor([0, 1]).int(), lengths=torch.tensor([position + 1]).int(),
                table=given.sequences.table[1:2], slots=given.sequences.slots[own], most_new=1, most=position + 1,
            )  # fmt: skip
            parts = (part[own] for part in (given.q, given.k, given.v, given.cos, given.sin))
            found = made.attention(spec, *parts, given.cached, one)
            yield f"same: alike {kv} {dtype} {position}", float(not torch.equal(found, together[own]))


def thin() -> Iterator[tuple[str, float]]:
    """One of each kind."""
    for kv in FORMATS:
        yield from attention("thin", torch.bfloat16, kv)
        yield from latent("thin", torch.bfloat16, kv)
        yield from extremes(kv, torch.bfloat16)
    yield from attention("thin", torch.float16, "mxfp4")


def everything() -> Iterator[tuple[str, float]]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for name, (_, formats, *_) in ATTENTIONS.items():
            for kv in formats:
                yield from attention(name, dtype, kv)
        for name, (_, formats, _) in LATENTS.items():
            for kv in formats:
                yield from latent(name, dtype, kv)
        for kv in FORMATS:
            yield from extremes(kv, dtype)
    for kv in FORMATS:
        yield from alike(kv)


if __name__ == "__main__":
    interpreted_bfloat16.teach()
    for result in thin() if sys.argv[1:] == ["thin"] else everything():
        print(json.dumps(result), flush=True)
