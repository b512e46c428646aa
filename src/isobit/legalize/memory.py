"""What a model takes: weights tensor by tensor as they are stored, the cache, activations, and the runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from isobit.checkpoint.layouts.table import nbytes
from isobit.formats.caches import BLOCK, kv_bytes
from isobit.formats.schemes import ActSpec, Scheme, WeightSpec
from isobit.formats.table import element
from isobit.kernels.gpu.latent_tiles import arena
from isobit.kernels.gpu.tiles import LARGE
from isobit.kernels.held import given
from isobit.legalize.exact import bits
from isobit.legalize.kernels import activation_dtype
from isobit.legalize.workload import Tensor, Workload, model_dtype
from isobit.targets.prefill import experts_at_once, step_tokens
from isobit.targets.recorded import GRAPH_BYTES, recorded_steps
from isobit.targets.spec import Target

# What a process holds on a device before any tensor of ours: the CUDA context, loaded kernels, library workspaces.
# An NVIDIA H200 with torch 2.11 and Triton 3.6 showed 621 MiB, and 13 MiB of workspaces (benchmarks/results/
# plan_memory.csv); other GPUs are taken to be alike.
GPU_RUNTIME_BYTES = 634 << 20
CPU_RUNTIME_BYTES = 274 << 20  # resident: torch 2.13 on x86-64 Linux (218 MiB) and temporaries, in the same file
USABLE = 0.97  # of a device's memory: what fragments and other processes leave


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: codes, scales and zero points, and what is not quantized.
        kv_per_token: keys and values of one token of one sequence.
        kv: the cache of ``batch`` sequences of ``context`` tokens, each in whole blocks.
        activations: what one pass of the model holds at once.
        runtime: what the process holds besides.
        capacity: what the device can give; 0 when it is not known.
        longest_context: tokens that fit with ``batch`` sequences, in whole blocks of a cache, at most the model's own
            longest.
        largest_batch: sequences of ``context`` tokens that fit.
        tower: weights of what encodes media, in the dtype of activations.
        recorded: steps that a GPU runs as graphs, all that may come, and what they compute in.
    """

    weights: int
    kv_per_token: int
    kv: int
    activations: int
    runtime: int
    capacity: int
    longest_context: int
    largest_batch: int
    tower: int = 0
    recorded: int = 0

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.tower + self.kv + self.activations + self.recorded + self.runtime

    @property
    def spare(self) -> int:
        """What is left; negative when it does not fit."""
        return self.capacity - self.total

    @property
    def fits(self) -> bool:
        """Whether the device has room for it."""
        return self.spare >= 0


def tensor_bytes(
    tensor: Tensor, weights: WeightSpec | None, activations: ActSpec | None, dtype: str, *, gpu: bool | None = None,
    scales: str = "bfloat16",
) -> int:  # fmt: skip
    """Bytes of one tensor and of what belongs to it, as a checkpoint stores them, or as kernels are given them.

    Args:
        tensor: which one; ``count`` is left out.
        weights: how it is quantized; None when it is not.
        activations: how its inputs are rounded.
        dtype: torch dtype of what is not quantized.
        gpu: whether a GPU's or a CPU's kernels are given it; None for the checkpoint.
        scales: dtype of the scales, where their format is not part of how it is quantized.
    """
    if weights is None:
        return math.prod(tensor.shape) * bits(dtype) // 8
    n, k = tensor.shape
    spec = None if gpu is None else given(weights, activations, gpu=gpu)[0]
    if spec is not None and spec != weights:
        codes = n * k if element(spec.element).bits == 8 else 4 * n * element(spec.element).words(k)
        powers = gpu and weights.scale is not None and weights.scale.powers
        return codes + (2 if powers else 4) * math.prod(spec.scale_shape(n, k))
    wider = 2 if scales == "float32" and weights.scale is None else 0  # bytes, than in a checkpoint of isobit's
    return nbytes(weights, activations, n, k) + wider * math.prod(weights.scale_shape(n, k))


def weight_bytes(workload: Workload, scheme: Scheme | None, target: Target | None = None) -> int:
    """Bytes of all weights under a scheme, or (None) as the checkpoint has them; on a target, as kernels get them."""
    dtype, cpu = model_dtype(workload, scheme), target is not None and not target.is_gpu
    gpu = None if target is None else target.is_gpu
    in_file = target is None and workload.stored is None
    return sum(
        tensor.count
        * tensor_bytes(
            tensor,
            *workload.formats(tensor, scheme),
            workload.plain(tensor, scheme, cpu=cpu or in_file) or dtype,
            gpu=gpu,
            scales=workload.scale(tensor, scheme, dtype),
        )
        * (3 if cpu and tensor.kind == "absorbed" else 2)
        // 2  # CPU kernels keep the half that makes keys a second time, transposed
        for tensor in workload.tensors
    )


def kv_bytes_per_token(workload: Workload, kv: str) -> int:
    """Bytes of the keys and values of one token in all layers, and of their scales where they are rounded."""
    return sum(kv_bytes(one.kv_heads, width, kv) for one in workload.attentions for width in one.parts)


def activation_bytes(workload: Workload, dtype: str, tokens: int, sequences: int, target: Target) -> int:
    """Bytes that one pass holds at its widest, in an MLP, attention or the output projection; without masks.

    The MLP holds the residual stream and its norm, and two intermediate rows; attention the residual stream, its norm,
    queries, rotated queries and the result; the logits are float32 and of the last token only. GPUs run what is beside
    the linears in PyTorch, whose operations keep their operands: five rows of the residual stream and four intermediate
    ones are there at once (benchmarks/results/gpu_generate.csv: within 1 % for two shapes). Beside the residual stream
    they hold float32 results of each pair of a token and an expert, and three rows that are as wide as an expert.

    Args:
        workload: the model.
        dtype: of the activations.
        tokens: of all sequences together that go through the model at once.
        sequences: that they belong to.
        target: what runs it.
    """
    size = bits(dtype) // 8
    rows, wide = (5, 4) if target.is_gpu else (2, 2)
    mlp = tokens * (rows * workload.hidden + wide * workload.intermediate) * size
    widest = max((one.heads * one.dim for one in workload.attentions), default=0)
    attention = tokens * (2 * workload.hidden + 3 * widest) * size
    logits = sequences * workload.vocab * 4
    return max(mlp, attention, logits, _experts_bytes(workload, size, tokens, rows) if target.is_gpu else 0)


def _experts_bytes(workload: Workload, size: int, tokens: int, rows: int) -> int:
    """The same in a mixture of experts on a GPU, as far as they are launched together; 0 where there is none."""
    parts = [tensor for tensor in workload.tensors if tensor.experts and tensor.is_matrix]
    if not parts:
        return 0
    inner, active = max(min(part.shape) for part in parts), max(part.active for part in parts)
    pairs = min(tokens, experts_at_once(workload.hidden, active)) * active
    return tokens * rows * workload.hidden * size + pairs * (4 * workload.hidden + 3 * inner * size)


def memory(
    workload: Workload,
    scheme: Scheme | None,
    target: Target,
    *,
    capacity: int,
    context: int,
    batch: int,
    kv: str | None = None,
    workspace: int = 0,
    narrowed: bool = False,
    piece: int = 0,
) -> Memory:
    """What a model takes on a device.

    Args:
        workload: the model.
        scheme: how it is quantized; None for the way the checkpoint has it.
        target: what runs it.
        capacity: bytes of the device; 0 when not known.
        context: tokens of a sequence.
        batch: sequences at once.
        kv: format of the cache; None for the dtype of activations.
        workspace: bytes that calls with very many tokens take besides.
        narrowed: whether those calls hold activations in another dtype besides.
        piece: tokens of a step of prompts where so many are due; 0 for what is usual.
    """
    dtype = activation_dtype(target, model_dtype(workload, scheme))
    weights = weight_bytes(workload, scheme, target)
    tower = workload.tower * bits(dtype) // 8
    per_token = kv_bytes_per_token(workload, kv or dtype)
    runtime = GPU_RUNTIME_BYTES if target.is_gpu else CPU_RUNTIME_BYTES
    usable = int(capacity * USABLE)
    mask = bits(dtype) // 8 if target.is_gpu else 0  # for each token of a chunk and each that it may see

    def passing(sequences: int, context: int) -> int:
        tokens = max(step_tokens(target, workload.hidden, sequences * context, piece), sequences)
        large = workspace + narrowed * tokens * workload.hidden * 2 if tokens >= LARGE else 0
        seen = mask * min(context, tokens) * context
        return activation_bytes(workload, dtype, tokens, sequences, target) + large + seen

    def recorded(sequences: int, context: int) -> int:
        steps = recorded_steps(sequences) if target.is_gpu else 0
        return recorded_bytes(workload, passing(1, context), steps, sequences, context)

    def left(sequences: int, tokens: int) -> int:
        return usable - weights - tower - runtime - passing(sequences, tokens) - recorded(sequences, tokens)

    return Memory(
        weights=weights,
        kv_per_token=per_token,
        kv=per_token * _held(context) * batch,
        activations=passing(batch, context),
        runtime=runtime,
        capacity=usable,
        longest_context=_longest_context(workload, left, per_token * batch, batch),
        largest_batch=_largest_batch(left, per_token * _held(context), context),
        tower=tower,
        recorded=recorded(batch, context),
    )


def recorded_bytes(workload: Workload, activations: int, steps: int, sequences: int, context: int) -> int:
    """Bytes of steps that are recorded as graphs, and of the memory in which all of them compute.

    That is half of what a pass is planned to take with operations that keep their operands, and logits and parts of
    latent attention of all sequences: 72 steps of 256 sequences of a 7B with 8 of its layers held 326 MiB on an H200
    beside the graphs' own, which this makes 353 MiB.

    Args:
        workload: the model.
        activations: bytes of a pass of one sequence.
        steps: how many are recorded; 0: nothing is taken.
        sequences: that take part in a step at most.
        context: tokens of each.
    """
    if not steps:
        return 0
    latents = {(one.heads, one.parts[0]) for one in workload.attentions if one.parts[0] != one.parts[1]}
    parts = max((arena(heads, rank, sequences, context) for heads, rank in latents), default=0)
    return steps * GRAPH_BYTES + activations // 2 + 4 * (sequences - 1) * workload.vocab + parts


def _held(context: int) -> int:
    """Tokens of a cache that a sequence takes: whole blocks."""
    return -(-context // BLOCK) * BLOCK


def _longest_context(workload: Workload, left: Callable[[int, int], int], per_token: int, batch: int) -> int:
    """The most tokens whose caches fit, up to the model's own longest; whole blocks, which is what a cache has."""
    most = workload.max_context
    found = _most(lambda context: left(batch, context) >= _held(context) * per_token, most)
    return found if found == most else found // BLOCK * BLOCK


def _largest_batch(left: Callable[[int, int], int], per_sequence: int, context: int) -> int:
    """The most sequences whose caches and activations fit together."""
    most = max(0, left(1, context)) // per_sequence + 1
    return _most(lambda batch: left(batch, context) >= batch * per_sequence, most)


def _most(fits: Callable[[int], bool], high: int) -> int:
    """The largest number up to ``high`` that fits, 0 for none; what does not fit does not fit with more either."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
