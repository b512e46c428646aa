"""Which variants serve a linear, best first: pure decisions from formats, dtype and the number of tokens."""

from __future__ import annotations

from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element
from isobit.kernels.gpu.fits import Matrix, misfit
from isobit.kernels.gpu.rows import VARIANTS, Variant
from isobit.kernels.gpu.tiles import BLOCK, FEW, LARGE, LIBRARY_FROM, NARROW
from isobit.targets.spec import Target

_DTYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}
_BY_NAME = {row.name: row for row in VARIANTS}


def unsupported(weights: WeightSpec | None, activations: ActSpec | None) -> str | None:
    """Why no GPU kernel takes these formats on any target, or None."""
    if weights is None:
        return None if activations is None else "activations are rounded only together with weights"
    row = element(weights.element)
    if row.bits == 8 and row.name not in ("e4m3fn", "e5m2", "int8"):
        return f"no GPU kernel has {row.name} weights"
    if row.bits < 8 and row.kind == "float":
        return f"no GPU kernel has {row.name} weights"
    if row.bits == 8 and weights.granularity == "group":
        return f"no GPU kernel has {row.name} weights in groups"
    if weights.granularity == "block":
        wanted = activations == ActSpec("e4m3fn", "group", BLOCK) and weights.block == (BLOCK, BLOCK)
        return (
            None if wanted and row.name == "e4m3fn" else "block scales: 128 by 128, e4m3fn, groups of 128 activations"
        )
    if activations is None:
        return None
    if row.bits < 8:
        return f"no GPU kernel multiplies {row.name} weights by rounded activations"
    if activations.element != row.name:
        return f"no GPU kernel multiplies {row.name} by {activations.element}"
    return f"activations in groups with weights by {weights.granularity}" if activations.group is not None else None


def _family(tokens: int, target: Target) -> str:
    if tokens == 1 and target.unit("float16", "float16") is None:
        return "vector"
    return "few" if tokens <= FEW else "many"


def size_class(tokens: int) -> int:
    """A name for the numbers of tokens for which the choice is the same: the largest of them up to ``LARGE``."""
    return next((last for last in sorted({NARROW, *_lasts()}) if tokens <= last), LARGE)


def _lasts() -> set[int]:
    """For each class of numbers of tokens in which the choice is the same but the last one: the largest of them."""
    return {1, FEW, LARGE - 1, *(first - 1 for first in LIBRARY_FROM.values())}


def sizes() -> tuple[int, ...]:
    """For each class of numbers of tokens in which the choice is the same: the smallest of them."""
    return (1, *(last + 1 for last in sorted(_lasts())))


def is_large(tokens: int) -> bool:
    """Whether variants for very many tokens are asked."""
    return tokens >= LARGE


def first_tokens(name: str) -> int:
    """Tokens from which on a variant for very many tokens is chosen."""
    return LIBRARY_FROM.get(name, LARGE)


def candidates(
    weights: WeightSpec | None, activations: ActSpec | None, dtype: str, tokens: int, target: Target
) -> tuple[str, ...]:
    """Names of variants for a linear, best first; those that the target cannot run among them.

    Args:
        weights, activations: the formats; ``unsupported`` has nothing against them.
        dtype: torch's name of the activations' dtype.
        tokens: M.
        target: what runs it.
    """
    large = [name for name in _large(weights, activations, dtype) if tokens >= first_tokens(name)]
    lanes = _lanes(weights, activations, dtype) if tokens == 1 else ()
    return (*large, *lanes, *_up_to_large(weights, activations, dtype, tokens, target))


def _lanes(weights: WeightSpec | None, activations: ActSpec | None, dtype: str) -> tuple[str, ...]:
    """Names of the variants for one token whose products the lanes of a warp make of what they have read."""
    compute = _DTYPES[dtype]
    if weights is None:
        return () if compute == "f32" else (f"vector-{compute}-lanes",)
    name = weights.element
    if weights.granularity == "block":
        return ("vector-block-lanes", "vector-block-lanes-widened")
    if activations is None:
        listed = name in ("e4m3fn", "int8", "int4", "uint4") and compute != "f32"
        return (f"vector-{name}-lanes-{compute}",) if listed else ()
    native = ("vector-e4m3fn-lanes",) if name == "e4m3fn" else ()
    return (*native, f"vector-{name}-lanes-widened") if name in ("e4m3fn", "e5m2") else ()


def _large(weights: WeightSpec | None, activations: ActSpec | None, dtype: str) -> tuple[str, ...]:
    """Names of the variants for very many tokens that come before those for many; widened only if not native."""
    compute = _DTYPES[dtype]
    if weights is None:
        return () if compute == "f32" else (f"large-{compute}-library",)
    name = weights.element
    if weights.granularity == "block" or (element(name).bits < 8 and name != "int4"):
        return ()
    if activations is None:
        return () if compute == "f32" else (f"large-{name}-{compute}",)
    library = ("large-e4m3fn-library",) if name == "e4m3fn" else ()
    return (*library, f"many-{name}-native", f"large-{name}-widened") if element(name).bits == 8 else ()


def _up_to_large(
    weights: WeightSpec | None, activations: ActSpec | None, dtype: str, tokens: int, target: Target
) -> tuple[str, ...]:
    family, compute = _family(tokens, target), _DTYPES[dtype]
    float32 = "vector" if tokens == 1 else "many"
    if weights is None:
        one = (f"vector-{compute}",) if tokens == 1 else ()
        return () if compute == "f32" else (*one, f"{family}-{compute}")
    name = weights.element
    if weights.granularity == "block":
        family = "few" if tokens <= FEW else "many"
        return (f"{family}-block-native", f"{family}-block-widened", f"{family}-block-widened-bf16")
    if element(name).bits < 8:
        stream = (f"{float32}-{name}-stream",)
        if compute == "f32" or family == "vector":
            return stream
        return (f"{family}-{name}-{compute}", *stream)
    if activations is None:
        if compute == "f32" or family == "vector":
            return (f"{float32}-{name}-f32",)
        return (f"{family}-{name}-{compute}",)
    if family == "vector":
        return ("vector-int8-dp4a",) if name == "int8" else (f"vector-{name}-widened",)
    first: tuple[str, ...] = ()
    if name == "int8" and tokens == 1 and target.vendor == "nvidia":
        first = ("vector-int8-dp4a",)
    bf16 = (f"{family}-{name}-widened-bf16",) if name != "int8" else ()
    return (*first, f"{family}-{name}-native", f"{family}-{name}-widened", *bf16)


def choose(
    weights: WeightSpec | None, activations: ActSpec | None, dtype: str, tokens: int, target: Target
) -> tuple[tuple[Variant, ...], tuple[str, ...]]:
    """The variants that ``target`` can run, best first, and why it cannot run the others."""
    rows, reasons = [], []
    for name in dict.fromkeys(candidates(weights, activations, dtype, tokens, target)):
        row = _BY_NAME.get(name)
        reason = "there is no such kernel" if row is None else row.requires(target)
        if row is not None and reason is None:
            rows.append(row)
        else:
            reasons.append(f"{name}: {reason}")
    return tuple(rows), tuple(reasons)


def pick(
    weights: WeightSpec | None, activations: ActSpec | None, dtype: str, tokens: int, target: Target, matrix: Matrix
) -> tuple[Variant | None, tuple[str, ...]]:
    """The variant for a weight, which plans name and binding takes, and why none that come before it do."""
    rows, reasons = choose(weights, activations, dtype, tokens, target)
    refusals = list(reasons)
    for row in rows:
        refusal = misfit(row, matrix, target)
        if refusal is None:
            return row, tuple(refusals)
        refusals.append(f"{row.name}: {refusal}")
    return None, tuple(refusals)
