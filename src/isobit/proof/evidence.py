"""What the machine code of one kernel shows, and whether that is what its row promises. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isobit.proof.listing import Listing
from isobit.proof.loops import MATRIX, hot_loops, straight_line


@dataclass(frozen=True)
class Evidence:
    """Facts read off one compiled kernel.

    Attributes:
        registers: 32-bit registers per thread (AMD: vector registers).
        shared: bytes of shared memory per block.
        local: bytes of local (scratch) memory per thread: its stack frame, spilled registers included.
        spills: instructions anywhere in the kernel that move registers to or from local memory.
        loop_spills: those inside loops that work.
        has_loop: whether the kernel has a loop that works; if not, ``opcodes`` are those of the whole kernel.
        opcodes: how often each opcode stands in the hot loop.
        instructions: instructions of the whole kernel.
        binary: SHA-256 of the machine code, as hexadecimal digits.
        seconds: how long compiling and reading took.
        portable: whether the loop was read in PTX, because nothing disassembles that architecture any more; then
            ``spills`` are not known, and only ``local`` tells of them.
    """

    registers: int
    shared: int
    local: int
    spills: int
    loop_spills: int
    has_loop: bool
    opcodes: Mapping[str, int]
    instructions: int
    binary: str
    seconds: float
    portable: bool = False

    def found(self, promise: str) -> int:
        """How many instructions of the hot loop have an opcode that begins with the regular expression."""
        return sum(count for opcode, count in self.opcodes.items() if re.match(promise, opcode))

    def matrix(self) -> tuple[str, ...]:
        """Opcodes of matrix products in the hot loop, the most frequent first."""
        return tuple(opcode for opcode, _ in Counter(self.opcodes).most_common() if MATRIX.match(opcode))

    def as_json(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {**self.__dict__, "opcodes": dict(self.opcodes)}


def read(
    listing: Listing, *, registers: int, shared: int, local: int, binary: str, seconds: float, portable: bool = False
) -> Evidence:
    """Finds the hot loop of a listing and puts the facts together."""
    loops = hot_loops(listing)
    hot = loops[0] if loops else straight_line(listing)
    return Evidence(
        registers=registers,
        shared=shared,
        local=local,
        spills=sum(one.spill for one in listing.instructions),
        loop_spills=sum(loop.spills for loop in loops) if loops else hot.spills,
        has_loop=bool(loops),
        opcodes=hot.opcodes,
        instructions=len(listing.instructions),
        binary=binary,
        seconds=seconds,
        portable=portable,
    )


def failures(evidence: Evidence, promises: Iterable[str], *, shared_limit: int | None = None) -> tuple[str, ...]:
    """Every way in which a kernel is not what its row says: empty if it is.

    Args:
        evidence: what was found.
        promises: regular expressions, each of which must match the beginning of an opcode of the hot loop.
        shared_limit: bytes of shared memory that a block may have on the target.
    """
    where = "the hot loop" if evidence.has_loop else "the kernel (it has no loop)"
    problems = []
    for promise in promises:
        if not evidence.found(promise):
            shown = ", ".join(evidence.matrix()) or "no matrix instruction; " + _most_frequent(evidence)
            problems.append(f"promises {promise}, but {where} shows {shown}")
    if evidence.loop_spills:
        problems.append(f"{evidence.loop_spills} instructions of {where} move registers to or from local memory")
    if evidence.portable and evidence.local:
        problems.append(
            f"{evidence.local} bytes of local memory per thread: registers spill, in a loop for all we know"
        )
    if shared_limit is not None and evidence.shared > shared_limit:
        problems.append(f"needs {evidence.shared} bytes of shared memory; the target has {shared_limit} per block")
    return tuple(problems)


def _most_frequent(evidence: Evidence) -> str:
    return "mostly " + ", ".join(opcode for opcode, _ in Counter(evidence.opcodes).most_common(4))
