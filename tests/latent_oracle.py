"""Batches of latent attention on GPUs, and what they give in float64: for the interpreter and for a card."""

from __future__ import annotations

from dataclasses import replace

import layer_oracle as plain
import torch
from torch import Tensor

from isobit.kernels.cached import Cached
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.latent import LatentSpec, halves
from isobit.kernels.norm import NormSpec
from isobit.kernels.sequences import Sequences

Given = tuple[Tensor, Tensor, Tensor, Tensor, Cached, Sequences]


def spec(
    heads: int, plain: int, rotated: int, value: int, rank: int, dtype: torch.dtype = torch.float32,
    device: str = "cpu", *, interleaved: bool = True,
) -> LatentSpec:  # fmt: skip
    """Of random matrices whose results are about as large as what goes in."""
    rng = torch.Generator().manual_seed(heads)
    up = torch.randn(heads, plain + value, rank, generator=rng) * rank**-0.5
    norm = NormSpec((torch.rand(rank, generator=rng) + 0.5).to(device), 1e-6)
    scale = (plain + rotated) ** -0.5
    return LatentSpec(heads, plain, rotated, value, scale, interleaved, norm, up.to(device, dtype))


def batch(
    of: LatentSpec, sizes: list[tuple[int, int]], block: int, dtype: torch.dtype, seed: int, device: str = "cpu",
    kv: str = "",
) -> Given:  # fmt: skip
    """The arguments of a latent attention; sequences and the cache as ``layer_oracle.batch`` makes them."""
    latents, keys = (
        plain.batch(AttentionSpec(1, 1, width), sizes, block, dtype, seed, device, kv=kv)
        for width in (of.rank, of.rotated)
    )
    tokens, rng = latents.sequences.slots.shape[0], torch.Generator().manual_seed(seed + 1)
    q = torch.randn(tokens, of.heads * of.query, generator=rng)
    kv = torch.randn(tokens, of.rank + of.rotated, generator=rng)
    angles = torch.randn(tokens, of.rotated // 2, generator=rng).repeat(1, 2)
    held = Cached.of(latents.cached.parts[0], keys.cached.parts[0], latents.form)
    q, kv, cos, sin = (part.to(device, dtype) for part in (q, kv, angles.cos(), angles.sin()))
    return q, kv, cos, sin, held, latents.sequences


def attention(of: LatentSpec, given: Given) -> tuple[Tensor, Tensor, Tensor]:
    """(result ``[T, heads * value]``, latents ``[T, rank]``, keys ``[T, rotated]`` of the new tokens) in float64.

    What goes to the latents and what is found there are values of the activations' dtype, as the kernels say.
    """
    q, kv, cos, sin, held, sequences = given
    dtype, up = q.dtype, of.up.double().cpu()
    query = q.double().cpu().view(len(q), of.heads, of.query)
    cosines, sines = (part.double().cpu()[:, None] for part in (cos, sin))

    def turned(x: Tensor) -> Tensor:
        x = halves(x) if of.interleaved else x
        first, second = x.chunk(2, dim=-1)
        return (x * cosines + torch.cat((-second, first), dim=-1) * sines).to(dtype).double()

    new = kv.double().cpu()
    latent = new[:, : of.rank]
    latent = latent * (latent.square().mean(-1, keepdim=True) + of.norm.eps).rsqrt() * of.norm.weight.double().cpu()
    latent, key = latent.to(dtype).double(), turned(new[:, None, of.rank :])[:, 0]
    absorbed = torch.einsum("thp,hpr->thr", query[..., : of.plain], up[:, : of.plain]).to(dtype).double()
    rotated = turned(query[..., of.plain :])
    latents, keys = (plain.cached(part, held.form)[:, 0] for part in held.parts)
    new_latents, new_keys = (plain.as_cached(part, held.form, dtype) for part in (latent, key))
    found = torch.zeros(len(q), of.heads, of.rank, dtype=torch.float64)
    starts, lengths, table = (part.tolist() for part in (sequences.starts, sequences.lengths, sequences.table))
    for b, length in enumerate(lengths):
        own = slice(starts[b], starts[b + 1])
        count = own.stop - own.start
        if length == 0 or count == 0:
            continue
        at = torch.arange(length - count)
        blocks, rows = torch.tensor(table[b])[at // sequences.block], at % sequences.block
        all_latents = torch.cat((latents[blocks, rows], new_latents[own]))
        all_keys = torch.cat((keys[blocks, rows], new_keys[own]))
        scores = torch.einsum("thr,kr->htk", absorbed[own], all_latents)
        scores = (scores + torch.einsum("thr,kr->htk", rotated[own], all_keys)) * of.scale
        hidden = torch.arange(length)[None, :] > torch.arange(length - count, length)[:, None]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        found[own] = torch.einsum("htk,kr->thr", weights, all_latents)
    out = torch.einsum("thr,hvr->thv", found.to(dtype).double(), up[:, of.plain :])
    return out.flatten(1), latent, key


def alone(given: Given, b: int) -> tuple[Given, slice]:
    """Sequence ``b`` of a batch by itself, and which tokens of the batch are its own."""
    q, kv, cos, sin, held, sequences = given
    begin, end = sequences.starts[b : b + 2].tolist()
    own, length = slice(begin, end), int(sequences.lengths[b])
    only = replace(
        sequences, starts=torch.tensor([0, end - begin], dtype=torch.int32, device=q.device),
        lengths=sequences.lengths[b : b + 1], table=sequences.table[b : b + 1], slots=sequences.slots[own],
        most_new=end - begin, most=max(1, length),
    )  # fmt: skip
    return (q[own], kv[own], cos[own], sin[own], held, only), own


def stored(sequences: Sequences, cache: Tensor) -> Tensor:
    """What a cache holds of the new tokens that have a slot: ``[stored, ...]``."""
    slots = sequences.slots[sequences.slots >= 0]
    return cache[slots // sequences.block, 0, slots % sequences.block]


def within(given: Given, begin: int, end: int) -> tuple[Given, slice]:
    """Tokens ``begin`` to ``end - 1`` of the one prompt of a batch, behind those that are cached."""
    q, kv, cos, sin, held, sequences = given
    own, length = slice(begin, end), int(sequences.lengths[0]) - len(q) + end
    only = replace(
        sequences, starts=torch.tensor([0, end - begin], dtype=torch.int32, device=q.device),
        lengths=torch.tensor([length], dtype=torch.int32, device=q.device), slots=sequences.slots[own],
        most_new=end - begin, most=length,
    )  # fmt: skip
    return (q[own], kv[own], cos[own], sin[own], held, only), own
