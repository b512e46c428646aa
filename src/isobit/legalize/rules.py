"""The ordered rules that turn an op into instructions of a target. The first rule that applies wins.

A rule may widen, split, pad or move work. It may never move a rounding point: every lowering says which rounding points
it keeps, and `planner.verify` compares them with the op's. The one rule that drops one is asked only when the user
allows it, and its lowering is called ``relaxed``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from isobit.formats.table import ELEMENTS
from isobit.kernels.gpu.variant import Variant
from isobit.kernels.held import given as given_to_kernels
from isobit.legalize.exact import FLOATS, Widening, bits, widen
from isobit.legalize.kernels import NATIVE, REFERENCE, Found, Kernel, find
from isobit.legalize.ops import Action, Lowering, Op
from isobit.targets.spec import MatrixUnit, Target

Apply = Callable[[Op, Target, Found], Lowering | str]

SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "e4m3fn": "e4m3"}


@dataclass(frozen=True)
class Rule:
    """One way to lower a linear.

    Attributes:
        name: for plans and tests.
        action: what a lowering of this rule is called.
        apply: the lowering, or why there is none.
        moves_rounding: whether it drops a rounding point, so that the user must allow it.
    """

    name: str
    action: Action
    apply: Apply
    moves_rounding: bool = False


def short(name: str) -> str:
    """A format as people write it."""
    return SHORT.get(name, name)


# ---------------------------------------------------------------------- native


def native(op: Op, target: Target, found: Found) -> Lowering | str:
    """The matrix unit takes both formats as they are."""
    unit = target.unit(op.w, op.a, op.scales)
    if unit is None:
        return _no_unit(op, target)
    kernel = found.computing(NATIVE) if op.weights else found.computing(op.dtype)
    if kernel is None:
        takes = f"{target.name}: its {unit.instruction} takes {_pair(op)}"
        if found.not_native:
            return f"{takes}, but isobit's kernel for that does not take this shape: {found.not_native}"
        return f"{takes}, but no kernel of isobit's does that"
    where = "the matrix unit" if target.is_gpu else "integer dot products"
    how = f"{_pair(op)} in {where} ({unit.instruction})"
    if unit.promote_every:
        how += f", sums moved to f32 every {unit.promote_every}"
    if op.scales and found.native_from > 1:
        how += f", from {found.native_from} tokens in a call on (fewer: widened in registers)"
    return _lowering("native", "native", op, target, found, kernel, how, unit)


def _pair(op: Op) -> str:
    return f"{short(op.w)} x {short(op.a)}"


def _no_unit(op: Op, target: Target) -> str:
    hardware = target.hardware_unit(op.w, op.a, op.scales)
    if hardware is not None:
        return f"{target.name} has a matrix unit for {_pair(op)} ({hardware.instruction}), but {hardware.unreachable}"
    if not target.is_gpu and op.w == op.a == "float32":
        return f"{target.name} multiplies f32 by its vector units: it has no matrix unit for that"
    unit = "matrix unit" if target.is_gpu else "instruction"
    under = f" under scales in {op.scales}" if op.scales else ""
    return f"{target.name} has no {unit} for {_pair(op)}{under}"


# ---------------------------------------------------------------------- exact widening


def widened(op: Op, target: Target, found: Found) -> Lowering | str:
    """Both operands become a wider format in registers, which holds all their values and has a matrix unit."""
    reasons: list[str | None] = []
    unused: list[str] = []
    for compute in _wider_formats(op, target):
        proofs, reason = _proofs(op, compute, target)
        kernel = found.computing(compute)
        unit = target.unit(compute, compute)
        if reason is None and kernel is None and unit is not None and unit.flushes_subnormals:
            reason = f"{target.name}'s {short(compute)} matrix unit flushes subnormal numbers, which codes shifted are"
        elif reason is None and kernel is None and unit is not None:
            reason = (
                f"{unit.instruction} could take {_pair(op)} as {short(compute)}, but no kernel of isobit's does that"
            )
            if bits(compute) < 16:  # another format of 16 bits would gain nothing
                unused.append(reason)
        if reason is None and kernel is not None:
            assert unit is not None
            how = f"{_changed(op, compute)} in registers, {short(compute)} matrix unit ({unit.instruction})"
            lowering = _lowering("widen", "legalized", op, target, found, kernel, how, unit)
            notes = (*lowering.notes, *_widening_notes(proofs), *unused)
            return replace(lowering, reason=_why_not_native(op, target, found), notes=notes)
        reasons.append(reason)
    return "; ".join(filter(None, reasons)) or f"{target.name} has no matrix unit that {_pair(op)} could be widened to"


def _wider_formats(op: Op, target: Target) -> Iterator[str]:
    """Formats with a matrix unit of their own, narrow ones first."""
    own = {unit.a for unit in target.matrix if unit.a == unit.b and target.unit(unit.a, unit.a)}
    order = {name: index for index, name in enumerate(("int8", *ELEMENTS, "float16", "bfloat16", "float32"))}
    widest = max(bits(op.w), bits(op.a))
    for name in sorted(own, key=lambda name: (bits(name), order[name])):
        if bits(name) >= widest and not (name == op.w == op.a):
            yield name


def _proofs(op: Op, compute: str, target: Target) -> tuple[tuple[Widening, ...], str | None]:
    """The proofs that both operands survive, or why one does not."""
    zero_points = op.weights is not None and not op.weights.symmetric
    of_w, of_a = _scales_within(op, target)
    weights, activations = widen(op.w, compute, zero_points, of_w), widen(op.a, compute, scales=of_a)
    for name, proof, under in ((op.w, weights, of_w), (op.a, activations, of_a)):
        if proof is None:
            return (
                (),
                f"{short(compute)} does not hold every {short(name)}{f' times its scale in {under}' if under else ''}",
            )
    assert weights is not None and activations is not None
    proofs = (weights, activations)
    unit = target.unit(compute, compute)
    if (
        unit is not None
        and unit.flushes_subnormals
        and any(p.needs_subnormals and p.source in ELEMENTS for p in proofs)
    ):
        return (), f"{target.name}'s {short(compute)} matrix unit flushes subnormal numbers, which {_pair(op)} needs"
    return proofs, None


def _scales_within(op: Op, target: Target) -> tuple[str, str]:
    """Formats of scales that kernels multiply into weights and activations before the product; empty for none."""
    both = op.weights, op.activations
    if not target.is_gpu or any(spec is None or spec.scale is None for spec in both):
        return "", ""
    of_w, of_a = (spec.scale.element if spec is not None and spec.scale is not None else "" for spec in both)
    return of_w, of_a


def _changed(op: Op, compute: str) -> str:
    """``e4m3 -> f16``: which operands change."""
    changed = [short(name) for name in dict.fromkeys((op.w, op.a)) if name != compute]
    return f"{' and '.join(changed)} -> {short(compute)}"


def _widening_notes(proofs: tuple[Widening, ...]) -> tuple[str, ...]:
    notes = []
    for proof in dict.fromkeys(proofs):
        if proof.exponent:
            notes.append(
                f"{short(proof.source)} as {proof.target} times 2**{-proof.exponent}, which moves into the scale"
            )
        if not proof.keeps_specials:
            notes.append(
                f"{proof.target} cannot hold the NaN of {short(proof.source)}: weights with NaN codes are refused"
            )
    return tuple(notes)


# ---------------------------------------------------------------------- emulation


def emulated(op: Op, target: Target, found: Found) -> Lowering | str:
    """Multiply-add in float32 outside the matrix units, which every target has and every format fits."""
    kernel = next((k for k in found.kernels if not k.decode and _outside_matrix_units(op, k, target)), None)
    if kernel is None:
        why = f": {'; '.join(found.reasons)}" if found.reasons and not found.kernels else ""
        return f"no kernel of isobit's multiplies {_describe(op)} outside the matrix units of {_where(target)}{why}"
    change = f"{_changed(op, 'float32')} in registers, " if {op.w, op.a} != {"float32"} else ""
    how = f"{_pair(op)} in plain integer arithmetic" if kernel.compute == NATIVE else f"{change}f32 multiply-add"
    if kernel.name == REFERENCE:
        how += ", on the reference path (slow)"
    lowering = _lowering("emulate", "legalized", op, target, found, kernel, how, None)
    if kernel.name == REFERENCE:
        lowering = replace(lowering, notes=(*lowering.notes, f"{short(op.w)} runs on the reference path only: slow"))
    return replace(lowering, reason=_why_not_native(op, target, found))


def _why_not_native(op: Op, target: Target, found: Found) -> str:
    answer = native(op, target, found)
    assert isinstance(answer, str)
    return answer


def _outside_matrix_units(op: Op, kernel: Kernel, target: Target) -> bool:
    """Whether a kernel's products are exact in float32, without a matrix unit that would be narrower."""
    if kernel.compute == "float32" or (kernel.compute == NATIVE and op.w in ELEMENTS and not target.is_gpu):
        return True
    compute = op.dtype if kernel.compute == NATIVE else kernel.compute
    if target.unit(compute, compute) is not None or compute not in FLOATS:
        return False
    return _proofs(op, compute, target)[1] is None


def _describe(op: Op) -> str:
    if op.weights is None:
        return f"{short(op.w)} weights"
    spec = op.weights
    each = f"group of {spec.group}" if spec.group else f"{spec.block[0]}x{spec.block[1]} block" if spec.block else ""
    inputs = f"{short(op.a)} activations"
    return f"{short(op.w)} weights with a scale per {each or spec.granularity} and {inputs}"


def _where(target: Target) -> str:
    return "CPUs" if target.vendor == "cpu" else f"{target.name} ({target.title})"


# ---------------------------------------------------------------------- relaxed


def weight_only(op: Op, target: Target, found: Found) -> Lowering | str:
    """Activations are not rounded: another model than the one that was evaluated."""
    if op.activations is None:
        return "there is no activation rounding to give up"
    plain = replace(op, activations=None)
    kernels = find(plain, target)
    for rule in (native, widened, emulated):
        answer = rule(plain, target, kernels)
        if isinstance(answer, Lowering):
            note = f"activations stay {short(op.dtype)} instead of being rounded to {short(op.a)}: other results"
            return replace(
                answer, action="relaxed", rule="weight-only", how=f"{answer.how}, activations not rounded",
                notes=(*answer.notes, note),
            )  # fmt: skip
    return "not even with activations as they are"


# ---------------------------------------------------------------------- all rules

RULES: tuple[Rule, ...] = (
    Rule("native", "native", native),
    Rule("widen", "legalized", widened),
    Rule("emulate", "legalized", emulated),
    Rule("weight-only", "relaxed", weight_only, moves_rounding=True),
)


def _lowering(
    rule: str,
    action: Action,
    op: Op,
    target: Target,
    found: Found,
    kernel: Kernel,
    how: str,
    unit: MatrixUnit | None,
) -> Lowering:
    one = found.decode or kernel
    if op.activations is not None:
        how += f", activations rounded to {short(op.a)}"
    # A unit for two formats runs at the rate of the wider one.
    compute = kernel.compute if kernel.compute != NATIVE else max(unit.a, unit.b, key=bits) if unit else "float32"
    notes = (unit.note,) if unit is not None and unit.note else ()
    widened_first = found.large is not None and found.large.widen is not None
    return Lowering(
        action=action,
        rule=rule,
        how=how,
        decode=_decode_how(op, target, one),
        compute=compute,
        matrix=unit is not None,
        instruction=unit.instruction if unit else "",
        kernels=tuple(dict.fromkeys((one.name, kernel.name))),
        reason="",
        notes=notes + _format_notes(op, target) + _large_notes(found.large),
        rounds=op.rounds,
        workspace=2 * op.n * op.k if widened_first else 0,
        narrowed=found.large is not None and found.large.narrow is not None,
        sizes=tuple((first, row.name) for first, row in found.by_tokens),
        native_from=found.native_from if op.scales and kernel.compute == NATIVE else 1,
    )


def _large_notes(large: Variant | None) -> tuple[str, ...]:
    """What changes for calls of very many tokens."""
    if large is None or not (large.library or large.widen):
        return ()
    first = large.tokens[0]
    if large.library:
        return (f"from {first} tokens in a call on: PyTorch's own product (cuBLAS), summed in full",)
    note = f"from {first} tokens in a call on: weights are widened once per call, exactly, into a workspace"
    if large.narrow:
        note += "; bf16 activations become f16 times a power of two per token, to within 2**-41 of its largest"
    return (note,)


def _decode_how(op: Op, target: Target, kernel: Kernel) -> str:
    """How one token is multiplied, which reads the weights once and is bound by memory."""
    shown = f" ({', '.join(kernel.shows)})".replace("\\", "") if kernel.shows else ""  # mnemonics are expressions
    unit = target.unit(op.w, op.a, op.scales)
    if kernel.compute == NATIVE and unit is not None and kernel.shows and unit.instruction not in kernel.shows[0]:
        return f"{_pair(op)}, widened by the compiler for a few tokens{shown}"
    if kernel.compute in (NATIVE, op.w):
        return f"{_pair(op)} as they are{shown}"
    if op.w in FLOATS or ELEMENTS[op.w].kind == "int":
        return f"{short(op.w)} -> {short(kernel.compute)} in registers{shown}"
    grouped = op.weights is not None and op.weights.granularity == "group"  # whose kernels have no conversions
    by = "conversion instructions" if _converts(op.w, target) and not grouped else "integer decoding"
    return f"{short(op.w)} -> {short(kernel.compute)} in registers by {by}{shown}"


def _converts(element: str, target: Target) -> bool:
    return any(target.converts(element, wide) for wide in FLOATS)


def _held_notes(op: Op, target: Target) -> list[str]:
    """What is not the checkpoint's own bytes in memory."""
    notes = []
    given, rounded = given_to_kernels(op.weights, op.activations, gpu=target.is_gpu)
    if given is not None and op.weights is not None and given.element != op.weights.element:
        notes.append(
            f"{short(op.w)} is held as {given.element} with half the scale, the same values at 8 bits a weight"
        )
    if rounded != op.activations:
        notes.append(f"activations are rounded to {short(op.a)} in front of the kernel, by PyTorch")
    return notes


def _format_notes(op: Op, target: Target) -> tuple[str, ...]:
    notes = _held_notes(op, target)
    if op.activations is None and op.dtype == "bfloat16" and target.vendor == "nvidia":
        if target.hardware_unit("bfloat16", "bfloat16") is None:
            notes.append(
                "no bfloat16 instructions: values are widened to f32 and results rounded by integer arithmetic"
            )
    if op.activations is not None and op.activations.group and op.activations.scale is None:
        if target.hardware_unit("e2m1", "e2m1") is not None:
            notes.append("scales are applied outside the matrix unit, whose own would round them to powers of two")
    return tuple(notes)
