"""Machine code as text, taken apart: NVIDIA's SASS (from ``nvdisasm -c``) and AMD's assembly (from Triton); and PTX,
NVIDIA's portable assembly, for architectures whose machine code the disassembler no longer reads.

Only what finding loops and counting instructions needs: opcodes, labels and where control goes next. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from isobit.errors import IsobitError


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        opcode: with every modifier, as the disassembler writes it: ``HMMA.16816.F32``, ``v_mfma_f32_32x32x8_f16``.
        targets: labels that it may jump to.
        falls_through: whether the next instruction may follow it.
        spill: whether it moves a register to or from local (scratch) memory.
    """

    opcode: str
    targets: tuple[str, ...] = ()
    falls_through: bool = True
    spill: bool = False


@dataclass(frozen=True)
class Listing:
    """The code of one kernel, in order.

    Attributes:
        instructions: all of them.
        labels: label to the index of the instruction that follows it (``len(instructions)`` at the very end).
    """

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


_SASS_LABEL = re.compile(r"^(\.L\w*):")
_SASS_LINE = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?P<guard>@!?U?P[0-9T]+\s+)?(?P<opcode>[A-Z][A-Za-z0-9_.]*)(?P<rest>[^;]*);"
)
_SASS_TARGET = re.compile(r"`\((\.L\w*)\)")
_SASS_BARRIER = re.compile(r"\bB(\d+)\b")
_SASS_END = ("EXIT", "RET", "KILL")
_SASS_SPILL = ("LDL", "STL")


def parse_sass(text: str) -> Listing:
    """Takes ``nvdisasm -c`` apart.

    Raises:
        IsobitError: there is no instruction in the text.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    joins: dict[str, list[str]] = {}  # convergence barrier register to the labels at which its threads meet again
    for line in text.splitlines():
        if label := _SASS_LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _SASS_LINE.match(line):
            instructions.append(_sass_instruction(match, joins))
    if not instructions:
        raise IsobitError("the disassembler's output holds no SASS instruction; its first lines: " + text[:200])
    return Listing(tuple(instructions), labels)


def _sass_instruction(match: re.Match[str], joins: dict[str, list[str]]) -> Instruction:
    opcode, rest = match["opcode"], match["rest"]
    base = opcode.partition(".")[0]
    targets = tuple(_SASS_TARGET.findall(rest))
    barrier = _SASS_BARRIER.search(rest)
    if base == "BSSY" and barrier:  # names the meeting point; BSYNC on the same register goes there
        joins.setdefault(barrier[1], []).extend(targets)
        targets = ()
    elif base == "BSYNC" and barrier:
        targets = tuple(joins.get(barrier[1], ()))
    elif base not in ("BRA", "BRX", "JMP", "JMX", "BREAK"):
        targets = ()
    unguarded = match["guard"] is None
    # `BRA.U UP0, label` and `BRA !P1, P2, label` are conditional without a guard.
    jumps_always = base in ("BRA", "JMP") and unguarded and re.fullmatch(r"\s*`\(\.L\w*\)\s*", rest) is not None
    ends = base in _SASS_END and unguarded
    return Instruction(opcode, targets, not (jumps_always or ends), base in _SASS_SPILL)


_AMD_LABEL = re.compile(r"^(\.LBB\w+):")
_AMD_LINE = re.compile(
    r"^\t(?P<opcode>(?:s|v|ds|buffer|global|flat|scratch|tensor)_\w+)(?P<rest>[^;]*)(?:;(?P<comment>.*))?$"
)
_AMD_END = ("s_endpgm", "s_setpc_b64")


def parse_amdgcn(text: str) -> Listing:
    """Takes the ``amdgcn`` text that Triton makes apart.

    Raises:
        IsobitError: there is no instruction in the text.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := _AMD_LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _AMD_LINE.match(line):
            opcode, comment = match["opcode"], match["comment"] or ""
            jumps = opcode.startswith(("s_branch", "s_cbranch"))
            instructions.append(
                Instruction(
                    opcode,
                    tuple(re.findall(r"\.LBB\w+", match["rest"])) if jumps else (),
                    opcode != "s_branch" and opcode not in _AMD_END,
                    _amd_spill(opcode, comment),
                )
            )
    if not instructions:
        raise IsobitError("the compiler's output holds no AMD instruction; its first lines: " + text[:200])
    return Listing(tuple(instructions), labels)


def _amd_spill(opcode: str, comment: str) -> bool:
    # Spills of scalar registers go to lanes of vector registers (v_writelane), not to memory: those are not counted.
    if opcode.startswith("scratch_"):
        return True
    return opcode.startswith("buffer_") and ("Folded Spill" in comment or "Folded Reload" in comment)


_PTX_LABEL = re.compile(r"^(\$L\w+):")
_PTX_LINE = re.compile(r"^\s*(?P<guard>@!?%p\d+\s+)?(?P<opcode>[a-z][a-z0-9_.:]*)(?P<rest>[^;]*);")
# What the assembler makes of it, one for one, so that promises can be about machine code everywhere.
_PTX_MEANS = {"dp4a": "IDP.4A", "ld.global": "LDG", "fma.rn.f32": "FFMA"}


def parse_ptx(text: str) -> Listing:
    """Takes the ``ptx`` text that Triton makes apart; opcodes that mean one machine instruction are named like it.

    Raises:
        IsobitError: there is no instruction in the text.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.partition("{")[2].splitlines():
        if label := _PTX_LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif match := _PTX_LINE.match(line):
            opcode = match["opcode"]
            means = next((sass for ptx, sass in _PTX_MEANS.items() if opcode.startswith(ptx)), opcode)
            jumps, guarded = opcode.startswith("bra"), match["guard"] is not None
            targets = tuple(re.findall(r"\$L\w+", match["rest"])) if jumps else ()
            instructions.append(Instruction(means, targets, guarded or not (jumps or opcode == "ret")))
    if not instructions:
        raise IsobitError("the portable assembly holds no PTX instruction; its first lines: " + text[:200])
    return Listing(tuple(instructions), labels)
