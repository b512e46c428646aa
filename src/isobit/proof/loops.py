"""Where a kernel spends its time: the innermost loops that load from memory or multiply. Pure.

Loops are natural loops of the control flow graph (a jump back to a block that dominates it), not just spans of text:
Blackwell's code parks its waiting blocks behind the kernel, and a span would swallow the epilogue.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from isobit.proof.listing import Instruction, Listing

# Products of whole tiles in a matrix unit.
MATRIX = re.compile(r"(?:UTC)?[A-Z]{1,2}MMA\b|[HIQ]GMMA\b|v_s?mfma(?:c)?_|v_s?wmma(?:c)?_")
# Loads from the GPU's memory, in every form a compiler picks: plain, asynchronous, bulk tensor copies.
_LOAD = re.compile(r"LDG\b|LDGSTS\b|LD\.E|UTMALDG|UBLKCP|global_load|buffer_load|flat_load|tensor_load")


@dataclass(frozen=True)
class HotLoop:
    """Instructions of one loop: how often each opcode stands in it, and how many move registers to local memory."""

    opcodes: Counter[str]
    spills: int

    @property
    def instructions(self) -> int:
        """How many instructions the loop has."""
        return self.opcodes.total()

    @property
    def matrix(self) -> int:
        """How many of them multiply tiles in a matrix unit."""
        return sum(count for opcode, count in self.opcodes.items() if MATRIX.match(opcode))


def hot_loops(listing: Listing) -> tuple[HotLoop, ...]:
    """The innermost loops that do work, most matrix products and then most instructions first.

    Loops without a load and without a product (waiting for a barrier, say) are not work. Code without any loop that
    works is one straight line: empty.
    """
    blocks = _blocks(listing)
    loops = _natural_loops(blocks)
    working = [loop for loop in loops if any(_works(one) for block in loop for one in blocks[block].instructions)]
    innermost = [loop for loop in working if not any(other < loop for other in working)]
    found = [_hot([one for block in sorted(loop) for one in blocks[block].instructions]) for loop in innermost]
    return tuple(sorted(found, key=lambda loop: (loop.matrix, loop.instructions), reverse=True))


def straight_line(listing: Listing) -> HotLoop:
    """All instructions, as if they were one loop: for kernels that have none."""
    return _hot(list(listing.instructions))


def _hot(instructions: list[Instruction]) -> HotLoop:
    return HotLoop(Counter(one.opcode for one in instructions), sum(one.spill for one in instructions))


def _works(one: Instruction) -> bool:
    return MATRIX.match(one.opcode) is not None or _LOAD.match(one.opcode) is not None


@dataclass(frozen=True)
class _Block:
    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]


def _blocks(listing: Listing) -> list[_Block]:
    """Basic blocks in the order of the text."""
    code = listing.instructions
    starts = {0, *(index for index in listing.labels.values() if index < len(code))}
    starts.update(i + 1 for i, one in enumerate(code[:-1]) if one.targets or not one.falls_through)
    order = sorted(starts)
    number = {start: i for i, start in enumerate(order)}
    blocks = []
    for i, start in enumerate(order):
        end = order[i + 1] if i + 1 < len(order) else len(code)
        last = code[end - 1]
        jumps = (listing.labels.get(label, len(code)) for label in last.targets)
        successors = [number[index] for index in jumps if index in number]
        if last.falls_through and end < len(code):
            successors.append(number[end])
        blocks.append(_Block(code[start:end], tuple(dict.fromkeys(successors))))
    return blocks


def _natural_loops(blocks: list[_Block]) -> list[frozenset[int]]:
    """Each loop as the set of its blocks; loops with one header are one loop."""
    predecessors: list[list[int]] = [[] for _ in blocks]
    for i, block in enumerate(blocks):
        for successor in block.successors:
            predecessors[successor].append(i)
    dominators = _dominators(blocks, predecessors)
    bodies: dict[int, set[int]] = {}
    for i, block in enumerate(blocks):
        for header in block.successors:
            if header in dominators.get(i, frozenset()):
                body = bodies.setdefault(header, {header})
                pending = [i]
                while pending:
                    at = pending.pop()
                    if at not in body:
                        body.add(at)
                        pending.extend(predecessors[at])
    return [frozenset(body) for body in bodies.values()]


def _dominators(blocks: list[_Block], predecessors: list[list[int]]) -> dict[int, frozenset[int]]:
    """For every block that can be reached: the blocks on every way to it, itself included."""
    reached, pending = {0}, [0]
    while pending:
        for successor in blocks[pending.pop()].successors:
            if successor not in reached:
                reached.add(successor)
                pending.append(successor)
    everything = frozenset(reached)
    found = {i: everything for i in reached}
    found[0] = frozenset((0,))
    changed = True
    while changed:
        changed = False
        for i in sorted(reached - {0}):
            met = frozenset.intersection(*(found[p] for p in predecessors[i] if p in reached)) | {i}
            if met != found[i]:
                found[i], changed = met, True
    return found
