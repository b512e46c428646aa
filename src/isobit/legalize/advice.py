"""Which scheme to use on a machine, in words for people who have never quantized a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isobit.formats.schemes import Scheme, scheme
from isobit.legalize.plan import Plan

GIB = 1 << 30

# Mean KL divergence per token from the unquantized model, in nats, as `isobit demo` measures it on the bundled model of
# 11.5 million parameters (README.md). Large models lose less; the order is what is used here.
# By weights (and activations, where those say more) and by whether groups are small.
_DIVERGENCE = {
    ("e4m3fn", False): 0.0068, ("int8", False): 0.0077, ("e5m2", False): 0.028, ("int4", True): 0.065,
    ("int4", False): 0.115, ("int4 x int8", True): 0.072, ("int4 x int8", False): 0.124, ("uint4", False): 0.11,
    ("uint4", True): 0.06, ("int3", True): 0.36, ("int3", False): 0.36, ("e2m1 by 16", True): 0.046,
    ("e2m1", True): 0.087, ("e2m1 x e2m1", True): 0.29,
}  # fmt: skip
_WORST = 9.0
_NEAR_LOSSLESS, _ACCEPTABLE = 0.01, 0.2
_WORTH_IT = 1.15  # how much faster a smaller format must be to be preferred to 16 bits that fit


def divergence(row: Scheme) -> float:
    """The expected loss of a scheme, in nats per token; 0 for 16 bits."""
    if row.weights is None:
        return 0.0
    fine = row.weights.group is not None and row.weights.group <= 40
    weights = row.weights.element
    if row.activations is None and (f"{weights} by {row.weights.group}", fine) in _DIVERGENCE:
        weights = f"{weights} by {row.weights.group}"
    both = weights if row.activations is None else f"{weights} x {row.activations.element}"
    keys = ((both, fine), (both, False), (weights, fine), (weights, False))
    return next((_DIVERGENCE[key] for key in keys if key in _DIVERGENCE), _WORST)


def loss_in_words(row: Scheme) -> str:
    """What a scheme loses, in words."""
    lost = divergence(row)
    if lost == 0:
        return "loses nothing"
    if lost <= _NEAR_LOSSLESS:
        return "loses almost nothing"
    if lost <= 0.05:
        return "loses a little"
    if lost <= _ACCEPTABLE:
        return "loses something: measure it with `isobit eval`"
    return "loses a lot: measure it with `isobit eval` before using it"


def choose(plans: Sequence[Plan]) -> Plan | None:
    """The plan to recommend among the schemes for one machine; None if none runs and fits.

    The most faithful class that fits wins: 16 bits and near-lossless 8 bits are one class, in which speed decides (and
    16 bits are kept unless the other is clearly faster); below that the loss decides.
    """
    usable = [p for p in plans if p.action in ("native", "legalized") and p.memory.fits and p.scheme != "as stored"]
    if not usable:
        return next((p for p in plans if p.scheme == "as stored" and p.action != "refused" and p.memory.fits), None)
    faithful = [p for p in usable if divergence(scheme(p.scheme)) <= _NEAR_LOSSLESS]
    if not faithful:
        return min(
            usable, key=lambda p: (divergence(scheme(p.scheme)), scheme(p.scheme).activations is not None, -_speed(p))
        )
    fastest = max(faithful, key=_merit)
    plain = [p for p in faithful if divergence(scheme(p.scheme)) == 0]
    best_plain = max(plain, key=_speed, default=None)
    if best_plain is not None and _speed(fastest) < _WORTH_IT * _speed(best_plain):
        return best_plain
    return fastest


def _merit(plan: Plan) -> tuple[float, ...]:
    """Speed, to differences that matter; then what is native, needs no calibration, and loses least."""
    row = scheme(plan.scheme)
    steps = round(math.log(max(_speed(plan), 1e-9), 1.05))
    return steps, plan.action == "native", not row.needs_calibration, -divergence(row)


def _speed(plan: Plan) -> float:
    return plan.cost.decode if plan.cost else 0.0


def recommendation(plans: Sequence[Plan]) -> str:
    """What to do on one machine, in a few sentences."""
    chosen = choose(plans)
    if chosen is None:
        return _nothing(plans)
    parts = [f"Use {chosen.scheme}: {_praise(chosen, plans)}."]
    faster = max((p for p in plans if _is_alternative(p) and p is not chosen), key=_speed, default=None)
    if faster is not None and _speed(faster) > 1.1 * _speed(chosen):
        parts.append(
            f"{faster.scheme} would be faster still (about {_speed(faster):.0f} tokens/s) but {_lost(faster)}."
        )
    # On CPUs nothing is native, and what is widened there is not slower for it.
    widened = [p.scheme for p in plans if p.action == "legalized" and p.main[0].activations is not None]
    if chosen.target.is_gpu and widened and chosen.scheme not in widened:
        parts.append(
            f"{_list(widened)} {'give' if len(widened) > 1 else 'gives'} exactly the model that was evaluated, too,"
            " but must be widened in registers here, which costs speed."
        )
    refused = [p for p in plans if p.action == "refused"]
    if refused:
        parts.append(
            "Not here: " + ", ".join(f"{p.scheme}{f' (use {p.instead})' if p.instead else ''}" for p in refused) + "."
        )
    return " ".join(parts)


def _is_alternative(plan: Plan) -> bool:
    """Whether a plan is worth naming beside the recommended one: it runs exactly, fits, and does not lose too much."""
    runs = plan.action in ("native", "legalized") and plan.memory.fits and plan.scheme != "as stored"
    return runs and divergence(scheme(plan.scheme)) <= _ACCEPTABLE


def figure(value: float) -> str:
    """A rate with the two or three figures that mean something, never as a power of ten."""
    if value >= 1000:
        return str(round(value, -2))[:-2]
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def in_short(plans: Sequence[Plan]) -> str:
    """What to do on one machine, in one line."""
    chosen = choose(plans)
    if chosen is None:
        return _nothing(plans)
    speed = f", about {figure(chosen.cost.decode)} tokens/s" if chosen.cost else ""
    return f"{chosen.scheme}: {chosen.action}{speed}, {chosen.memory.spare / GIB:.1f} GiB free"


def _praise(plan: Plan, plans: Sequence[Plan]) -> str:
    how = {"native": "it runs natively", "legalized": "it runs exactly, widened in registers"}.get(
        plan.action, "it runs"
    )
    facts = [how, f"leaves {plan.memory.spare / GIB:.1f} GiB free"]
    if plan.cost:
        facts.append(f"writes about {plan.cost.decode:.0f} tokens/s{_compared(plan, plans)}")
    facts.append(_lost(plan))
    return ", ".join(facts[:-1]) + " and " + facts[-1]


def _lost(plan: Plan) -> str:
    return loss_in_words(scheme(plan.scheme)) if plan.scheme != "as stored" else "is what the checkpoint holds"


def _compared(plan: Plan, plans: Sequence[Plan]) -> str:
    """How much faster than 16 bits, if they were planned too and fit."""
    plain = [p for p in plans if p.scheme in ("bf16", "f16") and p.memory.fits and _speed(p) > 0 and p is not plan]
    if not plain:
        return ""
    best = max(plain, key=_speed)
    ratio = _speed(plan) / _speed(best)
    return f" ({ratio:.1f} times as many as {best.scheme})" if ratio > 1.05 else ""


def _nothing(plans: Sequence[Plan]) -> str:
    running = [p for p in plans if p.action != "refused"]
    if not running:
        return "Nothing that was asked for runs here; the reasons are above."
    smallest = min(running, key=lambda p: p.memory.total)
    short_by = max(0.1, -smallest.memory.spare / GIB)  # what rounds to 0 is short of something all the same
    request = smallest.request
    if smallest.memory.longest_context >= 512:
        return (
            f"Nothing fits at this length: {smallest.scheme} lacks {short_by:.1f} GiB for {request.batch} x"
            f" {request.context} tokens, but has room for {smallest.memory.longest_context} tokens of context."
        )
    return (
        f"Nothing fits: even {smallest.scheme} lacks {short_by:.1f} GiB. Use a machine with more memory, or a smaller"
        f" model.{_cards(smallest)}"
    )


def _cards(plan: Plan) -> str:
    """How many such cards hold a model together, where one does not; isobit runs it on one."""
    memory = plan.memory
    beside = memory.runtime + memory.activations + memory.recorded + memory.tower  # which each of them has
    if not plan.target.is_gpu or memory.capacity <= beside:
        return ""
    cards = -(-(memory.weights + memory.kv) // (memory.capacity - beside))
    return (
        f" The memory of {cards} such cards holds its {memory.weights / GIB:.1f} GiB of weights and the cache; isobit"
        " runs a model on one, and vLLM or SGLang the same checkpoint on several."
    )


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
