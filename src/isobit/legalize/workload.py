"""What a model is to the planner: its tensors, its attention, and the sizes that memory and time follow from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from isobit.formats.fitting import fitted
from isobit.formats.rules import ModuleKind
from isobit.formats.schemes import ActSpec, Scheme, WeightSpec
from isobit.formats.schemes import scheme as scheme_named
from isobit.legalize.kernels import activation_dtype
from isobit.legalize.ops import Op
from isobit.targets.spec import Target

# How a module is stored: its weight and activation formats; None when it is as the source has it.
Stored = tuple[WeightSpec | None, ActSpec | None]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the unquantized model, with how often it is there.

    Attributes:
        module: the module's name, layers without their number: ``model.layers.*.mlp.up_proj``.
        part: ``weight`` or ``bias``.
        kind: what the module is.
        shape: of one of them.
        count: how many layers have it.
        first: the name of the first of those modules, layer number and all.
        experts, active: of how many experts of a layer it is one, and how many of them a token goes to; 0: of none.
    """

    module: str
    part: str
    kind: ModuleKind
    shape: tuple[int, ...]
    count: int
    first: str = ""
    experts: int = 0
    active: int = 0

    @property
    def is_matrix(self) -> bool:
        """Whether a scheme can quantize it."""
        return self.part == "weight" and len(self.shape) == 2 and self.kind != "norm"


@dataclass(frozen=True)
class Attention:
    """The attention of one layer, as far as memory and time go.

    Attributes:
        heads, kv_heads: query heads and key-value heads.
        dim: width of a head.
        window: how many of the latest tokens it attends to; None for all.
        kept: widths of both parts of what a cache keeps of a token, for each key-value head; () for ``(dim, dim)``.
    """

    heads: int
    kv_heads: int
    dim: int
    window: int | None = None
    kept: tuple[int, ...] = ()

    @property
    def parts(self) -> tuple[int, ...]:
        """Widths of what a cache keeps."""
        return self.kept or (self.dim, self.dim)


@dataclass(frozen=True)
class Workload:
    """A decoder-only transformer, as far as memory and time go.

    Attributes:
        title: for people.
        dtype: torch dtype of the source's weights.
        tensors: every tensor.
        attentions: of each layer.
        hidden, vocab: sizes.
        intermediate: the widest MLP.
        max_context: the longest context in tokens.
        tied: whether the output projection is the embedding.
        stored: how an already quantized checkpoint stores a module; None when the source is not quantized.
        dtypes: that the matrices lie in where nothing is quantized; () where something is, or nobody knows.
        in_float32: modules whose weights are float32 in memory on a CPU, whatever dtype the rest has: such as lie so in
            the checkpoint, and such as are made so when they are read.
        scales: dtype of the scales of modules, where it is known and may be another than the model's.
        notes: what people should know about the model and its checkpoint, whatever runs it.
        unloaded: whether weights lie there that loading refuses; a note says why.
        tower: numbers of what encodes media for it, which no scheme quantizes; 0 where there is none, or nothing says
            how large it is.
        uneven: why GPUs do not run its experts as they are stored, and what to do instead; empty where they may.
    """

    title: str
    dtype: str
    tensors: tuple[Tensor, ...]
    attentions: tuple[Attention, ...]
    hidden: int
    intermediate: int
    vocab: int
    max_context: int
    tied: bool
    stored: Callable[[str], Stored] | None = None
    dtypes: tuple[str, ...] = ()
    in_float32: frozenset[str] = frozenset()
    scales: Mapping[str, str] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()
    unloaded: bool = False
    tower: int = 0
    uneven: str = ""

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.attentions)

    @property
    def parameters(self) -> int:
        """How many numbers the unquantized model has."""
        return sum(tensor.count * math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def active_parameters(self) -> int:
        """How many of them one token needs: of mixtures those of the experts that it goes to."""
        return sum(
            tensor.count * math.prod(tensor.shape) * (tensor.active if tensor.experts else 1) // (tensor.experts or 1)
            for tensor in self.tensors
        )

    def plain(self, tensor: Tensor, scheme: Scheme | None, *, cpu: bool) -> str | None:
        """The dtype of a weight that is not quantized where it is another than the model's; else None.

        A CPU runs weights as they are stored, and a scheme keeps what it does not quantize; a dtype casts it.
        """
        kept = scheme is None or (self.stored is None and scheme.dtype is None)
        wide = kept and cpu and (tensor.first or tensor.module) in self.in_float32
        return "float32" if wide and (tensor.is_matrix or tensor.kind == "norm" or self.stored is None) else None

    def scale(self, tensor: Tensor, scheme: Scheme | None, usual: str) -> str:
        """The dtype of a weight's scales: under a scheme the usual one, or as the checkpoint has them."""
        return usual if scheme is not None else self.scales.get(tensor.first or tensor.module, usual)

    def formats(self, tensor: Tensor, scheme: Scheme | None) -> Stored:
        """How a tensor is stored: under a scheme, or (None) as the checkpoint has it."""
        if not tensor.is_matrix or tensor.kind == "absorbed":  # which is held as numbers, however it is stored
            return None, None
        if scheme is None:
            return self.stored(tensor.first or tensor.module) if self.stored else (None, None)
        if tensor.kind != "linear":
            return None, None
        chosen = fitted(scheme, tensor.shape[1])
        return chosen.weights, chosen.activations


def model_dtype(workload: Workload, scheme: Scheme | None) -> str:
    """The dtype of what a scheme does not quantize: its own, or the source's. Instead of float32 that is bfloat16, as
    GPUs have it; what a CPU has in float32 :meth:`Workload.plain` says."""
    own = scheme.dtype if scheme is not None else None
    return own or (workload.dtype if workload.dtype != "float32" else "bfloat16")


def as_loaded(workload: Workload, target: Target) -> Scheme | None:
    """The scheme under which a checkpoint runs that is loaded as it lies there; None: the way its tensors are stored.

    A CPU runs weights of every dtype as they are stored; GPUs have what is not quantized in the dtype of activations.
    """
    if workload.stored is not None or (workload.in_float32 and not target.is_gpu):
        return None
    wanted = model_dtype(workload, None)
    dtype = activation_dtype(target, wanted) if target.is_gpu else wanted
    return scheme_named("f16" if dtype == "float16" else "bf16")


def short_name(module: str) -> str:
    """A module as plans name it: without what stands before it in a layer."""
    return module.partition(".layers.*.")[2] or module


def ops(workload: Workload, scheme: Scheme | None, target: Target, kv: str | None = None) -> tuple[Op, ...]:
    """The work of one token, in the order in which it is done.

    Args:
        workload: the model.
        scheme: how its linears are quantized; None for the way the checkpoint has them.
        target: what runs it: CPUs compute in float32.
        kv: format of the cache; None for the dtype of activations.
    """
    stored = model_dtype(workload, scheme)
    dtype = stored if scheme is not None and scheme.dtype and target.is_gpu else activation_dtype(target, stored)
    kept = stored if target.vendor == "cpu" else dtype
    scales = "float16" if workload.dtype == "float16" else "bfloat16"  # docs/numerics.md, section 2
    biased = {tensor.module for tensor in workload.tensors if tensor.part == "bias"}
    table = next((tensor for tensor in workload.tensors if tensor.kind == "embedding" and tensor.is_matrix), None)
    held = kept if table is None else workload.plain(table, scheme, cpu=not target.is_gpu) or kept
    found = [Op("embedding", "embed_tokens", workload.vocab, workload.hidden, dtype=dtype, stored=held)]
    for tensor in workload.tensors:
        if tensor.is_matrix and tensor.kind != "embedding":
            n, k = tensor.shape
            weights, activations = workload.formats(tensor, scheme)
            name = short_name(tensor.module)
            found.append(Op("linear", name, n, k, weights, activations, dtype,
                            workload.plain(tensor, scheme, cpu=not target.is_gpu) or kept, count=tensor.count,
                            bias=tensor.module in biased, scale_dtype=workload.scale(tensor, scheme, scales),
                            given=scheme is None,
                            experts=tensor.experts, active=tensor.active))  # fmt: skip
    if workload.tied:
        found.append(Op("linear", "lm_head", workload.vocab, workload.hidden, dtype=dtype, stored=held))
    alike = Counter((one.heads, one.dim, one.kv_heads, one.parts) for one in workload.attentions)
    found[1:1] = [
        Op(
            "attention",
            "self_attn",
            heads,
            dim,
            dtype=dtype,
            kv=kv or dtype,
            kv_heads=kv_heads,
            kept=parts,
            count=count,
        )
        for (heads, dim, kv_heads, parts), count in alike.items()
    ]
    return tuple(found)
