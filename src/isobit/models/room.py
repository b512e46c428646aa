"""Whether a model fits a device, and how large its cache may be: the plan's figures, taken before a tensor is read.

Needs no torch: whoever knows how much memory is free says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from isobit.errors import CapacityError, IsobitError
from isobit.formats.caches import BLOCK, CACHE_FORMATS, CacheFormat
from isobit.kernels.cpu import library as cpu_library
from isobit.legalize.memory import USABLE, Memory, recorded_bytes
from isobit.legalize.plan import Plan, Request, plan
from isobit.legalize.workload import Workload, as_loaded
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
        piece: tokens of a step of prompts where so many are due.
        wider: bytes that such a step of several sequences takes more than one of one.
    """

    memory: Memory
    limit: int
    given: bool
    device: str
    context: int
    logits: int
    graphs: int = 0
    piece: int = 0
    wider: int = 0

    @property
    def held(self) -> int:
        """Bytes of all but the cache, a whole chunk of a prompt under way."""
        one = self.memory
        return one.weights + one.tower + one.runtime + one.activations + self.wider + self.logits + self.graphs

    @property
    def tokens(self) -> int:
        """Tokens that the cache can hold, in whole blocks; or the longest context, if that has no more."""
        left = (self.memory.capacity - self.held) // max(1, self.memory.kv_per_token)
        return max(0, left // BLOCK * BLOCK, self.memory.longest_context)

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
            f" a pass {_size(one.activations + self.wider + self.logits)},{graphs}"
            f" cache {_size(one.kv_per_token)} a token"
        )

    def refusal(self, model: str, least: Memory, narrower: tuple[str, ...]) -> CapacityError:
        """The error of a model that does not fit.

        Args:
            model: what it is called.
            least: as planned for a context that is worth starting with, which ``least.capacity`` does not hold.
            narrower: formats of a cache with which it would fit.
        """
        tokens = min(LEAST_TOKENS, self.context)
        tower = f"tower {_size(least.tower)}, " if least.tower else ""
        recorded = f", recorded steps {_size(least.recorded)}" if least.recorded else ""
        where = f"{_size(self.limit)} were given" if self.given else f"{self.device} has {_size(self.limit)} free"
        longest = f"the longest context that fits is {self.tokens} tokens" if self.tokens else "no context fits"
        ways = ["quantize it further (`isobit plan` shows what fits)"] if least.weights > -least.spare else []
        ways += [f"store the cache in fewer bits (--kv-cache {' or '.join(narrower)})"] if narrower else []
        ways.append(
            "allow more with --memory (memory=)" if self.given else "close what uses it, or take a larger machine"
        )
        advice = ", or ".join(ways)
        return CapacityError(
            f"{model} does not fit: weights {_size(least.weights)}, {tower}runtime {_size(least.runtime)}, a pass"
            f" {_size(least.activations)}{recorded} and a cache of {tokens} tokens {_size(least.kv)} are"
            f" {_size(least.total)}; with {1 - USABLE:.0%} that stay free, {_size(_needed(least), up=True)} are needed"
            f" at least, {where}, and {longest}. {advice[0].upper()}{advice[1:]}"
        )


def _needed(memory: Memory) -> int:
    """Bytes that a device must have, so that what may be used of them holds a plan."""
    return math.ceil(memory.total / USABLE)


def _size(count: float, *, up: bool = False) -> str:
    """Bytes for people, with four figures; rounded up where fewer would not do."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            step = 10.0 ** (math.floor(math.log10(count / size)) - 3)
            return f"{math.ceil(count / size / step) * step if up else count / size:.4g} {unit}"
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
    context: int | None = None,
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
        context: tokens of prompt and answer at most; None for as many as the model reads.

    Returns:
        None where nothing can be planned: loading will say what is wrong with the checkpoint.

    Raises:
        CapacityError: it does not fit.
    """
    machine = machine or next((pair for pair in here(cpu_library.wanted_threads()) if pair[0].is_gpu == gpu), None)
    if machine is None:
        return None
    target, board = machine
    limit = free if given is None else given
    board = replace(board, memory=limit)
    try:
        work = described(*locate(folder))
        longest = min(context or work.max_context, work.max_context)
        found = _planned(work, target, board, cache, longest)
    except IsobitError:
        return None
    logits = 4 * (sequences - 1) * work.vocab
    recorded = recorded_bytes(work, found.memory.activations, graphs, sequences, longest)
    several = min(sequences, -(-found.piece // longest))
    wider = 0 if several == 1 else _planned(work, target, board, cache, longest, several).memory.activations
    answer = Room(
        found.memory, limit, given is not None, board.name, longest, logits, recorded, found.piece,
        max(0, wider - found.memory.activations),
    )  # fmt: skip
    if not answer.fits:
        tokens = min(LEAST_TOKENS, longest)
        least = _planned(work, target, board, cache, tokens).memory
        raise answer.refusal(folder.name, least, _narrower(work, target, board, tokens, least))
    return answer


def _narrower(work: Workload, target: Target, board: Board, tokens: int, least: Memory) -> tuple[str, ...]:
    """Formats of a cache that take less than a plan's, run here, and let a model fit that does not fit so."""
    names = []
    for row in CACHE_FORMATS.values():
        try:
            found = _planned(work, target, board, row, tokens)
        except IsobitError:
            continue
        if found.memory.kv < least.kv and found.memory.fits and found.action != "refused":
            names.append(row.name)
    return tuple(names)


def _planned(
    work: Workload, target: Target, board: Board, cache: CacheFormat, context: int, sequences: int = 1
) -> Plan:  # fmt: skip
    return plan(work, as_loaded(work, target), target, board, Request(context, sequences, cache.kv or None))
