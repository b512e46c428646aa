"""Latent attention on the CPU kernels (cpp/latent.cpp): absorbed, for one token as for a prompt.

A token gives the bits that it gives alone, however many come with it: sums depend on the sizes and on where keys stand
in a sequence. The law is :mod:`isobit.kernels.latent`.
"""

from __future__ import annotations

import ctypes
from copy import copy
from dataclasses import replace

from torch import Tensor

from isobit.kernels.cached import Cached
from isobit.kernels.checked import check_on_cpu
from isobit.kernels.cpu import linear as cpu
from isobit.kernels.cpu import sequences as cpu_sequences
from isobit.kernels.cpu import structs
from isobit.kernels.cpu.layer import LARGEST_HEAD, held_struct
from isobit.kernels.cpu.library import check, library
from isobit.kernels.latent import LatentSpec
from isobit.kernels.norm import NormSpec
from isobit.kernels.sequences import Sequences


def unsupported(plain: int, rotated: int, rank: int) -> str | None:
    """Why the kernels do not run latent attention of these sizes, or None."""
    if rank > LARGEST_HEAD or rotated > LARGEST_HEAD:
        return f"has latents of up to {LARGEST_HEAD} dimensions, not {max(rank, rotated)}"
    if rotated < 2 or rotated % 2 or plain < 1:
        return f"has queries of dimensions without a position and an even number with one, not {plain} and {rotated}"
    return None


class CpuLatent:
    """Latent attention bound to the kernels.

    The half of ``up`` that makes keys is copied, its matrices transposed: queries are multiplied by them from the other
    side. Values are made where ``up`` lies.

    Args:
        spec: the attention, on the CPU.

    Attributes:
        spec: the attention.
        struct: isobit_latent.

    Raises:
        FormatError: a tensor has another shape, dtype or place.
        Unsupported: ``up`` is of a dtype that the kernels do not know.
    """

    def __init__(self, spec: LatentSpec) -> None:
        self.spec = replace(spec)  # one of its own: who keeps bound attention by its spec would keep that for ever
        heads, rank, made = spec.heads, spec.rank, spec.plain + spec.value
        up = spec.up.contiguous()
        turned = up[:, : spec.plain].transpose(1, 2).contiguous().view(heads * rank, spec.plain)
        keys = cpu.bind(turned, None, None, None, alike=True).first_rows(rank, None)
        values = cpu.bind(up.view(heads * made, rank), None, None, None, alike=True).first_rows(spec.value, None)
        values.struct.codes += spec.plain * values.struct.row_bytes
        self._kept: tuple[object, ...] = (up, turned, keys, values)  # memory that the struct points to
        self.struct = structs.Latent(
            None, structs.Norm(), structs.norm_struct(spec.norm, rank, "the norm of latents"),
            structs.Grouped(keys.struct, heads, rank, None), structs.Grouped(values.struct, heads, made, None),
            spec.plain, spec.rotated,
        )  # fmt: skip
        self._call = library().isobit_cpu_latent
        self._call.argtypes = (ctypes.POINTER(structs.LatentAttention),)

    def behind(self, q_a: cpu.CpuLinear, norm: NormSpec) -> CpuLatent:
        """The same for a layer in one call, whose queries are made of a short vector of their own.

        Args:
            q_a: what makes that vector.
            norm: of it.

        Raises:
            FormatError: the norm is of another width.
        """
        found = copy(self)
        found.struct = structs.Latent.from_buffer_copy(self.struct)
        found.struct.q_a, found.struct.q_norm = q_a.address, structs.norm_struct(norm, q_a.n, "the norm of queries")
        found._kept = (*self._kept, q_a, norm)
        return found

    def __call__(self, q: Tensor, kv: Tensor, cos: Tensor, sin: Tensor, held: Cached, sequences: Sequences) -> Tensor:
        """Norms latents, rotates, stores, and lets each token attend to its sequence.

        Args:
            q: float32 ``[T, heads * (plain + rotated)]``; overwritten.
            kv: float32 ``[T, rank + rotated]``.
            cos, sin: float32 ``[T, rotated]``, by halves.
            held: the cache, holding what came before these tokens.
            sequences: whose the tokens are; see :func:`isobit.kernels.cpu.layer.attention`.

        Returns:
            float32 ``[T, heads * value]``; zeros where a token is padding.

        Raises:
            FormatError: a tensor has another shape, dtype or place.
            IsobitError: the sequences do not fit the tokens or the cache; nothing has been written.
        """
        spec, tokens, blocks = self.spec, q.shape[0], held.keys.shape[0]
        for what, part, width in (
            ("queries", q, spec.heads * spec.query), ("latents", kv, spec.rank + spec.rotated),
            ("cosines", cos, spec.rotated), ("sines", sin, spec.rotated),
        ):  # fmt: skip
            check_on_cpu(what, part, (tokens, width))
        kept = held_struct(held, (blocks, 1, sequences.block, spec.rank), spec.rotated)
        out = q.new_empty(tokens, spec.heads * spec.value)
        arguments = structs.LatentAttention(
            cpu_sequences.struct(sequences, tokens, blocks), ctypes.addressof(self.struct), spec.heads, spec.value,
            kv.shape[1], out.shape[1], cos.data_ptr(), sin.data_ptr(), q.data_ptr(), kv.data_ptr(), kept,
            out.data_ptr(), spec.scale, int(spec.interleaved),
        )  # fmt: skip
        check(self._call(ctypes.byref(arguments)))
        return out
