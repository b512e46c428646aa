"""The attention of a decoder layer on a GPU: what stands before it, and itself (``triton/``)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.kernels.cached import Cached
from isobit.kernels.gpu import attention_alike_tiles as alike_tiles
from isobit.kernels.gpu import caching, one_tiles
from isobit.kernels.gpu import layer_tiles as tiles
from isobit.kernels.gpu.ahead_tiles import attention_ahead, misfit_ahead
from isobit.kernels.gpu.caching import stored_as
from isobit.kernels.gpu.grouped_tiles import is_grouped, unread
from isobit.kernels.gpu.launch import interpreting
from isobit.kernels.gpu.layer_tiles import AttentionShape, NormOf, RareRope, RopeShape
from isobit.kernels.gpu.starter import Starter, name_of, rows_of
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences

_LOG2_E = math.log2(math.e)


class GpuAttention(Starter):
    """Attention of a model's layers on one machine; see :class:`isobit.kernels.gpu.layer.GpuLayer`."""

    def attention(
        self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, held: Cached,
        sequences: Sequences, factors: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Norms and rotates queries and keys, stores keys and values, and attends to all of the cache.

        Args:
            spec: the layer's.
            q: ``[T, heads * dim]``; rows may be parts of longer ones, as of k and v.
            k, v: ``[T, kv_heads * dim]``.
            cos, sin: ``[T, rotated]`` of each token's position, of any floating-point dtype.
            held: the cache: keys and values in the dtype of q, or codes.
            sequences: where the tokens belong.
            factors: float32 ``[T]``: what queries are multiplied by, where they are scaled.

        Returns:
            ``[T, heads * dim]``; zeros for tokens of sequences of length 0.
        """
        self._check(spec, q, k, v, cos, sin, held, sequences)
        _check_spec(spec, q, factors)
        if q.shape[0] == 0:
            return torch.empty_like(q)
        one = sequences.most_new == 1
        fused = self._shape(spec, q.dtype, held, sequences).fused
        if not (fused and one):
            rotated = self.rope_append(spec, q, k, v, cos, sin, held, sequences, factors)
        out = torch.empty((q.shape[0], spec.heads * spec.dim), dtype=q.dtype, device=q.device)
        if fused and sequences.least_new == 1 and (one or sequences.lengths.shape[0] > 1):  # one has all tokens
            self._attend_one(spec, q, k, v, cos, sin, held, sequences, out)
        return out if fused and one else self._attend_more(spec, rotated, held, sequences, out)

    def rope_append(
        self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, held: Cached,
        sequences: Sequences, factors: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The first part of :meth:`attention`: the rotated queries; keys and values are then in the cache."""
        shape = RopeShape(
            name_of(q.dtype), spec.heads, spec.kv_heads, spec.dim, spec.q_norm is not None, name_of(cos.dtype),
            tiles.late(q.shape[0], alike=self.alike), stored_as(held),
        )  # fmt: skip
        rotated = torch.empty((q.shape[0], spec.heads * spec.dim), dtype=q.dtype, device=q.device)
        arguments = {**self._new(spec, q, k, v, cos, sin, sequences), **self._held(held), "rotated": rotated}
        if not (_is_rare(spec) or is_grouped(shape.element)):
            kernel = self.kernel("rope:rope_append", tiles.rope_append, shape)
        else:
            rare = RareRope(shape, _norm_of(spec), spec.rotated, spec.interleaved, factors is not None)
            kernel = self.kernel("rope:rope_append_any", tiles.rope_append_any, rare)
            unused = self.unused(torch.float32, q.device)
            arguments["q_scale"] = unused if factors is None else factors
            if not spec.rotated:
                arguments |= {"cos": unused, "sin": unused}
        at_once = tiles.HEADS_AT_ONCE
        programs = -(-spec.heads // at_once) + 2 * -(-spec.kv_heads // at_once)
        kernel((q.shape[0], programs), **arguments)
        return rotated

    def attend(self, spec: AttentionSpec, rotated: Tensor, held: Cached, sequences: Sequences) -> Tensor:
        """Attention of queries that are rotated, behind :meth:`rope_append`: any of it, in separate launches."""
        return self._attend_more(spec, rotated, held, sequences, torch.empty_like(rotated), fused=False)

    def _attend_more(
        self,
        spec: AttentionSpec,
        rotated: Tensor,
        held: Cached,
        sequences: Sequences,
        out: Tensor,
        *,
        fused: bool = True,
    ) -> Tensor:
        """Sequences that ``attention_one`` leaves alone; all of them if nothing is ``fused``."""
        tokens, count = rotated.shape[0], sequences.lengths.shape[0]
        shape = self._shape(spec, rotated.dtype, held, sequences)
        shape = shape if fused else replace(shape, fused=False)
        arguments = {"q": rotated, **self._held(held), **self._of(spec, sequences, rotated), "out": out}
        if self.alike and alike_tiles.few_of(shape, self.machine.target):
            self._attend_alike(shape, arguments, count, sequences)
            return out
        some = sequences.least_new <= shape.few and (count > 1 or tokens <= shape.few)  # one sequence has all tokens
        if some and not shape.fused:
            self._attend_few(shape, arguments, count, sequences)
        if sequences.most_new > shape.few and (count > 1 or tokens > shape.few):
            ahead = misfit_ahead(shape, self.machine.target) is None and not interpreting()
            if ahead:
                kernel = self.kernel("attention_ahead:attention_ahead", attention_ahead, shape)
            else:
                kernel = self.kernel("attention_many:attention_many", tiles.attention_many, shape)
            tile = int(kernel.config.constexprs["BLOCK_M"] or 1)
            grid = tokens // tile + count, spec.heads
            kernel(grid[::-1] if ahead else grid, sequences=count, **arguments)
        return out

    def _attend_few(self, shape: AttentionShape, arguments: dict[str, Any], count: int, sequences: Sequences) -> None:
        given, parts, queries = self._parts(shape, arguments, count, sequences)
        programs = tiles.programs_of(parts, count * shape.kv_heads, self.machine.multiprocessors)
        kernel = self.kernel("attention_few:attention_few", tiles.attention_few, shape)
        kernel((programs, shape.kv_heads, count), **given)
        if parts > 1:
            kernel = self.kernel("attention_few:attention_merge", tiles.attention_merge, shape)
            kernel((queries, shape.kv_heads, count), **given)

    def _attend_alike(self, shape: AttentionShape, arguments: dict[str, Any], count: int, sequences: Sequences) -> None:
        """The same for a model whose bits do not depend on how many tokens are new."""
        few, tokens = alike_tiles.few_of(shape, self.machine.target), arguments["q"].shape[0]
        if sequences.least_new <= few and (count > 1 or tokens <= few):
            parts, queries = _alike_room(shape, few, sequences.most, sequences.most_new, arguments["window"])
            work = stats = self.unused(torch.float32, arguments["q"].device)
            if parts > 1:
                held = count * shape.kv_heads * parts * queries
                room = self.workspace.take((held * (shape.width + 2),), torch.float32)
                work, stats = room[: held * shape.width], room[held * shape.width :]
            given = {**arguments, "work": work, "stats": stats, "room": parts, "queries": queries}
            programs = tiles.programs_of(parts, count * shape.kv_heads, self.machine.multiprocessors)
            kernel = self.kernel("attention_alike:attention_alike_few", alike_tiles.attention_alike_few, shape)
            kernel((programs, shape.kv_heads, count), **given)
            if parts > 1:
                kernel = self.kernel("attention_alike:attention_alike_merge", alike_tiles.attention_alike_merge, shape)
                kernel((queries, shape.kv_heads, count), **given)
        if sequences.most_new > few and (count > 1 or tokens > few):
            kernel = self.kernel("attention_alike:attention_alike_many", alike_tiles.attention_alike_many, shape)
            tile = int(kernel.config.constexprs["BLOCK_M"] or 1)
            kernel((tokens // tile + count, shape.heads), sequences=count, **arguments)

    def _attend_one(
        self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, held: Cached,
        sequences: Sequences, out: Tensor,
    ) -> None:  # fmt: skip
        """Sequences of one new token: what :meth:`rope_append` does for them, and their attention."""
        shape, count = self._shape(spec, q.dtype, held, sequences), sequences.lengths.shape[0]
        arguments = {
            **self._new(spec, q, k, v, cos, sin, sequences), **self._held(held), **self._of(spec, sequences, q),
            "out": out,
        }  # fmt: skip
        given, parts, _ = self._parts(shape, arguments, count, sequences)
        rope = RopeShape(
            shape.dtype, spec.heads, spec.kv_heads, spec.dim, spec.q_norm is not None, name_of(cos.dtype),
            element=shape.element,
        )  # fmt: skip
        multiprocessors = self.machine.multiprocessors
        one = one_tiles.spread(shape, rope, parts, count, multiprocessors)
        programs = tiles.programs_of(parts, count * spec.heads, multiprocessors)
        counters = self.unused(torch.int32, q.device)
        if parts > 1:
            counters = self.workspace.counters(count * spec.heads)
        kernel = self.kernel("attention_one:attention_one", one_tiles.attention_one, one)
        kernel((programs, spec.heads, count), counters=counters, **given)

    def _parts(
        self, shape: AttentionShape, arguments: dict[str, Any], count: int, sequences: Sequences
    ) -> tuple[dict[str, Any], int, int]:
        """The arguments with room for sums of parts; how many parts of a sequence, and queries of each, at most."""
        parts, queries = _room(shape, sequences.most, sequences.most_new, arguments["window"])
        work = stats = self.unused(torch.float32, arguments["q"].device)
        if parts > 1:
            held = count * shape.kv_heads * parts * queries
            room = self.workspace.take((held * (shape.width + 2),), torch.float32)
            work, stats = room[: held * shape.width], room[held * shape.width :]
        return {**arguments, "work": work, "stats": stats, "room": parts, "queries": queries}, parts, queries

    def _new(
        self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, sequences: Sequences
    ) -> dict[str, Any]:
        """The arguments of a kernel that say what is new."""
        unused = self.unused(torch.float32, q.device)
        q, k, v = rows_of(q), rows_of(k), rows_of(v)
        return {
            "q": q, "k": k, "v": v, "cos": cos.contiguous(), "sin": sin.contiguous(),
            "q_norm": unused if spec.q_norm is None else spec.q_norm,
            "k_norm": unused if spec.k_norm is None else spec.k_norm, "slots": sequences.slots,
            "stride_q": q.stride(0), "stride_k": k.stride(0), "stride_v": v.stride(0), "block": sequences.block,
            "eps": spec.eps,
        }  # fmt: skip

    def _shape(self, spec: AttentionSpec, dtype: torch.dtype, held: Cached, sequences: Sequences) -> AttentionShape:
        element = stored_as(held)
        apart = self.alike or _is_rare(spec) or is_grouped(element)
        alone = sequences.most if sequences.most_new == 1 == sequences.lengths.shape[0] else 0
        fused = not apart and one_tiles.fuses(spec.heads, spec.kv_heads, alone)
        return AttentionShape(
            name_of(dtype), spec.heads, spec.kv_heads, spec.dim, spec.window is not None, spec.softcap is not None,
            sequences.block, sequences.table.shape[1], self.alike, element, spec.chunk is not None,
            spec.sinks is not None, fused,
        )  # fmt: skip

    def _of(self, spec: AttentionSpec, sequences: Sequences, like: Tensor) -> dict[str, Any]:
        """The arguments of an attention that say what it is, and which sequences there are."""
        gains = {"gain": 1.0, "factor": spec.factor * _LOG2_E}
        if spec.softcap is not None:
            gains = {"gain": spec.factor / spec.softcap, "factor": spec.softcap * _LOG2_E}
        return {
            "sinks": self.unused(torch.float32, like.device) if spec.sinks is None else spec.sinks,
            "starts": sequences.starts, "lengths": sequences.lengths, "table": sequences.table,
            "columns": sequences.table.shape[1], "block": sequences.block,
            "window": spec.window or spec.chunk or 0, **gains,
        }  # fmt: skip

    def _held(self, held: Cached) -> dict[str, Tensor]:
        """The arguments of a kernel that say what a cache holds."""
        return caching.arguments(held, ("keys", "values"), self.unused(torch.float32, held.keys.device))

    def reserve(self, spec: AttentionSpec, sequences: int, most_new: int, most: int) -> None:
        """Says that attention will be asked for so many sequences, before the first graph is recorded.

        Args:
            spec: a layer's.
            sequences: B at most.
            most_new, most: as in ``Sequences``.
        """
        shape = AttentionShape("float16", spec.heads, spec.kv_heads, spec.dim, alike=self.alike)
        window = spec.window or spec.chunk or 0
        parts, queries = _room(shape, most, most_new, window)
        if self.alike:
            few = alike_tiles.few_of(shape, self.machine.target)
            parts, queries = _alike_room(shape, few, most, most_new, window) if few else (1, 0)
        if parts > 1:
            held = sequences * spec.kv_heads * parts * queries
            self.workspace.reserve(4 * held * (shape.width + 2), sequences * spec.heads)

    def _check(
        self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, held: Cached,
        sequences: Sequences,
    ) -> None:  # fmt: skip
        tokens, shared = q.shape[0], spec.kv_heads * spec.dim
        cache = (held.keys.shape[0], spec.kv_heads, sequences.block, spec.dim)
        if spec.dim > tiles.LARGEST_HEAD or spec.dim % 2:
            raise FormatError(f"GPU attention has even heads of up to {tiles.LARGEST_HEAD} values, not {spec.dim}")
        for what, part, wanted in (
            ("queries", q, (tokens, spec.heads * spec.dim)), ("keys", k, (tokens, shared)),
            ("values", v, (tokens, shared)), ("cosines", cos, (tokens, spec.rotated)),
            ("sines", sin, (tokens, spec.rotated)), ("slots", sequences.slots, (tokens,)),
        ):  # fmt: skip
            if tuple(part.shape) != wanted:
                raise FormatError(f"{what} of an attention: {list(wanted)}, not {list(part.shape)}")
        if why := unread(stored_as(held), spec.dim, self.machine.target):
            raise FormatError(f"GPU attention {why}")
        stored = caching.dtype_of(held, q.dtype)
        cached = {part.dtype for part in (held.keys, held.values)}
        if {k.dtype, v.dtype} != {q.dtype} or cos.dtype != sin.dtype or cached != {stored}:
            raise FormatError(
                f"queries, keys, values and their cache are of one dtype, which is {q.dtype} of queries, or {stored} of"
                f" what is cached"
            )
        caching.check(held, (cache, cache), ("cached keys", "cached values"))
        numbers = sequences.starts, sequences.lengths, sequences.table
        if {part.dtype for part in numbers} != {torch.int32} or sequences.slots.dtype != torch.int64:
            raise FormatError("starts, lengths and the table of blocks are int32, slots int64")
        if not all(part.is_contiguous() for part in (*numbers, sequences.slots)):
            raise FormatError("what says which tokens belong to which sequence is contiguous")
        if spec.factor <= 0 or (spec.softcap is not None and spec.softcap <= 0):
            raise FormatError(f"an attention's scale and cap are positive, not {spec.factor} and {spec.softcap}")


def _room(shape: AttentionShape, most: int, most_new: int, window: int) -> tuple[int, int]:
    """Parts of a sequence of few new tokens, and queries of each, at most."""
    part, parts = (one_tiles.PART, one_tiles.most_parts(shape.heads)) if shape.fused else (tiles.PART, tiles.MOST_PARTS)
    seen = min(most, window + shape.few + part) if window else most
    return tiles.parts_of(seen, parts, part), shape.group * min(shape.few, max(1, most_new))


def _alike_room(shape: AttentionShape, few: int, most: int, most_new: int, window: int) -> tuple[int, int]:
    """The same where parts begin at fixed places: a window may begin and end within one, and takes no more otherwise
    than the same number of tokens at the beginning, where parts are shortest."""
    parts = alike_tiles.parts_of(most)
    if window:
        parts = min(parts, alike_tiles.parts_of(window + few) + 1)
    return parts, shape.group * min(few, max(1, most_new))


def _is_rare(spec: AttentionSpec) -> bool:
    """Whether queries and keys are normed or rotated in another way than the kernel for most families knows."""
    return spec.rotated != spec.dim or spec.interleaved or spec.scaled or _norm_of(spec) not in ("none", "head")


def _norm_of(spec: AttentionSpec) -> NormOf:
    if spec.q_norm is None:
        return "none"
    if spec.norm_behind:
        return "head-behind"
    return "head" if spec.q_norm.numel() == spec.dim else "width"


def _check_spec(spec: AttentionSpec, q: Tensor, factors: Tensor | None) -> None:
    """That an attention is one of those there are."""
    if spec.window is not None and spec.chunk is not None:
        raise FormatError("no GPU attention has a window and chunks")
    if spec.rotated % 2 or not 0 <= spec.rotated <= spec.dim:
        raise FormatError(f"{spec.rotated} of {spec.dim} dimensions cannot be rotated in pairs")
    per_head = spec.norm_behind or _norm_of(spec) != "width"
    for weight, heads in ((spec.q_norm, spec.heads), (spec.k_norm, spec.kv_heads)):
        wanted = spec.dim if per_head else heads * spec.dim
        if weight is not None and (weight.shape != (wanted,) or weight.dtype != torch.float32):
            raise FormatError(f"a norm of queries or keys takes float32 [{wanted}], not {list(weight.shape)}")
    if (spec.q_norm is None) != (spec.k_norm is None):
        raise FormatError("queries and keys are both normed, or neither")
    for what, part, count, is_there in (
        ("sinks", spec.sinks, spec.heads, spec.sinks is not None), ("factors", factors, q.shape[0], spec.scaled)
    ):  # fmt: skip
        wrong = part is not None and (part.shape != (count,) or part.dtype != torch.float32)
        if wrong or (part is not None) != is_there:
            raise FormatError(f"{what} of an attention: float32 [{count}], where it has them")
