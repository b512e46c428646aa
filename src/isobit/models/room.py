"""Whether a model fits a device, and how large its cache may be: the plan's figures, taken before a tensor is read.

Needs no torch: whoever knows how much memory is free says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from isobit.errors import CapacityError, IsobitError
from isobit.formats.caches import CacheFormat
from isobit.formats.schemes import scheme as scheme_named
from isobit.legalize.memory import USABLE, Memory, recorded_bytes
from isobit.legalize.plan import Plan, Request, plan
from isobit.legalize.workload import Workload
from isobit.models.planning import described, locate
from isobit.targets.here import here
from isobit.targets.spec import Board, Target

LEAST_TOKENS = 256  # of a cache that is worth starting with; fewer where a model's context is shorter


@dataclass(frozen=True)
class Room:
    """What a model takes of a device, and what that leaves for its key-value cache.

    Attributes:
        memory: as planned for one sequence; ``memory.capacity`` is what may be used.
        limit: bytes that there are: what somebody allows, or what is free.
        given: whether somebody said so.
        device: what it is.
        context: the model's longest, in tokens.
        logits: bytes for the results of all sequences of a step.
        graphs: bytes for steps that are recorded before the first one.
    """

    memory: Memory
    limit: int
    given: bool
    device: str
    context: int
    logits: int
    graphs: int = 0

    @property
    def held(self) -> int:
        """Bytes of all but the cache, a whole chunk of a prompt under way."""
        one = self.memory
        return one.weights + one.tower + one.runtime + one.activations + self.logits + self.graphs

    @property
    def tokens(self) -> int:
        """Tokens that the cache can hold."""
        left = (self.memory.capacity - self.held) // max(1, self.memory.kv_per_token)
        return max(0, left, self.memory.longest_context)

    @property
    def fits(self) -> bool:
        """Whether there is room for weights, a pass, and a cache to begin with."""
        return self.tokens >= min(LEAST_TOKENS, self.context)

    def cache_tokens(self, sequences: int) -> int:
        """Tokens of a cache that takes what is left, and no more than so many sequences can use."""
        return min(self.tokens, sequences * (self.context + 1))

    def __str__(self) -> str:
        one = self.memory
        tower = f"tower {_size(one.tower)}, " if one.tower else ""
        graphs = f" recorded steps {_size(self.graphs)}," if self.graphs else ""
        return (
            f"weights {_size(one.weights)}, {tower}runtime {_size(one.runtime)},"
            f" a pass {_size(one.activations + self.logits)},{graphs} cache {_size(one.kv_per_token)} a token"
        )

    def refusal(self, model: str) -> CapacityError:
        """The error of a model that does not fit."""
        least = min(LEAST_TOKENS, self.context)
        need = int(
            (self.memory.weights + self.memory.tower + self.memory.runtime + least * self.memory.kv_per_token) / USABLE
        )
        where = f"{_size(self.limit)} were given" if self.given else f"{self.device} has {_size(self.limit)} free"
        longest = f"the longest context that fits is {self.tokens} tokens" if self.tokens else "no context fits"
        instead = "allow more with --memory (memory=)" if self.given else "close what uses it, or take a larger machine"
        return CapacityError(
            f"{model} does not fit: {self}; that and a cache of {least} tokens are {_size(need)} or more, {where}, and"
            f" {longest}. Quantize it further (`isobit plan` shows what fits), store the cache in fewer bits"
            f" (--kv-cache int8), or {instead}"
        )


def _size(count: float) -> str:
    """Bytes for people."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.0f} bytes"


def room(
    folder: Path,
    *,
    gpu: bool,
    free: int,
    given: int | None,
    cache: CacheFormat,
    sequences: int,
    machine: tuple[Target, Board] | None = None,
    graphs: int = 0,
) -> Room | None:
    """What a checkpoint takes of this machine.

    Args:
        folder: where it lies.
        gpu: whether the GPU runs it, or the CPU.
        free: bytes that the device has free.
        given: bytes that it may take; None for what is free.
        cache: what keys and values are stored as.
        sequences: that take part in a step at most.
        machine: what runs it; None to look for that, which starts other programs.
        graphs: how many steps are recorded; see :func:`isobit.legalize.memory.recorded_bytes`.

    Returns:
        None where nothing can be planned: loading will say what is wrong with the checkpoint.

    Raises:
        CapacityError: it does not fit.
    """
    machine = machine or next((pair for pair in here() if pair[0].is_gpu == gpu), None)
    if machine is None:
        return None
    target, board = machine
    limit = free if given is None else given
    try:
        found, work = _planned(folder, target, replace(board, memory=limit), cache)
    except IsobitError:
        return None
    logits = 4 * (sequences - 1) * work.vocab
    recorded = recorded_bytes(work, found.memory.activations, graphs, sequences, work.max_context)
    answer = Room(found.memory, limit, given is not None, board.name, work.max_context, logits, recorded)
    if not answer.fits:
        raise answer.refusal(folder.name)
    return answer


def _planned(folder: Path, target: Target, board: Board, cache: CacheFormat) -> tuple[Plan, Workload]:
    work = described(*locate(folder))
    row = None if work.stored is not None else scheme_named("f16" if work.dtype == "float16" else "bf16")
    request = Request(work.max_context, 1, cache.kv or None)
    return plan(work, row, target, board, request), work
