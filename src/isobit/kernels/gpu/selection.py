"""Which kernels serve a linear, best first: one filter over the rows, by formats, dtype and tokens. Pure."""

from __future__ import annotations

from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element
from isobit.kernels.gpu.fits import Matrix, misfit
from isobit.kernels.gpu.rows import VARIANTS
from isobit.kernels.gpu.tiles import BLOCK, NARROW, SOME, SOME_MORE, SOME_MOST
from isobit.kernels.gpu.variant import Variant, has_halves
from isobit.targets.spec import Target


def unsupported(weights: WeightSpec | None, activations: ActSpec | None) -> str | None:
    """Why no GPU kernel takes these formats on any target, or None."""
    if weights is None:
        return None if activations is None else "activations are rounded only together with weights"
    row = element(weights.element)
    if weights.scale is not None:
        return _unsupported_scales(weights, activations)
    if activations is not None and activations.scale is not None:
        return f"no GPU kernel rounds activations under scales in {activations.scale} for weights under others"
    if row.bits == 8 and row.name not in ("e4m3fn", "e5m2", "int8"):
        return f"no GPU kernel has {row.name} weights"
    if row.bits < 8 and row.kind == "float" and row.name != "e2m1":
        return f"no GPU kernel has {row.name} weights"
    if row.bits == 8 and weights.granularity == "group":
        if row.name == "e5m2":
            return f"no GPU kernel has {row.name} weights in groups"
        if activations is not None:
            return f"no GPU kernel multiplies {row.name} weights in groups by rounded activations"
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


def _unsupported_scales(weights: WeightSpec, activations: ActSpec | None) -> str | None:
    """The same of weights whose scales are codes: kernels read those beside activations under such alone."""
    assert weights.scale is not None
    if activations is None or activations.scale is None:
        return f"GPU kernels read scales as floats, not as {weights.scale.element}"
    pair = weights.element, activations.element, (weights.scale.element, activations.scale)
    if weights.granularity != "group" or not any(
        (row.weights, row.activations) == pair[:2] and pair[2] in row.scales for row in VARIANTS
    ):
        return (
            f"no GPU kernel multiplies {weights.element} weights under scales in {weights.scale} by"
            f" {activations.element} activations under scales in {activations.scale}"
        )
    assert weights.group is not None and activations.group is not None
    group = activations.group
    if weights.group % group or group & (group - 1):
        return f"groups of {group} activations beside {weights.group} weights"
    return None


def sizes() -> tuple[int, ...]:
    """For each class of numbers of tokens in which the choice is the same: the smallest of them."""
    return tuple(sorted({row.tokens[0] for row in VARIANTS if not row.of_experts}))


def size_class(tokens: int) -> int:
    """A name for the numbers of tokens for which the same is launched: the largest, of the last class the smallest."""
    firsts = sizes()
    lasts = sorted({NARROW, SOME, SOME_MORE, SOME_MOST, *(first - 1 for first in firsts[1:])})
    return next((last for last in lasts if tokens <= last), firsts[-1])


def classes() -> tuple[int, ...]:
    """All that :func:`size_class` gives."""
    return tuple(
        sorted(
            {
                size_class(tokens)
                for first in (*sizes(), NARROW, SOME, SOME_MORE, SOME_MOST)
                for tokens in (first, first + 1)
            }
        )
    )


def candidates(
    weights: WeightSpec | None, activations: ActSpec | None, dtype: str, tokens: int, target: Target,
    *, experts: bool = False,
) -> tuple[Variant, ...]:  # fmt: skip
    """Rows for a linear, best first; those that the target cannot run among them.

    Args:
        weights, activations: the formats; ``unsupported`` has nothing against them.
        dtype: torch's name of the activations' dtype.
        tokens: M.
        target: what runs it.
        experts: whether the weight is that of many experts.
    """
    taken = (row for row in VARIANTS if row.takes(weights, activations, dtype, tokens, target))
    rows = (row for row in taken if experts or not row.of_experts)
    scalar_first = tokens == 1 and not has_halves(target)  # without matrix units one token needs no tile

    def order(row: Variant) -> tuple[bool, int]:
        return scalar_first and row.way not in ("scalar", "stream"), row.rank

    return tuple(sorted(rows, key=order))


def choose(
    weights: WeightSpec | None, activations: ActSpec | None, dtype: str, tokens: int, target: Target,
    *, experts: bool = False,
) -> tuple[tuple[Variant, ...], tuple[tuple[Variant, str], ...]]:  # fmt: skip
    """The rows that ``target`` can run, best first, and why it cannot run the others; arguments as above."""
    rows = candidates(weights, activations, dtype, tokens, target, experts=experts)
    asked = [(row, row.requires(target)) for row in rows]
    refused = tuple((row, reason) for row, reason in asked if reason is not None)
    return tuple(row for row, reason in asked if reason is None), refused


def not_of_experts(row: Variant) -> str | None:
    """Why a row does not multiply the weights of experts, or None."""
    if row.library:
        return "PyTorch's product has one weight for all tokens"
    if row.way == "tma":
        return "TMA copies the tokens of an expert only where they lie side by side"
    return "the weights of all experts would be widened for a few of them" if row.widen is not None else None


def pick(
    weights: WeightSpec | None, activations: ActSpec | None, dtype: str, tokens: int, target: Target, matrix: Matrix,
    *, experts: bool = False,
) -> tuple[Variant | None, tuple[tuple[Variant, str], ...]]:  # fmt: skip
    """The row for a weight, which plans name and binding takes, and why none that come before it is taken.

    Args:
        weights, activations, dtype, tokens, target: see :func:`candidates`.
        matrix: the weight.
        experts: whether it is that of many experts, of which ``tokens`` are multiplied by one.
    """
    rows, refused = choose(weights, activations, dtype, tokens, target, experts=experts)
    refusals = list(refused)
    for row in rows:
        refusal = not_of_experts(row) if experts else None
        refusal = refusal or misfit(row, matrix, target)
        if refusal is None:
            return row, tuple(refusals)
        refusals.append((row, refusal))
    return None, tuple(refusals)
