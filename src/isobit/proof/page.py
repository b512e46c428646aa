"""docs/support.md: what the compiled kernels showed, as a page. Pure; the same outcomes always give the same text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from isobit.proof.matrix import Outcome
from isobit.targets.spec import Target

_HEAD = """# What runs where

Generated from the tables in `targets/table.py`, `kernels/gpu/rows.py` and `kernels/gpu/layer_rows.py` and from machine
code: every kernel below was compiled for every target below without that target (Triton {version}), disassembled and
read. `isobit compile --target all` does it again; CI compares this page with what is recorded of every kernel
(`support.evidence`) and compiles some of them again. Do not edit this page: run `make support`.
"""

_FORMATS = """
## Formats on targets

What `isobit plan` answers for the linear layers of each scheme: **native** (the matrix unit multiplies the formats
themselves), **legalized** (operands are widened exactly in registers; every rounding point is kept), or refused; and
the matrix instructions that the machine code of its kernel for many tokens shows.
"""

_LIBRARY = """
## Products of PyTorch's

These rows of `kernels/gpu/rows.py` are PyTorch's own matrix products (cuBLAS), chosen for very many tokens where they
were measured to be faster than ours and to keep the contract. isobit does not compile them, so nothing is read from
machine code: `tests/gpu/test_library.py` holds them against float64 on the card.
"""

_KERNELS = """
## Kernels

One table per target. A kernel is compiled as it is launched for usual weights, in each of its configurations (8 tokens
and 16, few rows of weights and many); where these differ, what they show stands side by side. *Hot loop*: matrix
instructions of the innermost loop that does the work, most frequent first; "-" means that it has none (vector kernels
multiply in ordinary arithmetic, and so does all on sm_70 and sm_75, for which Triton emits no matrix instructions).
*Spills*: instructions that move registers to or from local memory, in hot loops + elsewhere; a number other than 0
before the plus fails CI. Registers are per thread (AMD: vector registers); shared memory is in bytes per block. The
code for sm_70 was read in PTX, because nothing disassembles it any more.
"""


def page(
    outcomes: Sequence[Outcome],
    targets: Sequence[Target],
    version: str,
    actions: Mapping[str, Mapping[str, str]] | None = None,
    library: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The page.

    Args:
        outcomes: what was compiled.
        targets: in the order in which they are shown.
        version: Triton's.
        actions: scheme to target to what a plan says about it; the table of formats is left out without it.
        library: products of PyTorch's to the targets on which they are chosen.
    """
    parts = [_HEAD.format(version=version)]
    if actions:
        parts += [_FORMATS, *_actions(actions, targets)]
    if library:
        rows = [["product", "targets"], *([name, ", ".join(where)] for name, where in library.items())]
        parts += [_LIBRARY, *_table(rows)]
    parts.append(_KERNELS)
    for target in targets:
        mine = [one for one in outcomes if one.claim.target == target.name]
        if mine:
            parts += [f"\n### {target.name}: {target.title}\n", *_kernels(mine)]
    return "\n".join(parts)


def _actions(actions: Mapping[str, Mapping[str, str]], targets: Sequence[Target]) -> list[str]:
    """Schemes across, targets down: there are more targets, and a page is longer than it is wide."""
    rows = [["target", *actions]]
    rows += [[target.name, *(row.get(target.name, "refused") for row in actions.values())] for target in targets]
    return _table(rows)


def _kernels(outcomes: Sequence[Outcome]) -> list[str]:
    rows = [["kernel", "hot loop", "registers", "shared", "spills"]]
    by_kernel: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_kernel.setdefault(one.claim.variant, []).append(one)
    for name, several in by_kernel.items():
        found = [one.evidence for one in several if one.evidence is not None]
        if len(found) < len(several):
            rows.append([name, "**does not compile**", "", "", ""])
            continue
        within, elsewhere = (
            max(one.loop_spills for one in found), max(one.spills - one.loop_spills for one in found)
        )  # fmt: skip
        spills = f"{within} + {elsewhere}" if within or elsewhere else "0"
        shown = _joined(", ".join(one.matrix()) or "-" for one in found)
        rows.append([name, shown, _joined(str(one.registers) for one in found),
                     _joined(str(one.shared) for one in found), spills])  # fmt: skip
    return _table(rows)


def _joined(values: Iterable[str]) -> str:
    """What the configurations of one kernel show, each once."""
    return " / ".join(dict.fromkeys(values))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:], ""]
