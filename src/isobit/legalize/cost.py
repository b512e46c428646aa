"""How long a token takes: bytes over bandwidth and operations over rate, times what is measured to be reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from isobit.formats.caches import known_by, kv_bytes
from isobit.kernels.gpu.layer_tiles import ONE_PART
from isobit.kernels.held import given
from isobit.legalize.efficiency import ENGINES, LAUNCHES, Efficiency, efficiency
from isobit.legalize.exact import bits
from isobit.legalize.mixtures import Experts, nearest, tiles
from isobit.legalize.ops import Lowering, Op
from isobit.legalize.pace import EXPECTED, pace
from isobit.legalize.pace_rows import AROUND, EXPERTS, PACES
from isobit.targets.prefill import experts_at_once, prompt_tokens
from isobit.targets.recorded import TOKENS
from isobit.targets.spec import Board, Target

_BY_CHANCE = (
    "tokens are taken to choose their experts by themselves, each of them as likely as any other; those that choose"
    " alike read fewer"
)
_UNTIMED = (
    "formats with scales of few bits (MX, NVFP4) are taken to be as fast as others of their width; no GPU was timed"
)
_OTHER_STEPS = (
    "whole steps in just this format were not timed: they are taken to be as those of the nearest one that was"
)
_LONG_STEPS = "steps of prompts of more than 2048 tokens are taken to be as others in mixtures; that is not measured"
_AS_OTHERS = "experts are taken to be read as fast as other linears; that is not measured"


@dataclass(frozen=True)
class Cost:
    """Predicted speed.

    Attributes:
        decode: tokens per second of all sequences together, one token at a time each.
        prefill: tokens per second of a prompt.
        kernels: as ``decode``, if linears and attention were all there is.
        attention, beside_attention: seconds of a step.
        experts: those of them that experts take, with what chooses them, where they are not as other linears.
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
    experts: float = 0.0


@dataclass(frozen=True)
class Work:
    """An op, its lowering, and the bytes of all its weights (``op.count`` of them)."""

    op: Op
    lowering: Lowering
    weight_bytes: int


@dataclass(frozen=True)
class _Part:
    """An op's part of a step of decoding and of a step of a prompt.

    Attributes:
        op: which.
        decode, prompt: seconds.
        read: bytes in decoding.
        operations: for a token of a prompt.
        rows: the fractions that were used.
        experts: whether it goes by :mod:`isobit.legalize.mixtures`.
    """

    op: Op
    decode: float
    prompt: float
    read: float
    operations: float
    rows: tuple[Efficiency, ...]
    experts: bool = False


def cost(
    work: Iterable[Work], target: Target, board: Board, *, batch: int, context: int, layers: int, hidden: int,
    piece: int = 0,
) -> Cost | None:  # fmt: skip
    """Predicted speed; None where the board's bandwidth is not known.

    Args:
        work: what one token needs.
        target, board: what runs it.
        batch: sequences decoded together, whose prompts are read together.
        context: tokens that each attends to.
        layers: of the model.
        hidden: width of the residual stream.
        piece: tokens of a step of prompts where so many are due; 0 for what is usual.
    """
    if board.bandwidth <= 0:
        return None
    work = [item for item in work if item.op.kind != "embedding"]  # one row of a table costs next to nothing
    engine, prompt = ENGINES[target.vendor], prompt_tokens(target, hidden, batch * context, piece)
    mixed = nearest(_widest(item for item in work if item.op.experts), target, EXPERTS) if _mixes(work) else None
    parts = [_part(item, target, board, batch, context, prompt, hidden, mixed) for item in work]
    attention = sum(part.decode for part in parts if part.op.kind == "attention")
    linears = sum(part.decode for part in parts if part.op.kind != "attention" and not part.experts)
    choosing = max((part.op.calls for part in parts if part.experts), default=0)  # layers
    experts = sum(part.decode for part in parts if part.experts) + choosing * AROUND.at(batch)
    main = _widest(_of_main_format(work))
    paced = pace(main, target, PACES)
    slower = paced.at(batch)
    # Whole steps of mixtures were measured with heads in groups, so what stands around experts has them.
    grouped = sum(item.op.calls for item in work if _is_grouped(item.op)) if mixed is None else 0
    apart = engine.grouped + (engine.merged if context > ONE_PART else 0.0)
    decode = attention * paced.attention + linears * slower + experts + grouped * apart
    step = decode + (engine.step + layers * engine.layer) * slower
    whole = sum(part.prompt for part in parts) + choosing * AROUND.at(prompt)
    whole += layers * prompt * engine.prompt_rows * hidden * 2 / board.bandwidth
    whole += engine.prompt_step + engine.prompt_sequence * prompt / context
    if not (target.is_gpu and prompt <= TOKENS[-1]):
        rounded = sum(item.op.calls for item in work if item.op.activations is not None)
        whole = max(whole, layers * engine.python_layer + rounded * engine.python_rounding)
    rows = {row for part in parts for row in part.rows}
    said, guessed = _assumed(work, target, batch, prompt, mixed)
    if paced is not EXPECTED and not paced.is_of(main):
        said, guessed = [*said, _OTHER_STEPS], True
    where = [
        engine.measured_on,
        *(row.measured_on for row in rows),
        *([] if paced is EXPECTED else [paced.measured_on]),
    ]
    measured = not (board.estimated or guessed) and all(target.name in names for names in where)
    sources = (*sorted(row.source for row in rows), *said, engine.source, *([paced.source] if paced.source else []))
    found = Cost(
        batch / step, prompt / whole, batch / decode, measured, sources, sum(part.read for part in parts),
        sum(part.operations for part in parts), attention * paced.attention, step - attention * paced.attention,
        slower, paced.attention, experts,
    )  # fmt: skip
    # Paces were measured where weights are read; times that operations bound already would grow by them twice. But two
    # halves by turns are no faster than all sequences.
    half = 0 if paced is EXPECTED else batch // 2
    less = cost(work, target, board, batch=half, context=context, layers=layers, hidden=hidden) if half else None
    if less is None or less.decode <= found.decode:
        return found
    return replace(found, decode=less.decode, kernels=max(found.kernels, less.kernels))


def _part(
    item: Work, target: Target, board: Board, batch: int, context: int, prompt: int, hidden: int,
    mixed: Experts | None,
) -> _Part:  # fmt: skip
    """The part of one op."""
    op, lowering, launch = item.op, item.lowering, LAUNCHES[target.vendor]
    reads, adds = (efficiency(phase, op, lowering, target) for phase in ("decode", "prefill"))
    read, operations = item.weight_bytes * op.read(batch) + _cache_bytes(op, batch * context), _operations(op, context)
    if op.experts and mixed is not None:
        turns = [-(-count // experts_at_once(hidden, op.active)) for count in (batch, prompt)]
        decode, many = (
            turn * mixed.seconds(op, item.weight_bytes, tiles(-(-count // turn), op.experts, op.active),
                                 _rate(lowering, board), board)
            for turn, count in zip(turns, (batch, prompt), strict=True)
        )  # fmt: skip
        return _Part(op, decode, many, read, operations, (), True)
    bandwidth, rate = board.bandwidth * reads.fraction, _rate(lowering, board) * adds.fraction
    launches = op.calls * launch.kernels * launch.seconds
    decode = max(read / bandwidth, _operations(op, 2 * context) * batch / rate) + launches
    many = max(item.weight_bytes * op.read(prompt) / bandwidth, operations * prompt / rate) + launches
    return _Part(op, decode, many, read, operations, (reads, adds))


def _mixes(work: Iterable[Work]) -> bool:
    return any(item.op.experts for item in work)


def _assumed(
    work: Sequence[Work], target: Target, batch: int, prompt: int, mixed: Experts | None
) -> tuple[list[str], bool]:  # fmt: skip
    """What is assumed beside what was measured, or where experts were; and whether figures are guesses for it."""
    said, guessed = [], False
    if mixed is not None:
        op = _widest(item for item in work if item.op.experts)
        guessed = (
            not (mixed.is_of(op) and target.name in mixed.measured_on and target.name in AROUND.measured_on)
            or batch > 1
        )
        said = [mixed.source, AROUND.source, *([_BY_CHANCE] if batch > 1 else [])]
        if prompt > AROUND.points[-1][0]:
            guessed, said = True, [*said, _LONG_STEPS]
    elif _mixes(work):
        said, guessed = [_AS_OTHERS], True
    formats = [(item.op.weights, item.op.activations) for item in work]
    if any(given(*pair, gpu=target.is_gpu) != pair for pair in formats):
        said.append("formats that are held as others are taken to be as fast as those; that is not measured")
        guessed = True
    if target.is_gpu and any(_few_bit_scales(item.op) for item in work):
        said.append(_UNTIMED)
        guessed = True
    return said, guessed


def _few_bit_scales(op: Op) -> bool:
    """Whether an op reads scales of few bits: of its weights, or of the keys and values that it attends to."""
    return bool(op.weights and op.weights.scale) or known_by(op.kv).group is not None


def _of_main_format(work: Sequence[Work]) -> list[Work]:
    """The linears of the format that most weights have: a table of a large vocabulary is larger than any one op."""
    linears, held = [item for item in work if item.op.kind == "linear"], Counter[tuple[object, ...]]()
    for item in linears:
        held[item.op.timed_as] += int(item.weight_bytes * 8 / bits(item.op.w))
    most = held.most_common(1)[0][0]
    return [item for item in linears if item.op.timed_as == most]


def _is_grouped(op: Op) -> bool:
    """Whether several query heads attend to one head of keys (a latent is no such head)."""
    return op.kind == "attention" and op.kept in ((), (op.k, op.k)) and op.kv_heads < op.n


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
