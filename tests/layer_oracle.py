"""Batches for the parts of a layer on GPUs, and what they give in float64: for the interpreter and for a card."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isobit.formats.caches import AUTO, CacheFormat, known_by
from isobit.formats.codec import decode
from isobit.kernels.cached import Cached, Part, rounded, unpacked
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences


@dataclass(frozen=True)
class Batch:
    """One call of an attention: its arguments, in order behind the spec."""

    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    keys: Tensor
    values: Tensor
    sequences: Sequences
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    form: CacheFormat = AUTO
    key_groups: Tensor | None = None
    value_groups: Tensor | None = None
    factors: Tensor | None = None

    @property
    def cached(self) -> Cached:
        return Cached(
            self.keys, self.values, self.key_scales, self.value_scales, self.form, self.key_groups, self.value_groups
        )

    @property
    def arguments(self) -> tuple[Tensor | Sequences | Cached | None, ...]:
        return self.q, self.k, self.v, self.cos, self.sin, self.cached, self.sequences, self.factors


def batch(
    spec: AttentionSpec, sizes: list[tuple[int, int]], block: int, dtype: torch.dtype, seed: int, device: str = "cpu",
    columns: int | None = None, kv: str = "",
) -> Batch:  # fmt: skip
    """A batch of sequences of (new tokens, length), the blocks of the cache dealt out at random; the rest of it NaN.

    A length of 0 is padding: one token that is stored nowhere. ``kv``: the cache's format as ``CacheFormat.kv`` has it.
    """
    rng = torch.Generator().manual_seed(seed)
    columns = columns or max(1, max(-(-length // block) for _, length in sizes))
    blocks = sum(-(-length // block) for _, length in sizes) + 3
    deal = torch.randperm(blocks, generator=rng).tolist()
    table = torch.zeros(len(sizes), columns, dtype=torch.int32)
    cache = [torch.full((blocks, spec.kv_heads, block, spec.dim), float("nan")) for _ in range(2)]
    slots: list[int] = []
    for b, (new, length) in enumerate(sizes):
        own = [deal.pop() for _ in range(-(-length // block))]
        table[b, : len(own)] = torch.tensor(own, dtype=torch.int32)
        for position in range(length):
            place = own[position // block], slice(None), position % block
            if position < length - new:
                for part in cache:
                    part[place] = torch.randn(spec.kv_heads, spec.dim, generator=rng)
            else:
                slots.append(own[position // block] * block + position % block)
        slots += [-1] * (new if length == 0 else 0)
    tokens = sum(new for new, _ in sizes)
    widths = (spec.heads, spec.kv_heads, spec.kv_heads)
    q, k, v = (torch.randn(tokens, heads * spec.dim, generator=rng) for heads in widths)
    angles = torch.randn(tokens, spec.rotated // 2, generator=rng).repeat(1, 2)
    starts = torch.tensor([0, *(new for new, _ in sizes)]).cumsum(0)
    sequences = Sequences(
        starts.int().to(device), torch.tensor([length for _, length in sizes]).int().to(device), table.to(device),
        torch.tensor(slots).to(device), block, max(new for new, _ in sizes), max(length for _, length in sizes),
    )  # fmt: skip
    floats = (part.to(device, dtype) for part in (q, k, v, angles.cos(), angles.sin(), *cache))
    factors = (torch.rand(tokens, generator=rng) + 0.5).to(device) if spec.scaled else None
    given = Batch(*floats, sequences, factors=factors)
    return given if not kv else _as_codes(given, known_by(kv))


def _as_codes(given: Batch, form: CacheFormat) -> Batch:
    """The same with what is cached rounded, by the law."""
    keys, values = (rounded(part, form, part.dtype) for part in (given.keys, given.values))
    return replace(
        given, keys=keys.numbers, values=values.numbers, key_scales=keys.scales, value_scales=values.scales,
        key_groups=keys.groups, value_groups=values.groups, form=form,
    )  # fmt: skip


def cached(part: Part, form: CacheFormat) -> Tensor:
    """What is cached, in float64."""
    if not form.element:
        return part.numbers.double().cpu()
    found = decode(unpacked(part.numbers) if form.packed else part.numbers, form.element).double()
    if part.groups is not None and form.group is not None:
        scales = decode(part.groups, form.scale.element).double()
        found = found * scales.repeat_interleave(form.group, dim=-1)[..., : found.shape[-1]]
    return (found if part.scales is None else found * part.scales.double()[..., None]).cpu()


def as_cached(new: Tensor, form: CacheFormat, dtype: torch.dtype) -> Tensor:
    """What a cache gives back of new keys or values in float64."""
    return cached(rounded(new.to(dtype), form, dtype), form)


def _norm(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Of each head, or, where the weight is that wide, of all heads together."""
    if weight is None:
        return x
    if weight.numel() > x.shape[-1]:
        return _norm(x.flatten(1), weight, eps, dtype).view(x.shape)
    normed = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()
    return normed.to(dtype).double()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    rotated = cos.shape[-1]
    x, rest = x[..., :rotated], x[..., rotated:]
    if interleaved:
        cos, sin = (part[:, : rotated // 2].repeat_interleave(2, dim=-1) for part in (cos, sin))
        other = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        other = torch.cat((-second, first), dim=-1)
    return torch.cat((x * cos[:, None] + other * sin[:, None], rest), dim=-1)


def _prepared(spec: AttentionSpec, given: Batch, part: Tensor, norm: Tensor | None) -> Tensor:
    """Queries or keys, normed and rotated."""
    dtype, cos, sin = given.q.dtype, given.cos.double().cpu(), given.sin.double().cpu()
    x, weight = part.double().cpu().view(len(part), -1, spec.dim), _cpu(norm)
    if not spec.norm_behind:
        x = _norm(x, weight, spec.eps, dtype)
    x = _rotate(x, cos, sin, interleaved=spec.interleaved).to(dtype).double()
    return _norm(x, weight, spec.eps, dtype) if spec.norm_behind else x


def attention(spec: AttentionSpec, given: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The result ``[T, heads * dim]``, and keys and values of the new tokens ``[T, kv_heads, dim]``, in float64.

    Queries and keys are rounded to their dtype behind a norm and behind the rotation, as the kernels say.
    """
    dtype = given.q.dtype
    keys, values = (cached(part, given.form) for part in given.cached.parts)
    v = given.v.double().cpu().view(len(given.v), -1, spec.dim)
    q, k = _prepared(spec, given, given.q, spec.q_norm), _prepared(spec, given, given.k, spec.k_norm)
    if given.factors is not None:
        q = (q * given.factors.double().cpu()[:, None, None]).to(dtype).double()
    k, v = as_cached(k, given.form, dtype), as_cached(v, given.form, dtype)
    out = torch.zeros_like(q)
    starts, lengths, table = (
        part.tolist() for part in (given.sequences.starts, given.sequences.lengths, given.sequences.table)
    )
    block = given.sequences.block
    for b, length in enumerate(lengths):
        new = slice(starts[b], starts[b + 1])
        count = new.stop - new.start
        if length == 0 or count == 0:
            continue
        places = [(table[b][position // block], position % block) for position in range(length - count)]
        ids, rows = (torch.tensor(part, dtype=torch.int64) for part in zip(*places, strict=True)) if places else (
            torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        )  # fmt: skip
        all_keys, all_values = torch.cat((keys[ids, :, rows], k[new])), torch.cat((values[ids, :, rows], v[new]))
        position, key = torch.arange(length - count, length)[:, None], torch.arange(length)[None, :]
        hidden = key > position
        if spec.window is not None:
            hidden |= key <= position - spec.window
        if spec.chunk is not None:
            hidden |= key < position // spec.chunk * spec.chunk
        group = spec.heads // spec.kv_heads
        scores = torch.einsum("thd,khd->htk", q[new], all_keys.repeat_interleave(group, 1)) * spec.factor
        if spec.softcap is not None:
            scores = spec.softcap * (scores / spec.softcap).tanh()
        scores = scores.masked_fill(hidden, float("-inf"))
        if spec.sinks is not None:
            sink = spec.sinks.double().cpu()[:, None, None].expand(-1, count, 1)
            scores = torch.cat((scores, sink), dim=-1)
        weights = scores.softmax(-1)[..., :length]
        out[new] = torch.einsum("htk,khd->thd", weights, all_values.repeat_interleave(group, 1))
    return out.flatten(1), k, v


def _cpu(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.cpu()


def stored(given: Batch, cache: Tensor) -> Tensor:
    """What a cache holds of the new tokens that have a slot: ``[stored, kv_heads, dim]``."""
    slots, block = given.sequences.slots, given.sequences.block
    slots = slots[slots >= 0]
    return cache[slots // block, :, slots % block]


def error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm; infinite where something is not finite."""
    found = found.double().cpu()
    return float((found - wanted).norm() / wanted.norm()) if bool(found.isfinite().all()) else float("inf")
