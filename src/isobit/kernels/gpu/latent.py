"""Latent attention of a decoder layer on a GPU (``triton/attention_latent.py``), absorbed for any number of tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.formats.table import element
from isobit.kernels.cached import Cached
from isobit.kernels.gpu import caching
from isobit.kernels.gpu import latent_tiles as tiles
from isobit.kernels.gpu.latent_tiles import LatentShape, ProductShape
from isobit.kernels.gpu.launch import interpreting
from isobit.kernels.gpu.layer_tiles import HEADS_AT_ONCE, late
from isobit.kernels.gpu.starter import Starter, name_of, rows_of
from isobit.kernels.latent import LatentSpec
from isobit.kernels.sequences import Sequences

_LOG2_E = math.log2(math.e)
_KERNELS = "attention_latent"


class GpuLatent(Starter):
    """Latent attention of a model's layers on one machine; see :class:`isobit.kernels.gpu.layer.GpuLayer`."""

    def latent(
        self, spec: LatentSpec, q: Tensor, kv: Tensor, cos: Tensor, sin: Tensor, held: Cached, sequences: Sequences
    ) -> Tensor:
        """Norms latents, rotates, stores, and lets each token attend to its sequence.

        What goes to the latents and what is found there are values of the activations' dtype.

        Args:
            spec: the layer's.
            q: ``[T, heads * (plain + rotated)]``; rows may be parts of longer ones, as of kv.
            kv: ``[T, rank + rotated]``.
            cos, sin: ``[T, rotated]`` of each token's position, by halves, of any floating-point dtype.
            held: the cache: latents and rotated keys in the dtype of q, or codes.
            sequences: where the tokens belong.

        Returns:
            ``[T, heads * value]``; zeros for tokens of sequences of length 0.

        Raises:
            FormatError: a tensor has another shape or dtype.
        """
        self._check_latent(spec, q, kv, cos, sin, held, sequences)
        tokens = q.shape[0]
        if tokens == 0:
            return q.new_empty(0, spec.heads * spec.value)
        shape = self.shape(spec, q.dtype, held, sequences, cos.dtype, tokens)
        q, kv = rows_of(q), rows_of(kv)
        turned = self._append(shape, spec, q, kv, cos, sin, held, sequences)
        query = self._product(shape, spec, q, (q.stride(0), spec.query), back=False)
        found = self.over_latents(shape, spec, query, turned, held, sequences)
        return self._product(shape, spec, found, (spec.heads * spec.rank, spec.rank), back=True).flatten(1)

    def shape(
        self, spec: LatentSpec, dtype: torch.dtype, held: Cached, sequences: Sequences, table: torch.dtype, tokens: int
    ) -> LatentShape:
        """What the kernels of a call depend on; ``table`` is the dtype of cosines and sines."""
        return LatentShape(
            name_of(dtype), spec.heads, spec.plain, spec.rotated, spec.value, spec.rank, spec.interleaved,
            sequences.block, sequences.table.shape[1], self.alike, caching.stored_as(held), name_of(table),
            name_of(spec.up.dtype), late(tokens),
        )  # fmt: skip

    def _append(
        self, shape: LatentShape, spec: LatentSpec, q: Tensor, kv: Tensor, cos: Tensor, sin: Tensor, held: Cached,
        sequences: Sequences,
    ) -> Tensor:  # fmt: skip
        """The rotated parts of queries ``[T, heads, rotated]``; what is cached of the tokens is then in the cache."""
        tokens = q.shape[0]
        turned = q.new_empty(tokens, spec.heads, spec.rotated)
        kernel = self.kernel("latent_append:latent_append", tiles.append, shape)
        kernel(
            (tokens, -(-spec.heads // HEADS_AT_ONCE) + 1), q=q, kv=kv, cos=cos.contiguous(), sin=sin.contiguous(),
            weight=spec.norm.weight, slots=sequences.slots, turned=turned, **self._latents(held),
            stride_q=q.stride(0), stride_kv=kv.stride(0), eps=spec.norm.eps,
            qmax=element(held.element).max if held.element else 0.0,
        )  # fmt: skip
        return turned

    def _product(
        self, shape: LatentShape, spec: LatentSpec, x: Tensor, strides: tuple[int, int], *, back: bool
    ) -> Tensor:
        """Heads ``[T, heads, ...]`` by the matrices that take them to the latents, or from there."""
        tokens = x.shape[0]
        w, outputs = (spec.up[:, spec.plain :], spec.value) if back else (spec.up, spec.rank)
        y = x.new_empty(tokens, spec.heads, outputs)
        kernel = self.kernel(
            "latent_product:latent_product", tiles.product, ProductShape(shape, back, tokens > tiles.FEW_TOKENS)
        )
        constants = kernel.config.constexprs
        tile_n, tile_m = int(constants["BLOCK_N"] or 1), int(constants["BLOCK_M"] or 1)
        kernel(
            (-(-outputs // tile_n), spec.heads, -(-tokens // tile_m)), x=x, w=w, y=y, tokens=tokens,
            stride_t=strides[0], stride_h=strides[1], stride_w=spec.up.stride(0),
        )  # fmt: skip
        return y

    def over_latents(
        self, shape: LatentShape, spec: LatentSpec, query: Tensor, turned: Tensor, held: Cached, sequences: Sequences
    ) -> Tensor:
        """What heads find in the latents ``[T, heads, rank]``, of queries that were taken there, like that."""
        tokens, count = query.shape[0], sequences.lengths.shape[0]
        out = torch.empty_like(query)
        arguments: dict[str, Any] = {
            "q": query, "turned": turned, **self._latents(held), "starts": sequences.starts,
            "lengths": sequences.lengths, "table": sequences.table, "out": out, "columns": sequences.table.shape[1],
            "block": sequences.block, "factor": spec.scale * _LOG2_E,
        }  # fmt: skip
        if sequences.least_new <= shape.few and (count > 1 or tokens <= shape.few):  # one sequence has all tokens
            self._few(shape, arguments, count, sequences.most)
        if sequences.most_new > shape.few and (count > 1 or tokens > shape.few):
            kernel = self.kernel(f"{_KERNELS}:latent_many", tiles.many, shape)
            rows, apart = (int(kernel.config.constexprs[name] or 0) for name in ("ROWS", "APART"))
            kernel((tokens * spec.heads // rows + count, 1 + apart), sequences=count, **arguments)
        return out

    def _few(self, shape: LatentShape, arguments: dict[str, Any], count: int, most: int) -> None:
        parts = tiles.parts_of(shape.heads, most)
        work = stats = self.unused(torch.float32, arguments["q"].device)
        if parts > 1:
            held = count * shape.heads * parts
            room = self.workspace.take((held * (shape.width + 2),), torch.float32)
            work, stats = room[: held * shape.width], room[held * shape.width :]
        given = {**arguments, "work": work, "stats": stats, "room": parts}
        kernel = self.kernel(f"{_KERNELS}:latent_few", tiles.few, shape)
        rows, apart = (int(kernel.config.constexprs[name] or 0) for name in ("ROWS", "APART"))
        tall = -(-shape.heads // rows) * (1 + apart)
        kernel((tiles.programs_of(parts, count * tall, self.machine.multiprocessors), tall, count), **given)
        if parts > 1:
            kernel = self.kernel(f"{_KERNELS}:latent_merge", tiles.merge, shape)
            kernel((shape.heads, count), **given)

    def _latents(self, held: Cached) -> dict[str, Tensor]:
        """The arguments of a kernel that say what a cache holds."""
        return caching.arguments(held, ("latents", "keys"), self.unused(torch.float32, held.keys.device))

    def reserve_latent(self, spec: LatentSpec, sequences: int, most: int) -> None:
        """Says that latent attention will be asked for so many sequences of up to ``most`` tokens, before the first
        graph is recorded."""
        if not self.alike:
            self.workspace.reserve(tiles.arena(spec.heads, spec.rank, sequences, most))

    def _check_latent(
        self, spec: LatentSpec, q: Tensor, kv: Tensor, cos: Tensor, sin: Tensor, held: Cached, sequences: Sequences
    ) -> None:
        tokens, cache = q.shape[0], (held.keys.shape[0], 1, sequences.block)
        dtype = "" if interpreting() else name_of(q.dtype)  # which has registers enough
        stored = caching.stored_as(held)
        if why := tiles.unsupported(spec.rotated, spec.rank, dtype, self.machine.target, stored):
            raise FormatError(f"GPU latent attention {why}")
        for what, part, wanted in (
            ("queries", q, (tokens, spec.heads * spec.query)), ("latents", kv, (tokens, spec.rank + spec.rotated)),
            ("cosines", cos, (tokens, spec.rotated)), ("sines", sin, (tokens, spec.rotated)),
            ("slots", sequences.slots, (tokens,)), ("the norm of latents", spec.norm.weight, (spec.rank,)),
            ("the heads' matrices", spec.up, (spec.heads, spec.plain + spec.value, spec.rank)),
        ):  # fmt: skip
            if tuple(part.shape) != wanted:
                raise FormatError(f"{what} of a latent attention: {list(wanted)}, not {list(part.shape)}")
        codes = caching.dtype_of(held, q.dtype)
        if kv.dtype != q.dtype or cos.dtype != sin.dtype or {held.keys.dtype, held.values.dtype} != {codes}:
            raise FormatError(
                f"queries, latents and their cache are of one dtype, which is {q.dtype} of queries, or {codes} of what"
                f" is cached"
            )
        caching.check(held, ((*cache, spec.rank), (*cache, spec.rotated)), ("cached latents", "cached keys"))
        numbers = sequences.starts, sequences.lengths, sequences.table
        if {part.dtype for part in numbers} != {torch.int32} or sequences.slots.dtype != torch.int64:
            raise FormatError("starts, lengths and the table of blocks are int32, slots int64")
        if not all(part.is_contiguous() for part in (*numbers, sequences.slots, *held.tensors, spec.up)):
            raise FormatError("a latent attention's matrices, cache, and what says whose tokens are, are contiguous")
        if not spec.norm.plain or spec.norm.weight.dtype != torch.float32 or spec.scale <= 0:
            raise FormatError("a latent attention has an RMS norm in float32 without bias, and a positive scale")
