"""How long a token takes: bytes over bandwidth and operations over rate, times what is measured to be reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isobit.formats.caches import kv_bytes
from isobit.kernels.held import given
from isobit.legalize.efficiency import ENGINES, LAUNCHES, efficiency
from isobit.legalize.ops import Lowering, Op
from isobit.legalize.pace import EXPECTED, pace
from isobit.legalize.pace_rows import PACES
from isobit.targets.prefill import prefill_chunk
from isobit.targets.spec import Board, Target

_EXPERTS = (
    "experts are taken to be as fast as other linears; on an H200, where mixtures were measured, batches and prompts"
    " are up to 2.3 times as fast as plans say, one sequence down to 0.8 times (docs/plan.md)"
)


@dataclass(frozen=True)
class Cost:
    """Predicted speed.

    Attributes:
        decode: tokens per second of all sequences together, one token at a time each.
        prefill: tokens per second of a prompt.
        kernels: as ``decode``, if linears and attention were all there is.
        attention, beside_attention: seconds of a step.
        pace, pace_attention: how many times as long as by bytes and operations alone these are said to take, since
            whole steps were measured so (:mod:`isobit.legalize.pace`).
        measured: whether every fraction used was measured on this target; else the figures are estimates.
        sources: where the fractions come from.
        step_bytes: read from memory for one step of the batch.
        token_operations: multiplications and additions for one token of a prompt.
    """

    decode: float
    prefill: float
    kernels: float
    measured: bool
    sources: tuple[str, ...]
    step_bytes: float
    token_operations: float
    attention: float = 0.0
    beside_attention: float = 0.0
    pace: float = 1.0
    pace_attention: float = 1.0


@dataclass(frozen=True)
class Work:
    """An op, its lowering, and the bytes of all its weights (``op.count`` of them)."""

    op: Op
    lowering: Lowering
    weight_bytes: int


def cost(
    work: Iterable[Work], target: Target, board: Board, *, batch: int, context: int, layers: int, hidden: int
) -> Cost | None:
    """Predicted speed; None where the board's bandwidth is not known.

    Args:
        work: what one token needs.
        target, board: what runs it.
        batch: sequences decoded together.
        context: tokens that each attends to.
        layers: of the model.
        hidden: width of the residual stream.
    """
    if board.bandwidth <= 0:
        return None
    launch, engine = LAUNCHES[target.vendor], ENGINES[target.vendor]
    prompt = min(context, prefill_chunk(target, hidden))
    attention = linears = chunk = step_bytes = token_operations = 0.0
    rows, rounded = set(), 0
    work = list(work)
    paced = pace(_widest(work), target, PACES)
    for item in (item for item in work if item.op.kind != "embedding"):  # one row of a table costs next to nothing
        op, lowering = item.op, item.lowering
        reads, adds = (efficiency(phase, op, lowering, target) for phase in ("decode", "prefill"))
        rows |= {reads, adds}
        bandwidth, rate = board.bandwidth * reads.fraction, _rate(lowering, board) * adds.fraction
        read = item.weight_bytes * op.read(batch) + _cache_bytes(op, batch * context)
        operations = _operations(op, context)
        launches = op.calls * launch.kernels * launch.seconds
        seconds = max(read / bandwidth, _operations(op, 2 * context) * batch / rate) + launches
        attention, linears = (
            (attention + seconds, linears) if op.kind == "attention" else (attention, linears + seconds)
        )
        chunk += max(item.weight_bytes * op.read(prompt) / bandwidth, operations * prompt / rate) + launches
        step_bytes += read
        token_operations += operations
        rounded += op.calls if op.activations is not None else 0
    slower = paced.at(batch)
    decode = attention * paced.attention + linears * slower
    step = decode + (engine.step + layers * engine.layer) * slower
    beside = layers * prompt * engine.prompt_rows * hidden * 2 / board.bandwidth
    whole = max(chunk + beside, layers * engine.python_layer + rounded * engine.python_rounding)
    experts = any(item.op.experts for item in work)  # taken to be as fast as other linears
    formats = [(item.op.weights, item.op.activations) for item in work]
    converted = any(given(*pair, gpu=target.is_gpu) != pair for pair in formats)
    guessed = experts or converted
    measured = not (board.estimated or guessed) and all(
        target.name in where for where in (engine.measured_on, *(row.measured_on for row in rows))
    )
    measured = measured and (paced is EXPECTED or target.name in paced.measured_on)
    mixed = [_EXPERTS] if experts else []
    if converted:
        mixed.append("formats that are held as others are taken to be as fast as those; that is not measured")
    sources = (*sorted(row.source for row in rows), *mixed, engine.source, *([paced.source] if paced.source else []))
    return Cost(
        batch / step, prompt / whole, batch / decode, measured, sources, step_bytes, token_operations,
        attention * paced.attention, step - attention * paced.attention, slower, paced.attention,
    )  # fmt: skip


def _widest(work: Iterable[Work]) -> Op:
    """The op that has most of the weights."""
    return max((item for item in work if item.op.kind == "linear"), key=lambda item: item.weight_bytes).op


def _cache_bytes(op: Op, tokens: int) -> float:
    if op.kind != "attention":
        return 0.0
    return float(op.count * sum(kv_bytes(op.kv_heads, width, op.kv) for width in op.kept or (op.k, op.k)) * tokens)


def _operations(op: Op, context: int) -> float:
    """Multiplications and additions for one token of a prompt, which on average sees half of the context."""
    if op.kind == "attention":
        return 4.0 * op.count * op.n * op.k * context / 2
    return 2.0 * op.count * op.share * op.n * op.k


def _rate(lowering: Lowering, board: Board) -> float:
    """Operations per second of what a lowering uses: the matrix unit, or float32 arithmetic outside it."""
    tops = board.tops(lowering.compute) if lowering.matrix else None
    return (tops or dict(board.rates)["f32"]) * 1e12
