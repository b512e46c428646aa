"""Plans as text for people and as data for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from isobit.legalize.advice import GIB, figure, in_short, recommendation
from isobit.legalize.cost import Cost
from isobit.legalize.ops import Decision, Lowering, Op, Refusal
from isobit.legalize.plan import Plan
from isobit.legalize.rules import short
from isobit.targets.prefill import prefill_chunk

WIDTH = 110
_COLUMNS = 7  # schemes beside each other in the overview


def describe(plans: Sequence[Plan], *, verbose: bool = False) -> list[str]:
    """The plans for one machine: a table, a line on how each runs, what to know, and what to do."""
    first = plans[0]
    lines = [_machine(first), ""]
    lines += _table(_HEADER, [_row(plan) for plan in plans], [_remarks(plan) for plan in plans])
    towers = dict.fromkeys(f"{plan.memory.tower / GIB:.2f} GiB" for plan in plans if plan.memory.tower)
    if towers:
        lines += ["", *_wrapped(f"What encodes media takes {' or '.join(towers)} besides, which `all` has in it.")]
    if graphs := [plan.memory.recorded for plan in plans if plan.memory.recorded]:
        lines += ["", *_wrapped(f"Steps that are recorded (as graphs of the GPU) take {_span(graphs)} of `all`.")]
    lines += _pieces(plans)
    notes: dict[str, list[str]] = {}
    for plan in plans:
        for note in plan.notes:
            notes.setdefault(note, []).append(plan.scheme)
    if notes:
        lines += ["", "Mind:"]
        for note, schemes in notes.items():
            whose = f"{', '.join(schemes)}: " if len(schemes) < len(plans) and [note.split(":")[0]] != schemes else ""
            lines += _wrapped(f"{whose}{note}", "  - ", "    ")
    if verbose:
        for plan in plans:
            lines += ["", f"{plan.scheme}, op by op:", *_ops(plan), *_sources(plan)]
    lines += ["", *_wrapped(recommendation(plans))]
    return lines


def _pieces(plans: Sequence[Plan]) -> list[str]:
    """In how large steps prompts are read, where these are larger than usual when much is due."""
    usual = prefill_chunk(plans[0].target)
    wide = [plan for plan in plans if plan.piece > usual and plan.action != "refused"]
    if not wide:
        return []
    running = [plan for plan in plans if plan.action != "refused"]
    whose = f" ({', '.join(plan.scheme for plan in wide)})" if len(wide) < len(running) else ""
    many = wide[0].piece
    said = f"Prompts are read {many} tokens at a time where so many are due{whose}, else {usual}."
    return ["", *_wrapped(said)]


def _span(sizes: Iterable[int]) -> str:
    """One size in GiB, or the least and the most of several."""
    shown = list(dict.fromkeys(f"{size / GIB:.2f}" for size in sorted(sizes)))
    return f"{shown[0]} GiB" if len(shown) == 1 else f"{shown[0]} to {shown[-1]} GiB"


def _machine(plan: Plan) -> str:
    board, request = plan.board, plan.request
    speed = f", {board.bandwidth / 1e9:.0f} GB/s" if board.bandwidth > 0 else ""
    cache = f", {short(request.kv)} cache" if request.kv else ""
    part = f"{request.allowed(board) / GIB:.1f} of its " if request.allowed(board) < board.memory else ""
    title = f"{board.name} ({plan.target.name}, {plan.target.title}), {part}{board.memory / GIB:.1f} GiB{speed}"
    return f"{title}, for {asked(plan)}{cache}"


def asked(plan: Plan) -> str:
    """How much is to be room for."""
    request = plan.request
    return (
        f"{request.batch} sequences of {request.context} tokens" if request.batch > 1 else f"{request.context} tokens"
    )


_HEADER = (
    ("scheme", "action", "weights", "KV cache", "all", "room left", "longest", "largest", "decode", "prompt"),
    ("", "", "GiB", "KiB/token", "GiB", "GiB", "context", "batch", "tok/s", "tok/s"),
)


def _row(plan: Plan) -> tuple[str, ...]:
    memory, cost = plan.memory, plan.cost
    left = f"{memory.spare / GIB:.1f}" if memory.fits else f"lacks {max(0.1, -memory.spare / GIB):.1f}"  # never 0
    sign = _sign(plan)
    speeds = (f"{sign}{figure(cost.decode)}", f"{sign}{figure(cost.prefill)}") if cost else ("-", "-")
    room = (left, str(memory.longest_context), str(memory.largest_batch)) if plan.action != "refused" else ("-",) * 3
    return (
        plan.scheme,
        plan.action,
        f"{memory.weights / GIB:.2f}",
        _kib(memory.kv_per_token),
        f"{memory.total / GIB:.2f}",
        *room,
        *speeds,
    )


def _kib(size: float) -> str:
    """Bytes in KiB, with the figures that mean something."""
    kib = size / 1024
    return f"{kib:.4g}" if kib < 1000 else f"{kib:.0f}"


def _sign(plan: Plan) -> str:
    """What marks a speed that was not measured on such a machine."""
    return "" if plan.cost is None or plan.cost.measured else "~"


def _remarks(plan: Plan) -> list[str]:
    """How a plan runs and why not better, under its row."""
    op, decision = plan.main
    if isinstance(decision, Refusal):
        remarks = list(_merged(plan.reasons))
        if plan.instead:
            remarks.append(f"instead: {plan.instead}")
        return remarks
    why = [f"not native: {reason}" for reason in _merged(plan.reasons)]
    return [remark for remark in (decision.how, *why, plan.measured_here) if remark]


def _merged(reasons: Sequence[str]) -> Iterable[str]:
    """Reasons that differ in nothing but the module are given once."""
    seen: dict[str, list[str]] = {}
    for reason in reasons:
        module, colon, rest = reason.partition(": ")
        key = rest if colon and " " not in module else reason
        seen.setdefault(key, []).append(module if key is rest else "")
    for text, modules in seen.items():
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        yield f"{modules[0]}{more}: {text}" if modules[0] else text


def _table(header: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], below: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned names, right-aligned figures, and lines under each row."""
    widths = [max(len(cells[i]) for cells in (*header, *rows)) for i in range(len(header[0]))]

    def line(cells: Sequence[str]) -> str:
        parts = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(parts).rstrip()

    lines = [line(cells) for cells in header]
    lines.append("  ".join("-" * width for width in widths))
    for cells, remarks in zip(rows, below, strict=True):
        lines.append(line(cells))
        for remark in remarks:
            lines += _wrapped(remark, "    ", "      ")
    return lines


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False) or [first]


def _ops(plan: Plan) -> list[str]:
    rows, below = [], []
    for op, decision in plan.ops:
        rows.append((op.name, decision.action, str(op.count), f"{op.n} x {op.k}"))
        below.append(op_lines(op, decision))
    return _table((("op", "action", "times", "shape"),), rows, below)


def op_lines(op: Op, decision: Decision) -> list[str]:
    """How one op runs: many tokens, one token, kernels, reason; or why it does not."""
    if isinstance(decision, Refusal):
        return list(decision.reasons)
    lines = [decision.how]
    if decision.decode != decision.how:
        lines.append(f"one token: {decision.decode}")
    if decision.sizes:
        (_, first), *more = decision.sizes
        lines.append("kernels: " + ", ".join((f"{first} for one token", *(f"{name} from {n}" for n, name in more))))
    elif op.kind != "embedding":
        lines.append(f"kernels: {', '.join(decision.kernels)}")
    if decision.reason:
        lines.append(f"not native: {decision.reason}")
    return lines


def _sources(plan: Plan) -> list[str]:
    memory, cost = plan.memory, plan.cost
    tower = f"{memory.tower} of what encodes media, " if memory.tower else ""
    lines = _wrapped(
        f"memory: {memory.weights} bytes of weights, {tower}{memory.kv} of cache, {memory.activations} of activations,"
        f"{f' {memory.recorded} of recorded steps,' * bool(memory.recorded)}"
        f" {memory.runtime} of the runtime; {memory.capacity} can be used"
    )
    if cost:
        lines += _wrapped(
            f"speed: {cost.step_bytes / 1e9:.2f} GB read in a step, {cost.token_operations / 1e9:.1f} GFLOP for a token"
            f" of a prompt; {1000 / cost.kernels * plan.request.batch:.3g} of a step's"
            f" {1000 / cost.decode * plan.request.batch:.3g} ms go to linears and attention{_experts(cost)}; how much"
            " of the machine's rates is reached:"
        )
        lines += [line for source in cost.sources for line in _wrapped(source, "  - ", "    ")]
    return [*lines, *_wrapped(f"machine: {plan.target.source}; {plan.board.source}")]


def _experts(cost: Cost) -> str:
    return f", {1000 * cost.experts:.3g} of them to experts and their choice" if cost.experts else ""


def legend() -> list[str]:
    """What the words in a plan mean."""
    return _wrapped(
        "native: the matrix unit takes the formats. legalized: operands are widened exactly in registers, or"
        " multiplied outside the matrix unit, and every rounding point is kept. relaxed: a rounding point is dropped."
        " ~: an estimate, by figures of other machines, formats or choices."
    )


def overview(by_machine: Sequence[Sequence[Plan]]) -> list[str]:
    """Many machines at once: action and decode speed of every scheme, and one line of advice each."""
    schemes = [plan.scheme for plan in by_machine[0]]
    lines = []
    for begin in range(0, len(schemes), _COLUMNS):
        names = schemes[begin : begin + _COLUMNS]
        rows = []
        for plans in by_machine:
            board = plans[0].board
            rows.append((plans[0].target.name, board.name, *map(_cell, plans[begin : begin + _COLUMNS])))
        lines += [*_table((("target", "board", *names),), rows, [[]] * len(rows)), ""]
    lines.append("Figures are tokens/s decoded, or what is lacking. What to use:")
    if any(plan.action == "refused" for plans in by_machine for plan in plans):
        lines[-1:] = ["Why something is refused: -v, or that target alone.", lines[-1]]
    if smaller := [plans[0].board.name for plans in by_machine if plans[0].request.beyond(plans[0].board)]:
        asked = (by_machine[0][0].request.memory or 0) / GIB
        said = f"{asked:.1f} GiB were allowed; planned with what they have, which is less: {', '.join(smaller)}."
        lines[-1:] = [*_wrapped(said), lines[-1]]
    width = max(len(plans[0].board.name) for plans in by_machine)
    for plans in by_machine:
        label = plans[0].board.name
        lines += _wrapped(in_short(plans), f"{label:<{width}}  ", " " * (width + 2))
    return lines


def _cell(plan: Plan) -> str:
    if plan.action == "refused":
        return "refused"
    word = {"native": "native", "legalized": "legal.", "relaxed": "relaxed"}[plan.action]
    if not plan.memory.fits:
        short = -plan.memory.spare / GIB
        return f"{word} -{short:.0f} GiB" if short >= 1 else f"{word} -{max(short, 0.01):.2g} GiB"
    return f"{word} {_sign(plan)}{figure(plan.cost.decode)}" if plan.cost else word


def as_data(plan: Plan) -> dict[str, Any]:
    """One plan as plain data."""
    memory, cost, request = plan.memory, plan.cost, plan.request
    op, decision = plan.main
    lowered = decision if isinstance(decision, Lowering) else None
    return {
        "scheme": plan.scheme,
        "target": plan.target.name,
        "board": plan.board.name,
        "context": request.context,
        "batch": request.batch,
        "kv": request.kv,
        "action": plan.action,
        "how": lowered.how if lowered else None,
        "decode_how": lowered.decode if lowered else None,
        "reasons": list(plan.reasons),
        "instead": plan.instead or None,
        "prompt_tokens_at_once": plan.piece,
        "notes": list(plan.notes),
        "memory": {
            "weights": memory.weights,
            **({"tower": memory.tower} if memory.tower else {}),
            "kv_per_token": memory.kv_per_token,
            "kv": memory.kv,
            "activations": memory.activations,
            **({"recorded": memory.recorded} if memory.recorded else {}),
            "runtime": memory.runtime,
            "total": memory.total,
            "capacity": memory.capacity,
            "spare": memory.spare,
            "fits": memory.fits,
            "longest_context": memory.longest_context,
            "largest_batch": memory.largest_batch,
        },
        "speed": None
        if cost is None
        else {
            "decode_tokens_per_second": round(cost.decode, 2),
            "prefill_tokens_per_second": round(cost.prefill, 1),
            "decode_of_linears_and_attention_alone": round(cost.kernels, 2),
            "measured": cost.measured,
            "measured_here": plan.measured_here or None,
            "sources": list(cost.sources),
            "bytes_per_step": cost.step_bytes,
            "operations_per_prompt_token": cost.token_operations,
        },
        "ops": [_op_data(op, decision) for op, decision in plan.ops],
        "sources": [plan.target.source, plan.board.source],
    }


def _op_data(op: Op, decision: Decision) -> dict[str, Any]:
    data: dict[str, Any] = {"op": op.name, "kind": op.kind, "n": op.n, "k": op.k, "count": op.count}
    if op.experts:
        data |= {"experts": op.experts, "active_experts": op.active}
    data |= {"weights": op.w, "activations": op.a, "action": decision.action}
    if isinstance(decision, Refusal):
        return data | {"reasons": list(decision.reasons)}
    return data | {
        "how": decision.how,
        "decode_how": decision.decode,
        "compute": decision.compute,
        "instruction": decision.instruction or None,
        "kernels": list(decision.kernels),
        "kernels_by_tokens": [{"from": first, "kernel": name} for first, name in decision.sizes],
        "reason": decision.reason or None,
        "notes": list(decision.notes),
    }
