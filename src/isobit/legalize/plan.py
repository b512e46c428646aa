"""A model under a scheme on a target: every op with its lowering, what it takes, and how fast it will be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isobit.formats.fitting import refitted
from isobit.formats.schemes import Scheme
from isobit.legalize.cost import Cost, Work, cost
from isobit.legalize.kernels import activation_dtype
from isobit.legalize.memory import Memory, memory, tensor_bytes
from isobit.legalize.ops import Action, Decision, Lowering, Op, Refusal, worst
from isobit.legalize.pieces import piece
from isobit.legalize.planner import decide, nearest
from isobit.legalize.rules import short
from isobit.legalize.workload import Tensor, Workload, model_dtype, ops, short_name
from isobit.targets.spec import Board, Target

AS_STORED = "as stored"  # the name of no scheme: what a checkpoint holds
CODES = "codes"  # of a source that is quantized


@dataclass(frozen=True)
class Request:
    """What a plan is made for.

    Attributes:
        context: tokens of a sequence, prompt and answer together.
        batch: sequences at once.
        kv: format of the cache; None for the dtype of activations.
        allow_relaxed: whether a rounding point may be dropped.
        memory: bytes of a machine that may be taken; None for all.
    """

    context: int
    batch: int = 1
    kv: str | None = None
    allow_relaxed: bool = False
    memory: int | None = None

    def allowed(self, board: Board) -> int:
        """Bytes that may be taken of a board; 0 where nobody knows how many it has, and nobody said."""
        return min(self.memory or board.memory, board.memory or self.memory or 0)

    def beyond(self, board: Board) -> bool:
        """Whether more may be taken than there is."""
        return self.memory is not None and 0 < board.memory < self.memory


@dataclass(frozen=True)
class Plan:
    """The answer for one scheme on one target.

    Attributes:
        scheme: its name, or ``as stored`` for the way a checkpoint is.
        target, board: where; the board gives memory, bandwidth and rates.
        request: what it was made for.
        ops: every op with what becomes of it.
        memory: what it takes.
        cost: how fast it will be; None when it is refused or the board's bandwidth is not known.
        notes: what changes besides, and a user should know.
        instead: the nearest scheme that works, when this one is refused; else empty.
        piece: tokens of a step of prompts where so many are due.
        measured_here: that the speed goes by measurements of this machine, and which, its own or of others; else empty.
        unloaded: whether weights lie there that loading refuses.
        source: what schemes are held against: the dtypes of the source's weights, or ``codes`` where it is quantized.
    """

    scheme: str
    target: Target
    board: Board
    request: Request
    ops: tuple[tuple[Op, Decision], ...]
    memory: Memory
    cost: Cost | None
    notes: tuple[str, ...]
    instead: str = ""
    measured_here: str = ""
    piece: int = 0
    unloaded: bool = False
    source: tuple[str, ...] = ()

    @property
    def action(self) -> Action:
        """The worst action of any op."""
        return worst([decision for _, decision in self.ops])

    @property
    def main(self) -> tuple[Op, Decision]:
        """The op that says most about the plan: one that is refused, else the linear with the most weights."""
        refused = [pair for pair in self.ops if isinstance(pair[1], Refusal)]
        linears = [pair for pair in self.ops if pair[0].kind == "linear"]
        quantized = [pair for pair in linears if pair[0].weights is not None]
        return max(refused or quantized or linears, key=lambda pair: pair[0].n * pair[0].k * pair[0].count)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not native: of a refusal every reason, else that of the main op, and of others that are worse."""
        found: list[str] = []
        for _, decision in self.ops:
            found += decision.reasons if isinstance(decision, Refusal) else []
        main = self.main[1]
        if not found and isinstance(main, Lowering):
            found += [main.reason] if main.reason else []
            found += [
                f"{op.name}: {decision.reason}"
                for op, decision in self.ops
                if isinstance(decision, Lowering) and decision.action == self.action != main.action
            ]
        return tuple(dict.fromkeys(found))


def plan(workload: Workload, scheme: Scheme | None, target: Target, board: Board, request: Request) -> Plan:
    """Plans a model.

    Args:
        workload: the model.
        scheme: how its linears are quantized; None for the way the checkpoint has them.
        target, board: where it is to run.
        request: what for.
    """
    found = tuple(
        (op, _decided(workload, scheme, op, target, request)) for op in ops(workload, scheme, target, request.kv)
    )
    lowered = [decision for _, decision in found if isinstance(decision, Lowering)]
    workspace = max((decision.workspace for decision in lowered), default=0)
    narrowed = any(decision.narrowed for decision in lowered)
    refused = [op for op, decision in found if isinstance(decision, Refusal)]
    work = [] if refused else _work(workload, scheme, found, gpu=target.is_gpu)

    def need(context: int, batch: int, tokens: int) -> Memory:
        return memory(
            workload, scheme, target, capacity=request.allowed(board), context=context, batch=batch, kv=request.kv,
            workspace=workspace, narrowed=narrowed, piece=tokens,
        )  # fmt: skip

    def speed(context: int, batch: int, tokens: int) -> Cost | None:
        return cost(
            work, target, board, batch=batch, context=context, layers=workload.layers, hidden=workload.hidden,
            piece=tokens,
        )  # fmt: skip

    def pace(context: int, batch: int, tokens: int) -> float:
        predicted = speed(context, batch, tokens)
        return predicted.prefill if predicted else 0.0

    tokens = piece(
        target, workload.hidden, workload.max_context, mixed=any(item.op.experts for item in work), need=need, pace=pace
    )
    instead = ""
    if scheme is not None and any(op.kind == "linear" for op in refused):
        instead = nearest(scheme, [op for op, _ in found if op.kind == "linear" and op.weights], target)
    return Plan(
        scheme=scheme.name if scheme is not None else AS_STORED,
        target=target,
        board=board,
        request=request,
        ops=found,
        memory=need(request.context, request.batch, tokens),
        cost=None if refused else speed(request.context, request.batch, tokens),
        notes=(*_of_memory(request, board), *_notes(workload, scheme, target, board, found)),
        instead=instead,
        piece=tokens,
        unloaded=workload.unloaded,
        source=workload.dtypes if workload.stored is None else (CODES,),
    )


def _decided(workload: Workload, scheme: Scheme | None, op: Op, target: Target, request: Request) -> Decision:
    """How an op runs; or why not, where it is not for its format."""
    if workload.uneven and scheme is None and op.experts and target.is_gpu:
        return Refusal((workload.uneven,))
    return decide(op, target, allow_relaxed=request.allow_relaxed)


def _work(workload: Workload, scheme: Scheme | None, found: Iterable[tuple[Op, Decision]], *, gpu: bool) -> list[Work]:
    dtype = model_dtype(workload, scheme)
    work = []
    for op, decision in found:
        assert isinstance(decision, Lowering)
        size = 0
        if op.kind == "linear":
            matrix = Tensor(op.name, "weight", "linear", (op.n, op.k), 1)
            size = op.count * tensor_bytes(
                matrix, op.weights, op.activations, op.stored or dtype, gpu=gpu, scales=op.scale_dtype
            )
        work.append(Work(op, decision, size))
    return work


def _widths(workload: Workload) -> list[tuple[str, int]]:
    """The linears that a scheme quantizes, with their inputs."""
    matrices = (tensor for tensor in workload.tensors if tensor.is_matrix and tensor.kind == "linear")
    return [(short_name(tensor.module), tensor.shape[1]) for tensor in matrices]


def _of_memory(request: Request, board: Board) -> tuple[str, ...]:
    """That less can be taken than may be."""
    if not request.beyond(board) or request.memory is None:
        return ()
    asked, there = (f"{size / (1 << 30):.1f} GiB" for size in (request.memory, board.memory))
    return (f"{asked} were allowed, and {board.name} has {there}: this is planned with those",)


def _notes(
    workload: Workload,
    scheme: Scheme | None,
    target: Target,
    board: Board,
    found: Iterable[tuple[Op, Decision]],
) -> tuple[str, ...]:
    """What a user should know besides the action."""
    notes, found = list(target.notes), tuple(found)
    if any(isinstance(decision, Refusal) for _, decision in found):
        return tuple(notes)  # nothing of it happens
    wanted = model_dtype(workload, scheme)
    dtype = activation_dtype(target, wanted)
    if target.is_gpu and dtype != wanted and (scheme is None or scheme.dtype is None):
        notes.append(
            f"{target.name} has no {short(wanted)} arithmetic: what is not quantized runs in {short(dtype)} instead,"
            " whose largest number is 65504"
        )
    linears = [decision for op, decision in found if op.kind == "linear" and isinstance(decision, Lowering)]
    slow = next((d for d in linears if not d.matrix), None)
    unit = next((u for u in target.matrix if u.unreachable and u.a == "float16"), None)
    peak = board.tops("float16")
    if slow and unit and peak and target.is_gpu:
        plain = dict(board.rates)["f32"]
        notes.append(
            f"prompts run at {plain:g} TFLOP/s instead of the {peak:g} of the matrix units: {unit.unreachable}"
        )
    quantized = any(op.kind == "linear" and op.weights is not None for op, _ in found)
    for op, decision in found:
        whose = "linears that are not quantized: " if quantized and op.kind == "linear" and op.weights is None else ""
        told = decision.notes if isinstance(decision, Lowering) else ()
        notes += [f"{whose}{note}" if note.startswith("from ") else note for note in told]
    if scheme is not None:
        notes += refitted(scheme, _widths(workload))
    return tuple(dict.fromkeys(notes))
