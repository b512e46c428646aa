"""Which scheme to use on a machine, in words for people who have never quantized a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isobit.formats.schemes import SCHEMES, Scheme, scheme
from isobit.legalize.exact import widen
from isobit.legalize.ops import Lowering, Refusal
from isobit.legalize.plan import AS_STORED, CODES, Plan
from isobit.legalize.rules import short

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
_FAITHFUL = 0.05  # of what is said to give the model that was evaluated, without a word on what it loses
_AS_FAST = 0.97  # of another's speed: less is a difference
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


def rounding(dtype: str, source: Sequence[str]) -> str:
    """What of weights in some dtypes is rounded in another one, in words; empty where that holds every number.

    Args:
        dtype: the one that they get.
        source: as of :class:`Plan`.
    """
    said = []
    for own in source:
        if own == CODES:
            said.append(f"the numbers that codes stand for are rounded to {short(dtype)}")
        elif widen(own, dtype) is None:
            small = " below 2^-17" if (own, dtype) == ("bfloat16", "float16") else ""
            said.append(f"{short(own)} weights{small} are rounded to {short(dtype)}")
    if said and dtype == "float16":
        said.append("none may be beyond 65504")
    return ", ".join(said)


def loss_in_words(row: Scheme, source: Sequence[str] = ()) -> str:
    """What a scheme loses of a source, in words."""
    lost = divergence(row)
    if lost == 0:
        rounded = rounding(row.dtype, source) if row.dtype is not None else ""
        return f"loses almost nothing ({rounded})" if rounded else "loses nothing"
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
    usable = [p for p in plans if p.action in ("native", "legalized") and p.memory.fits and p.scheme != AS_STORED]
    if not usable:
        return next((p for p in plans if p.scheme == AS_STORED and p.action != "refused" and p.memory.fits), None)
    faithful = [p for p in usable if divergence(scheme(p.scheme)) <= _NEAR_LOSSLESS]
    if not faithful:
        return min(
            usable, key=lambda p: (divergence(scheme(p.scheme)), scheme(p.scheme).activations is not None, -_speed(p))
        )
    fastest = max(faithful, key=_merit)
    plain = [p for p in faithful if divergence(scheme(p.scheme)) == 0]
    best_plain = max(plain, key=lambda p: (_speed(p), not _rounds(p)), default=None)
    if best_plain is not None and _speed(fastest) < _WORTH_IT * _speed(best_plain):
        return best_plain
    return fastest


def _rounds(plan: Plan) -> bool:
    """Whether a plan that quantizes nothing rounds weights."""
    dtype = scheme(plan.scheme).dtype
    return dtype is not None and bool(rounding(dtype, plan.source))


def _merit(plan: Plan) -> tuple[float, ...]:
    """Speed, to differences that matter; then what is native, needs no calibration, and loses least."""
    row = scheme(plan.scheme)
    steps = round(math.log(max(_speed(plan), 1e-9), 1.05))
    return steps, plan.action == "native", not row.needs_calibration, -divergence(row)


def _speed(plan: Plan) -> float:
    return plan.cost.decode if plan.cost else 0.0


_UNLOADED = (
    "The weights that lie here are not loaded as they are: a note says why; mend them or download them again. Of whole"
    " ones:"
)


def recommendation(plans: Sequence[Plan]) -> str:
    """What to do on one machine, in a few sentences."""
    chosen = choose(plans)
    if chosen is None:
        return _nothing(plans)
    parts = [_UNLOADED] if chosen.unloaded else []
    parts.append(f"Use {chosen.scheme}: {_praise(chosen, plans)}.")
    faster = max((p for p in plans if _is_alternative(p) and p is not chosen), key=_speed, default=None)
    if faster is not None and _speed(faster) > 1.1 * _speed(chosen):
        parts.append(
            f"{faster.scheme} would be faster still (about {_speed(faster):.0f} tokens/s) but {_lost(faster)}."
        )
    parts += _native_besides(chosen, faster, plans)
    parts += _widened_besides(chosen, plans)
    refused = [p for p in plans if p.action == "refused"]
    if refused:
        parts.append(
            "Not here: " + ", ".join(f"{p.scheme}{f' (use {p.instead})' if p.instead else ''}" for p in refused) + "."
        )
    return " ".join(parts)


def _native_besides(chosen: Plan, named: Plan | None, plans: Sequence[Plan]) -> list[str]:
    """The fastest native scheme that loses too much to be recommended, where that is faster than what is named."""
    if not chosen.target.is_gpu:
        return []
    native = [p for p in plans if p.action == "native" and p.memory.fits and p.scheme != AS_STORED and p is not chosen]
    lossy = [p for p in native if divergence(scheme(p.scheme)) > _ACCEPTABLE]
    best = max(lossy, key=_speed, default=None)
    rival = max(_speed(chosen), _speed(named) if named is not None else 0.0)
    if best is None or _speed(best) <= 1.1 * rival:
        return []
    return [f"{best.scheme} runs natively, too, and faster (about {_speed(best):.0f} tokens/s), but {_lost(best)}."]


def _widened_besides(chosen: Plan, plans: Sequence[Plan]) -> list[str]:
    """What is said of schemes of rounded activations that are widened where the recommended one is not."""
    # On CPUs nothing is native, and what is widened there is not slower for it.
    widened = [p for p in plans if p.action == "legalized" and p.memory.fits and p.main[0].activations is not None]
    if not chosen.target.is_gpu or chosen in widened:
        return []
    alike: dict[tuple[str, str], list[str]] = {}
    for plan in widened:
        lost = "" if divergence(scheme(plan.scheme)) <= _FAITHFUL else loss_in_words(scheme(plan.scheme))
        alike.setdefault((lost, _cost_of_widening(plan, chosen)), []).append(plan.scheme)
    parts = []
    for (lost, price), names in alike.items():
        many = len(names) > 1
        if lost:
            parts.append(
                f"{_list(names)} must be widened in registers here, {price}; {'each' if many else 'it'} {lost}."
            )
        else:
            parts.append(
                f"{_list(names)} {'give' if many else 'gives'} exactly the model that was evaluated, too,"
                f" but must be widened in registers here, {price}."
            )
    return parts


def _cost_of_widening(plan: Plan, chosen: Plan) -> str:
    """What widening costs beside the recommended plan, as the table has it."""
    if plan.cost is None or chosen.cost is None or plan.cost.decode < _AS_FAST * chosen.cost.decode:
        return "which costs speed"
    return (
        "which costs speed in prompts" if plan.cost.prefill < _AS_FAST * chosen.cost.prefill else "which costs no speed"
    )


def _is_alternative(plan: Plan) -> bool:
    """Whether a plan is worth naming beside the recommended one: it runs exactly, fits, and does not lose too much."""
    runs = plan.action in ("native", "legalized") and plan.memory.fits and plan.scheme != AS_STORED
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
        return _nothing(plans, brief=True)
    speed = f", about {figure(chosen.cost.decode)} tokens/s" if chosen.cost else ""
    return f"{chosen.scheme}: {chosen.action}{speed}, {chosen.memory.spare / GIB:.1f} GiB free{_allowed(chosen)}"


def _praise(plan: Plan, plans: Sequence[Plan]) -> str:
    how = {"native": "it runs natively", "legalized": "it runs exactly"}.get(plan.action, "it runs")
    decision = plan.main[1]
    if plan.action == "legalized" and isinstance(decision, Lowering) and "in registers" in decision.how:
        how += ", widened in registers"
    if plan.action == "native" and isinstance(decision, Lowering) and decision.native_from > 1:
        how += f" from {decision.native_from} tokens in a call on (fewer are widened in registers)"
    facts = [how, f"leaves {plan.memory.spare / GIB:.1f} GiB free"]
    if plan.cost:
        facts.append(f"writes about {plan.cost.decode:.0f} tokens/s{_compared(plan, plans)}")
    facts.append(_lost(plan))
    return ", ".join(facts[:-1]) + " and " + facts[-1]


def _lost(plan: Plan) -> str:
    if plan.scheme != AS_STORED:
        return loss_in_words(scheme(plan.scheme), plan.source)
    op = plan.main[0]
    rounded = rounding(op.w, plan.source) if plan.target.is_gpu and op.weights is None else ""
    return f"is what the checkpoint holds{f', of which {rounded}' if rounded else ''}"


def _compared(plan: Plan, plans: Sequence[Plan]) -> str:
    """How much faster than 16 bits, if they were planned too and fit."""
    plain = [p for p in plans if p.scheme in ("bf16", "f16") and p.memory.fits and _speed(p) > 0 and p is not plan]
    if not plain:
        return ""
    best = max(plain, key=_speed)
    ratio = _speed(plan) / _speed(best)
    return f" ({ratio:.1f} times as many as {best.scheme})" if ratio > 1.05 else ""


def _nothing(plans: Sequence[Plan], *, brief: bool = False) -> str:
    """Why there is nothing to use; ``brief`` where nothing else is said of the machine, so no reasons either."""
    running = [p for p in plans if p.action != "refused"]
    if not running and brief:
        return f"Nothing that was asked for runs here: {_refusals(plans)}."
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
    lacks = f"Nothing fits{_allowed(smallest)}: even {smallest.scheme} lacks {short_by:.1f} GiB."
    if _allowed(smallest):
        return f"{lacks} Allow more with --memory, or use {_fewer_bits(smallest)}a smaller model."
    return f"{lacks} Use {_fewer_bits(smallest)}a machine with more memory, or a smaller model.{_cards(smallest)}"


def _allowed(plan: Plan) -> str:
    """What may be taken of a machine's memory, where that is not all of it."""
    board, allowed = plan.board, plan.request.allowed(plan.board)
    return f" of the {allowed / GIB:.1f} GiB allowed" if allowed < board.memory else ""


def _refusal(plan: Plan) -> str:
    """Why a plan is refused: of a linear the last reason, which has those before it behind it."""
    op, decision = plan.main
    reasons = decision.reasons if isinstance(decision, Refusal) else plan.reasons
    return "; ".join(reasons if op.kind == "attention" else reasons[-1:])


def _fewer_bits(plan: Plan) -> str:
    """The most faithful scheme of weights alone that takes fewer bits and may fit; empty if there is none."""
    if plan.scheme == AS_STORED:
        return ""
    bits, memory = scheme(plan.scheme).bits_per_weight(), plan.memory

    def may_fit(row: Scheme) -> bool:
        fewer = row.bits_per_weight() / bits
        return fewer < 1 and memory.total - memory.weights * (1 - fewer) <= memory.capacity

    found = [row for row in SCHEMES.values() if row.activations is None and row.weights is not None and may_fit(row)]
    best = min(found, key=divergence, default=None)
    return f"{best.name}, which may fit (it {loss_in_words(best)}), " if best is not None else ""


def _refusals(plans: Sequence[Plan]) -> str:
    """Why plans are refused, each reason once; of no more than two that differ."""
    first: dict[str, list[str]] = {}
    for plan in plans:
        first.setdefault(_refusal(plan), []).append(plan.scheme)
    if len(first) == 1:
        return next(iter(first))
    more = "; and more, which a plan of this target alone has" if len(first) > 2 else ""
    return "; ".join(f"{_list(names)}: {reason}" for reason, names in list(first.items())[:2]) + more


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
