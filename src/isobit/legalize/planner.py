"""(op, target) -> lowering or refusal, and the whole matrix of schemes, ops and targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from isobit.errors import SchemeError
from isobit.formats.caches import CACHE_FORMATS
from isobit.formats.fitting import check_shape, fitted
from isobit.formats.schemes import GROUPED, SCHEMES, Scheme, scheme
from isobit.formats.table import ELEMENTS
from isobit.legalize.exact import FLOATS, bits
from isobit.legalize.kernels import ATTENTION_KERNELS, activation_dtype, find
from isobit.legalize.ops import ACTIONS, Action, Decision, Lowering, Op, Refusal
from isobit.legalize.rules import RULES, Rule, short
from isobit.targets.spec import Target

_GROUPS = (32, 64, 128)  # group sizes that a refusal may suggest


def decide(op: Op, target: Target, *, allow_relaxed: bool = False, rules: tuple[Rule, ...] = RULES) -> Decision:
    """How an op runs on a target.

    Args:
        op: what is to be run.
        target: where.
        allow_relaxed: whether rules that drop a rounding point may be asked.
        rules: the rules, in order.

    Returns:
        The lowering of the first rule that has one, or a refusal with the reasons of all. A refusal made here does not
        know what would work instead; :func:`nearest` does.
    """
    if op.kind == "attention":
        return _attention(op, target)
    if op.kind == "embedding":
        return _embedding(op)
    reasons = _shape_problems(op)
    if reasons:
        return Refusal(reasons)
    found = find(op, target)
    for rule in rules:
        if rule.moves_rounding and not allow_relaxed:
            continue
        answer = rule.apply(op, target, found)
        if isinstance(answer, Lowering):
            return _of_experts(answer) if op.experts and target.is_gpu else answer
        if answer not in reasons:
            reasons = (*reasons, answer)
    return Refusal(reasons)


def _of_experts(answer: Lowering) -> Lowering:
    """Of linears of a mixture, whose experts are launched together: no call of them is as large as the largest."""
    sizes = tuple(size for size in answer.sizes if not size[1].startswith("large-"))
    notes = tuple(note for note in answer.notes if not note.startswith("from "))
    return replace(answer, sizes=sizes, notes=notes, workspace=0, narrowed=False)


def _shape_problems(op: Op) -> tuple[str, ...]:
    """Why a scheme cannot hold a weight; a checkpoint's own last block of columns may be narrower than the others."""
    if op.weights is None or (op.given and op.weights.block is not None):
        return ()
    try:
        check_shape(op.weights, op.n, op.k, op.name, op.activations)
    except SchemeError as error:
        return (str(error),)
    return ()


def _embedding(op: Op) -> Lowering:
    """A row of a table is copied, which every target does with every format."""
    how = f"a row of the table, {short(op.w)}"
    return Lowering("native", "copy", how, how, op.w, False, "", ("lookup",), "", (), op.rounds)


def _attention(op: Op, target: Target) -> Decision:
    latent = bool(op.kept) and op.kept[0] != op.kept[1]
    parts = (op.kept[0], op.kept[1]) if latent else (op.k, op.k)
    rows = [
        row for row in ATTENTION_KERNELS
        if target.vendor in row.vendors and row.takes(op.kv, op.dtype, parts[0], latent=latent)
    ]  # fmt: skip
    unread = [why for row in rows if (why := row.unread(op.kv, parts, target))]
    rows = [row for row in rows if row.unread(op.kv, parts, target) is None]
    names, said = next(((found, row.said) for row in rows if (found := row.names(target, op.dtype))), ((), ""))
    if not names:
        return Refusal((_unread(op, parts, target, latent), *(f"isobit's attention {why}" for why in unread)))
    unit = target.hardware_unit(op.dtype, op.dtype) if target.is_gpu else None  # the kernels use all of them
    how = f"{short(op.dtype)} matrix unit ({unit.instruction})" if unit else "f32 multiply-add"
    reason = "" if unit or op.dtype == "float32" else f"{target.name} has no usable matrix unit for {short(op.dtype)}"
    how += f", cache {short(op.kv)}"
    action: Action = "legalized" if reason else "native"
    instruction = unit.instruction if unit else ""
    return Lowering(
        action, "attention", how, how, op.dtype, unit is not None, instruction, names, reason,
        (said,) if said else (), op.rounds,
    )  # fmt: skip


def _unread(op: Op, parts: tuple[int, int], target: Target, latent: bool) -> str:
    """Why keys and values in a format are refused."""
    rows = [row for row in ATTENTION_KERNELS if target.vendor in row.vendors and row.latent == latent]
    read = [
        one.name for one in CACHE_FORMATS.values()
        if one.kv != op.dtype and any(one.kv in row.cache and row.unread(one.kv, parts, target) is None for row in rows)
    ]  # fmt: skip
    others = f", or as {', '.join(read[:-1])} or {read[-1]}" if read else ""
    return (
        f"no attention kernel of isobit's reads keys and values in {short(op.kv)}: keep them in the activations' dtype"
        f" ({short(op.dtype)}){others}"
    )


# ---------------------------------------------------------------------- the nearest scheme


def nearest(wanted: Scheme, ops: Iterable[Op], target: Target) -> str:
    """The scheme most like ``wanted`` under which all of ``ops`` run on a target; empty if there is none.

    A scheme is held against each as it would be used on it, in other groups where its own do not divide the inputs.

    Args:
        wanted: the scheme that is refused.
        ops: linears that it was asked for.
        target: where.
    """
    ops = tuple(ops)
    grouped = (scheme(f"{name}-g{size}") for name in GROUPED for size in _GROUPS)
    rows = {row.name: row for row in (*SCHEMES.values(), *grouped) if row.name != wanted.name}
    for row in sorted(rows.values(), key=lambda row: distance(wanted, row)):
        if all(isinstance(decide(under(op, fitted(row, op.k), target), target), Lowering) for op in ops):
            return row.name
    return ""


def under(op: Op, row: Scheme, target: Target) -> Op:
    """The same op with its weights and activations as a scheme has them."""
    if row.dtype is None:
        return replace(op, weights=row.weights, activations=row.activations)
    dtype = row.dtype if target.is_gpu else op.dtype
    return replace(op, weights=None, activations=None, dtype=dtype, stored=row.dtype)


def distance(a: Scheme, b: Scheme) -> tuple[float, ...]:
    """How unlike two schemes are: in the weights' size and format, in what is rounded, and in the scales."""
    (weights_a, bits_a, kind_a), (weights_b, bits_b, kind_b) = _weights(a), _weights(b)
    inputs_a, inputs_b = _inputs(a), _inputs(b)
    return (
        abs(bits_a - bits_b),
        float(kind_a != kind_b),
        float(weights_a != weights_b),
        float(a.weights != b.weights or b.activations is not None),  # the same weights, and nothing rounded but them
        float(inputs_a != inputs_b),
        abs(a.bits_per_weight() - b.bits_per_weight()),
    )


def _weights(row: Scheme) -> tuple[str, int, str]:
    name = row.weights.element if row.weights else row.dtype or "bfloat16"
    return name, bits(name), "float" if name in FLOATS else ELEMENTS[name].kind


def _inputs(row: Scheme) -> str:
    return row.activations.element if row.activations else ""


# ---------------------------------------------------------------------- the whole matrix


def sample_ops(row: Scheme, target: Target) -> tuple[Op, ...]:
    """The kinds of linears that a model has under a scheme, at sizes that every scheme divides."""
    size = 15360  # a multiple of 128 and of 40
    stored = row.dtype or "bfloat16"
    dtype = activation_dtype(target, stored)
    if row.dtype is not None and target.is_gpu:
        dtype = stored
    kept = stored if target.vendor == "cpu" else dtype
    return (
        Op("linear", "linear", size, size, row.weights, row.activations, dtype, kept),
        Op("linear", "lm_head", size, size, dtype=dtype, stored=kept),
    )


def shared_ops(target: Target) -> tuple[Op, ...]:
    """The kinds of work that no scheme changes."""
    dtype = activation_dtype(target, "bfloat16")
    return (
        Op("embedding", "embedding", 32000, 4096),
        Op("attention", "attention", 32, 128, dtype=dtype, kv=dtype, kv_heads=32),
        Op("attention", "attention, e4m3fn cache", 32, 128, dtype=dtype, kv="e4m3fn", kv_heads=32),
    )


def matrix(
    schemes: Iterable[Scheme], targets: Iterable[Target]
) -> Iterator[tuple[Scheme | None, Op, Target, Decision]]:
    """Every decision for every scheme, op and target; first those that hold under any scheme (None)."""
    schemes, targets = tuple(schemes), tuple(targets)
    for target in targets:
        for op in shared_ops(target):
            yield None, op, target, decide(op, target)
    for row in schemes:
        for target in targets:
            for op in sample_ops(row, target):
                answer = decide(op, target)
                if isinstance(answer, Refusal):
                    answer = replace(answer, instead=nearest(row, [op], target))
                yield row, op, target, answer


def verify(op: Op, answer: Decision) -> list[str]:
    """What is wrong with a decision: a moved rounding point, or an action that does not follow from what it does."""
    if isinstance(answer, Refusal):
        return [] if answer.reasons and all(answer.reasons) else [f"{op.name}: a refusal without a reason"]
    problems = []
    kept = answer.rounds == op.rounds
    if kept == (answer.action == "relaxed"):
        problems.append(f"{op.name}: {answer.action}, but the rounding points are {'kept' if kept else 'moved'}")
    if answer.action not in ACTIONS or (answer.action == "native") == bool(answer.reason):
        problems.append(f"{op.name}: {answer.action} with the reason {answer.reason!r}")
    return problems
