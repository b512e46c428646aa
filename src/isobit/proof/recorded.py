"""What every kernel showed when the page was made, a line each beside the page: compared without compiling all again.

Compiling every kernel for every target takes hours of one core. The page is made from the evidence of all of them, and
what it needs of that is written down beside it, under each kernel's key (which holds its sources, its configuration and
Triton's version). So a page is known to be current when every kernel's key is there and the same page comes of the
lines, and lines are held to the truth by kernels that are compiled again, drawn at random. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from isobit.errors import FormatError
from isobit.proof.evidence import Evidence
from isobit.proof.matrix import Claim, Outcome

_KERNELS = "kernels: "
_LINE = re.compile(r"[0-9a-f]{16} [0-9]{1,9} [0-9]{1,9} [0-9]{1,9}\+[0-9]{1,9}( [!-~]{1,80})*")
_DIGITS = 16  # of a key: two of ten thousand are the same with a chance of 3e-12


def beside(page: Path) -> Path:
    """The file of a page's evidence: ``support.evidence`` for ``support.md``."""
    return page.with_suffix(".evidence")


def line(evidence: Evidence) -> str:
    """What the page shows of a kernel: registers, shared memory, spills in loops and elsewhere, matrix instructions."""
    spills = f"{evidence.loop_spills}+{evidence.spills - evidence.loop_spills}"
    return " ".join((str(evidence.registers), str(evidence.shared), spills, *evidence.matrix()))


def record(outcomes: Iterable[Outcome], version: str, kernels: str) -> str:
    """The file: of which kernels, and a line for each that has evidence and keeps its promises, by their keys."""
    held = {_key(one.claim, version): one.evidence for one in outcomes if not one.problems}
    lines = [f"{key} {line(evidence)}\n" for key, evidence in sorted(held.items()) if evidence is not None]
    return "".join([f"{_KERNELS}{kernels}\n", *lines])


def kernels(text: str) -> str | None:
    """Of which kernels a file is; None if it does not say."""
    first = text.partition("\n")[0]
    return first.removeprefix(_KERNELS) if first.startswith(_KERNELS) else None


def read(text: str) -> dict[str, str]:
    """The lines of a file by what stands for their keys.

    Raises:
        FormatError: a line is none, or not where it belongs.
    """
    if kernels(text) is None:
        raise FormatError(f"line 1 does not say of which kernels it is (`{_KERNELS}all`)")
    found: dict[str, str] = {}
    before = ""
    for number, one in enumerate(text.splitlines()[1:], 2):
        key, _, rest = one.partition(" ")
        if not _LINE.fullmatch(one):
            raise FormatError(f"line {number} is no key, registers, shared memory, spills, instructions: {one[:80]!r}")
        if key <= before:
            raise FormatError(f"line {number}: the key {key} behind {before}; each stands there once, in order")
        found[key] = rest
        before = key
    return found


def strangers(claims: Sequence[Claim], lines: Mapping[str, str], version: str) -> tuple[list[str], int]:
    """Names of the claims that have no line, and how many lines belong to no claim."""
    keys = [_key(claim, version) for claim in claims]
    missing = [
        f"{claim.variant} on {claim.target}" for claim, key in zip(claims, keys, strict=True) if key not in lines
    ]
    return missing, len(lines.keys() - set(keys))


def outcomes(claims: Sequence[Claim], lines: Mapping[str, str], version: str) -> list[Outcome]:
    """The claims with as much evidence as their lines hold: what a page is made of."""
    return [Outcome(claim, _evidence(lines[_key(claim, version)]), (), cached=True) for claim in claims]


def differences(compiled: Iterable[Outcome], lines: Mapping[str, str], version: str) -> list[str]:
    """What kernels that were compiled again show, where that is not what their lines say."""
    found = []
    for one in compiled:
        said = lines[_key(one.claim, version)]
        if one.evidence is not None and line(one.evidence) != said:
            found.append(f"{one.name} shows {line(one.evidence)!r}, and {said!r} is recorded")
    return found


def _key(claim: Claim, version: str) -> str:
    return claim.request.key(version)[:_DIGITS]


def _evidence(text: str) -> Evidence:
    registers, shared, spills, *matrix = text.split(" ")
    inside, elsewhere = map(int, spills.split("+"))
    return Evidence(
        registers=int(registers), shared=int(shared), local=0, spills=inside + elsewhere, loop_spills=inside,
        has_loop=True, opcodes=dict.fromkeys(matrix, 1), instructions=0, binary="", seconds=0.0,
    )  # fmt: skip
