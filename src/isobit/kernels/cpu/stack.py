"""All layers of a decoder in one call of the CPU kernels (kernels/cpu/cpp/stack.cpp).

The same kernels as layer by layer, so the same bits. What is saved is the interpreter between them: a step of
decoding has 200 short calls, and each finds its code and objects thrown out of the caches by the weights that have just
streamed through.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isobit.errors import FormatError
from isobit.kernels.cached import Cached
from isobit.kernels.checked import check_on_cpu
from isobit.kernels.cpu import sequences as cpu_sequences
from isobit.kernels.cpu import structs
from isobit.kernels.cpu.experts import CpuMixture, CpuRouter
from isobit.kernels.cpu.latent import CpuLatent
from isobit.kernels.cpu.layer import held_struct
from isobit.kernels.cpu.library import check, library
from isobit.kernels.cpu.linear import CpuLinear
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.norm import NormSpec
from isobit.kernels.sequences import Sequences

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True)
class MlpParts:
    """A feed-forward part.

    Attributes:
        up, down: its linears.
        gate: the third, or None.
        activation: a key of :data:`isobit.kernels.cpu.structs.ACTIVATIONS`.
        limit: of the gate, see :class:`isobit.kernels.grouped.Gating`; None: it has none.
    """

    up: CpuLinear
    down: CpuLinear
    gate: CpuLinear | None = None
    activation: str = "silu"
    limit: float | None = None


@dataclass(frozen=True)
class MixtureParts:
    """A mixture of experts.

    Attributes:
        router, experts: bound.
        shared_gate: float32 ``[hidden]``, of which what the MLP of all tokens gives is multiplied by the sigmoid; or
            None.
    """

    router: CpuRouter
    experts: CpuMixture
    shared_gate: Tensor | None = None


@dataclass(frozen=True)
class LayerParts:
    """What one layer is made of.

    Attributes:
        attention: query, key, value and output projection; of latent attention there is none for values, and that for
            keys makes latents and the rotated part.
        heads: the attention's; of latent attention the cache's one head, as wide as latents.
        mlp: the feed-forward part; of a mixture the expert of all tokens, or None.
        before_attention, before_mlp, after_attention, after_mlp: norms over ``hidden`` of what goes into both parts,
            and of what they give before it is added to the residual stream; None: there is none.
        mixture: experts, whose results the MLP's is added to; or None.
        over_width: norms of queries and keys over all heads together; None: there are none.
        factor: what both parts' results are multiplied by.
        side_by_side: whether both read ``before_attention`` of the same stream.
        places: number of the layer's kind, see :class:`Places`.
        latent: what latent attention has besides; None where it is none.
    """

    attention: tuple[CpuLinear, CpuLinear, CpuLinear | None, CpuLinear]
    heads: AttentionSpec
    mlp: MlpParts | None
    before_attention: NormSpec | None = None
    before_mlp: NormSpec | None = None
    after_attention: NormSpec | None = None
    after_mlp: NormSpec | None = None
    mixture: MixtureParts | None = None
    over_width: tuple[NormSpec, NormSpec] | None = None
    factor: float = 1.0
    side_by_side: bool = False
    places: int = 0
    latent: CpuLatent | None = None

    @property
    def second(self) -> int:
        """Width of the other half of the cache: of values, or of the rotated part of keys."""
        return self.heads.dim if self.latent is None else self.latent.spec.rotated

    @property
    def rotated(self) -> int:
        """How many dimensions of a head are rotated."""
        return self.heads.rotated if self.latent is None else self.latent.spec.rotated


@dataclass(frozen=True)
class Places:
    """What layers of one kind are told of the positions of a step's tokens.

    Attributes:
        cos, sin: float32 ``[T, rotated]``.
        factors: float32 ``[T]``, see :func:`isobit.kernels.cpu.layer.attention`; or None.
    """

    cos: Tensor
    sin: Tensor
    factors: Tensor | None = None


class CpuStack:
    """Layers that run one after the other in one call.

    Raises:
        FormatError: a norm does not fit its layer, or layers have caches of different shapes.
        Unsupported: the library does not have the activation of a layer.
    """

    def __init__(self, layers: Sequence[LayerParts]) -> None:
        self._heads, self._hidden, self._second = layers[0].heads, layers[0].attention[1].k, layers[0].second
        if caches := {_cache_of(parts) for parts in layers} - {_cache_of(layers[0])}:
            told = ", ".join(sorted(caches))
            raise FormatError(f"layers in one call share a shape of cache, {_cache_of(layers[0])}; some have {told}")
        self._rotated = {parts.places: parts.rotated for parts in layers}
        mixtures = [_mixture(parts.mixture, self._hidden) for parts in layers]
        self._kept = tuple(layers), mixtures  # memory that the structs point to
        self._structs = (structs.Layer * len(layers))(
            *(_struct(parts, mixture) for parts, mixture in zip(layers, mixtures, strict=True))
        )
        self._call = library().isobit_cpu_layers
        self._call.argtypes = (_POINTER, _SIZE, ctypes.POINTER(structs.Step), _POINTER)

    def run(self, x: Tensor, places: Sequence[Places], held: Cached, sequences: Sequences, stride: int) -> Tensor:
        """The residual stream behind the last layer.

        Args:
            x: float32 ``[T, hidden]``, contiguous.
            places: by the number that layers have of theirs.
            held: memory of the first layer, ``[..., blocks, kv_heads, block, dim]``.
            sequences: whose the tokens are; see :func:`isobit.kernels.cpu.layer.attention`.
            stride: heads of tokens from one layer's keys to the next one's; 0 when all may use the same memory.

        Raises:
            FormatError: a tensor has another shape, dtype or place.
            IsobitError: the sequences do not fit the tokens or the cache; nothing has been written.
        """
        tokens, heads, blocks = x.shape[0], self._heads, held.keys.shape[-4] if held.keys.dim() > 3 else 0
        cache = (blocks, heads.kv_heads, sequences.block, heads.dim)
        _require("the residual stream", x, (tokens, self._hidden))
        kinds = (structs.Places * len(places))(*(self._places(i, one, tokens) for i, one in enumerate(places)))
        kept, rows = held_struct(held, cache, self._second), math.prod(cache[:3])
        for part in held.tensors:
            width = part.shape[-1] if part.dim() == held.keys.dim() else 1
            self._require_room(part, stride * width, rows * width)
        y = x.clone()
        batch = cpu_sequences.struct(sequences, tokens, blocks)
        step = structs.Step(batch, ctypes.addressof(kinds), len(kinds), kept, stride)
        check(self._call(ctypes.addressof(self._structs), len(self._structs), ctypes.byref(step), y.data_ptr()))
        return y

    def _places(self, number: int, given: Places, tokens: int) -> structs.Places:
        rotated = self._rotated.get(number, 0)
        _require("cosines", given.cos, (tokens, rotated))
        _require("sines", given.sin, (tokens, rotated))
        if given.factors is not None:
            _require("factors of tokens", given.factors, (tokens,))
        angles = (given.cos.data_ptr(), given.sin.data_ptr()) if rotated else (None, None)
        return structs.Places(*angles, structs.pointer(given.factors), rotated)

    def _require_room(self, memory: Tensor, stride: int, numbers: int) -> None:
        """That the memory goes on to the last layer's ``numbers`` numbers.

        Raises:
            FormatError: it ends before.
        """
        needed = memory.storage_offset() + stride * (len(self._structs) - 1) + numbers
        if stride < 0 or memory.itemsize * needed > memory.untyped_storage().nbytes():
            raise FormatError(
                f"a cache of {memory.untyped_storage().nbytes()} bytes does not hold {len(self._structs)} layers"
                f" {stride} numbers apart"
            )


def _require(what: str, part: Tensor, shape: tuple[int, ...]) -> None:
    """That a tensor is float32 of a shape; looked into only where it isn't: this is called for every token."""
    if part.shape != shape or part.dtype is not torch.float32 or not part.is_contiguous() or not part.is_cpu:
        check_on_cpu(what, part, shape)


def _struct(parts: LayerParts, mixture: structs.Mixture | None) -> structs.Layer:
    heads, hidden, mlp = parts.heads, parts.attention[1].k, parts.mlp
    linears = (*parts.attention, None, None, None) if mlp is None else (*parts.attention, mlp.gate, mlp.up, mlp.down)
    norms = (
        structs.norm_struct(norm, hidden, f"the norm {where}")
        for norm, where in (
            (parts.before_attention, "before the attention"), (parts.before_mlp, "before the MLP"),
            (parts.after_attention, "behind the attention"), (parts.after_mlp, "behind the MLP"),
        )
    )  # fmt: skip
    return structs.Layer(
        *(None if linear is None else linear.address for linear in linears),
        *norms,
        structs.heads_struct(heads, parts.over_width),
        heads.heads,
        heads.kv_heads,
        heads.dim,
        None if mixture is None else ctypes.addressof(mixture),
        parts.places,
        parts.factor,
        0.0 if mlp is None else mlp.limit or 0.0,
        0 if mlp is None else structs.activation_code(mlp.activation),
        int(parts.side_by_side),
        None if parts.latent is None else ctypes.addressof(parts.latent.struct),
    )


def _mixture(parts: MixtureParts | None, hidden: int) -> structs.Mixture | None:
    if parts is None:
        return None
    check_on_cpu("the gate of the shared expert", parts.shared_gate, (hidden,))
    return structs.Mixture(parts.router.struct, parts.experts.struct, structs.pointer(parts.shared_gate))


def _cache_of(parts: LayerParts) -> str:
    beside = "" if parts.latent is None else f" and {parts.second} rotated"
    return f"{parts.heads.kv_heads} heads of {parts.heads.dim}{beside}"
