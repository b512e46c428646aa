"""Which of our kernels multiply what on a target: the registry's rows, as the rules ask for them.

What no kernel can run is not promised, whatever the hardware could do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from isobit.formats.caches import CACHE_FORMATS
from isobit.kernels.backends import LINEAR_KERNELS
from isobit.kernels.cpu import formats as cpu_formats
from isobit.kernels.gpu import selection
from isobit.kernels.gpu.fits import Matrix, misfit
from isobit.kernels.gpu.grouped_tiles import unread, unread_latents
from isobit.kernels.gpu.latent_tiles import LARGEST_RANK
from isobit.kernels.gpu.layer_rows import LAYER_ROWS
from isobit.kernels.gpu.layer_tiles import LARGEST_HEAD
from isobit.kernels.gpu.rows import VARIANTS
from isobit.kernels.gpu.tiles import LARGE
from isobit.kernels.gpu.variant import Variant, has_bf16
from isobit.kernels.held import before, not_on_gpu, on_cpu, on_gpu
from isobit.legalize.ops import Op
from isobit.targets.spec import Target

NATIVE = "native"
REFERENCE = "reference"
_COMPUTE = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "int8": "int8", NATIVE: NATIVE}
_MANY = LARGE - 1  # tokens that fill any machine


@dataclass(frozen=True)
class Kernel:
    """One kernel that takes the formats of an op on a target.

    Attributes:
        name: what the registry calls it.
        compute: dtype of the products, or ``native`` for the formats themselves.
        decode: whether it is for one token (or a few) at a time.
        shows: mnemonics that its machine code is proved to have.
    """

    name: str
    compute: str
    decode: bool
    shows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The kernels for an op on a target and why others cannot run there.

    Attributes:
        kernels: for one token and for many; PyTorch's products are not among them.
        reasons: why there are no others.
        by_tokens: (tokens from which on, what is chosen), PyTorch's products included.
        not_native: why the weight does not suit kernels that multiply the formats themselves; empty where it does, or
            there are none.
    """

    kernels: tuple[Kernel, ...]
    reasons: tuple[str, ...]
    by_tokens: tuple[tuple[int, Variant], ...] = ()
    not_native: str = ""

    @property
    def native_from(self) -> int:
        """Tokens of a call from which on the formats themselves are multiplied; 1 where that is not told apart."""
        return next((first for first, row in self.by_tokens if row.compute == NATIVE), 1)

    @property
    def large(self) -> Variant | None:
        """What is chosen for very many tokens, where that is something of its own."""
        last = self.by_tokens[-1][1] if self.by_tokens else None
        return last if last is not None and last.family == "large" else None

    def computing(self, *formats: str) -> Kernel | None:
        """The kernel for many tokens whose products are in one of ``formats``, if there is one."""
        return next((row for row in self.kernels if not row.decode and row.compute in formats), None)

    @property
    def decode(self) -> Kernel | None:
        """The kernel for one token, if there is one."""
        return next((row for row in self.kernels if row.decode), None)


def find(op: Op, target: Target) -> Found:
    """The kernels that run a linear's formats on a target, as the registry would choose them there."""
    if target.vendor == "cpu":
        return _find_cpu(op)
    op, why_not = _as_given(op, target)
    why_not = why_not or selection.unsupported(op.weights, op.activations)
    if why_not is not None:
        return Found((), (why_not,))
    rounding = _rounding_problem(op, target)
    if rounding is not None:
        return Found((), (rounding,))
    matrix = _matrix(op)
    one, reasons = _chosen(op, target, 1, matrix)
    many, more = _chosen(op, target, _MANY, matrix)
    refused = _not_native(op, target, matrix)
    return Found((*one, *many), tuple(dict.fromkeys((*reasons, *more))), _by_tokens(op, target, matrix), refused)


def _as_given(op: Op, target: Target) -> tuple[Op, str | None]:
    """A linear in the formats that GPU kernels are given, and why it cannot be given so, or None."""
    if op.weights is None or (op.weights.scale is None and before(op.activations) is None):
        return op, None
    if selection.unsupported(op.weights, op.activations) is None:
        return replace(op, scale_dtype="uint8"), None
    why_not = not_on_gpu(op.activations)
    if op.experts and before(op.activations) is not None:
        why_not = why_not or "no GPU kernel of experts takes activations that are rounded under scales of few bits"
    weights, activations = on_gpu(op.weights, op.activations)
    scale = "bfloat16" if op.weights.scale is not None and op.weights.scale.powers else "float32"
    given = replace(op, weights=weights, activations=activations, scale_dtype=scale)
    if before(op.activations) is not None:
        given, why_not = replace(given, dtype="bfloat16"), why_not or has_bf16(target)
    return given, why_not


def _matrix(op: Op) -> Matrix:
    """The weight as binding will find it: aligned, with scales in the usual range, and PyTorch's products at hand."""
    return Matrix(op.n, op.k, op.weights, op.bias, foldable=op.scale_dtype == "bfloat16", scale=op.scale_dtype)


def _chosen(op: Op, target: Target, tokens: int, matrix: Matrix) -> tuple[list[Kernel], tuple[str, ...]]:
    """The kernel of isobit's that would be bound, if there is one; PyTorch's products are told of apart."""
    rows, reasons = selection.choose(op.weights, op.activations, op.dtype, tokens, target)
    ours = next((row for row in rows if not row.library and misfit(row, matrix, target) is None), None)
    told = tuple(reason for row, reason in reasons if not row.optional)
    if ours is None:
        refusals = ((row, misfit(row, matrix, target)) for row in rows if not row.library)
        return [], (*told, *(refusal for _, refusal in refusals if refusal))
    return [Kernel(ours.name, _COMPUTE[ours.compute], tokens == 1, ours.promises(target))], told


def _not_native(op: Op, target: Target, matrix: Matrix) -> str:
    """Why the weight does not suit the kernels of many tokens that multiply the formats themselves."""
    rows, _ = selection.choose(op.weights, op.activations, op.dtype, _MANY, target)
    refusals = (misfit(row, matrix, target) for row in rows if row.compute == NATIVE and not row.library)
    return next((refusal for refusal in refusals if refusal), "")


def _by_tokens(op: Op, target: Target, matrix: Matrix) -> tuple[tuple[int, Variant], ...]:
    """What :func:`selection.pick` chooses, for each number of tokens at which that changes."""
    found: list[tuple[int, Variant]] = []
    for first in selection.sizes():
        row, _ = selection.pick(op.weights, op.activations, op.dtype, first, target, matrix)
        if row is not None and (not found or found[-1][1] != row):
            found.append((first, row))
    return tuple(found)


def _rounding_problem(op: Op, target: Target) -> str | None:
    """Why no kernel rounds the activations on a target; None if one does or none are rounded."""
    if op.activations is None:
        return None
    if not any(row.way == "rounding" and row.activations == op.activations.element for row in VARIANTS):
        return f"no kernel rounds activations to {op.activations.element}"
    reason = has_bf16(target) if op.dtype == "bfloat16" else None
    return f"activations cannot be rounded there: {reason}" if reason else None


_CPU_DOTS = (("int8", "int8"), ("int4", "int8"))  # weights and activations that are multiplied as integers


def _find_cpu(op: Op) -> Found:
    """The CPU kernels (integer dot products where both operands are integers, else float32), then the reference."""
    kernels, reasons = [], []
    why_not = _cpu_problem(op)
    if why_not is None:
        compute = NATIVE if (op.w, op.a) in _CPU_DOTS else "float32"
        kernels += [Kernel("cpu", compute, decode) for decode in (True, False)]
    else:
        reasons.append(why_not)
    row = next(row for row in LINEAR_KERNELS if row.name == REFERENCE)
    why_not = row.accepts(op.weights, op.activations, "cpu")
    if why_not is None:
        kernels += [Kernel(REFERENCE, "float32", decode) for decode in (True, False)]
    else:
        reasons.append(why_not)
    return Found(tuple(kernels), tuple(reasons))


def _cpu_problem(op: Op) -> str | None:
    """Why the C++ kernels cannot take a linear; None when they can."""
    if op.weights is None and op.w not in cpu_formats.FLOAT_FORMATS:
        return f"no CPU kernel has {op.w} weights"
    return cpu_formats.unsupported(*on_cpu(op.weights, op.activations))


@dataclass(frozen=True)
class AttentionKernel:
    """What attends over a cache.

    Attributes:
        names: what runs it on a target in a dtype, a token at a time first; nothing where it does not run.
        vendors: where.
        cache: formats of keys and values beside the dtype of the activations, as ``CacheFormat.kv`` has them.
        widest: numbers of a head, or of a latent, at most; 0 for any.
        latent: whether it attends to latents, and not to heads of keys and values.
        said: what people should know who are given it.
        unread: why it does not read a format, of which a token has so many numbers as each of its parts, on a target,
            or None.
    """

    names: Callable[[Target, str], tuple[str, ...]]
    vendors: tuple[str, ...]
    cache: tuple[str, ...] = ()
    widest: int = 0
    latent: bool = False
    said: str = ""
    unread: Callable[[str, tuple[int, int], Target], str | None] = field(default=lambda kv, parts, target: None)

    def takes(self, kv: str, dtype: str, width: int, *, latent: bool) -> bool:
        """Whether it reads keys and values stored as ``kv``, of heads of so many numbers, or latents of so many."""
        fits = not self.widest or width <= self.widest
        return kv in (dtype, *self.cache) and fits and self.latent == latent


def activation_dtype(target: Target, wanted: str) -> str:
    """The dtype of activations between layers on a target.

    CPU kernels keep them in float32, GPUs in the model's dtype, or in float16 where there is no bfloat16 arithmetic.

    Args:
        target: where.
        wanted: the model's dtype.
    """
    if target.vendor == "cpu":
        return "float32"
    if wanted == "bfloat16" and target.vendor == "nvidia" and not target.hardware_unit(wanted, wanted):
        return "float16"
    return wanted


def _on_gpus(attends: str, *, grouped: bool = False) -> Callable[[Target, str], tuple[str, ...]]:
    """isobit's own kernels: all, or those that read caches whose groups share a scale."""

    def names(target: Target, dtype: str) -> tuple[str, ...]:
        rows = [row for row in LAYER_ROWS if row.attends == attends and row.multiplies == dtype]
        rows = [row for row in rows if row.groups or not grouped]
        return tuple(row.name for row in rows if row.requires(target) is None)

    return names


_CODES = tuple(row.kv for row in CACHE_FORMATS.values() if row.element and not row.group)
_GROUPED = tuple(row.kv for row in CACHE_FORMATS.values() if row.group)
_CACHED_ON_CPUS = ("bfloat16", "float16", *_CODES, *_GROUPED)
ATTENTION_KERNELS = (
    AttentionKernel(_on_gpus("heads"), ("nvidia", "amd"), _CODES, widest=LARGEST_HEAD),
    AttentionKernel(
        _on_gpus("heads", grouped=True),
        ("nvidia", "amd"),
        _GROUPED,
        widest=LARGEST_HEAD,
        unread=lambda kv, parts, target: unread(kv, parts[0], target),
    ),
    AttentionKernel(lambda target, dtype: ("torch scaled_dot_product_attention",), ("nvidia", "amd")),
    AttentionKernel(_on_gpus("latent"), ("nvidia", "amd"), _CODES, widest=LARGEST_RANK, latent=True),
    AttentionKernel(
        _on_gpus("latent", grouped=True),
        ("nvidia", "amd"),
        _GROUPED,
        widest=LARGEST_RANK,
        latent=True,
        unread=lambda kv, parts, target: unread_latents(kv, *parts, target),
    ),
    AttentionKernel(lambda target, dtype: ("cpu attention",), ("cpu",), _CACHED_ON_CPUS),
    AttentionKernel(
        lambda target, dtype: ("cpu latent attention",), ("cpu",), _CACHED_ON_CPUS, widest=LARGEST_RANK, latent=True
    ),
    *(
        AttentionKernel(
            lambda target, dtype: ("torch latent attention",),
            vendors,
            cache,
            latent=True,
            said="latent attention runs in PyTorch, one sequence after the other",
        )
        for vendors, cache in ((("nvidia", "amd"), _CODES), (("cpu",), _CACHED_ON_CPUS))
    ),
)
