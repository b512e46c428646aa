"""Overlapping a kernel with the one before it (programmatic dependent launch, NVIDIA from sm_90).

A dependent kernel may start while its predecessor still runs. It must not read what the predecessor writes before it
has waited, but weights are constants: their first bytes are fetched into the level-2 cache during the wait.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_PREFETCH = tl.constexpr("prefetch.global.L2 [$1]; mov.u32 $0, 0;")


@triton.jit
def prefetch(rows, begin, end, LINES: tl.constexpr):
    """Asks for the first ``LINES`` cache lines of each row from ``begin`` on, without waiting for them.

    Args:
        rows: pointers to the rows, ``[N, 1]``.
        begin, end: where this program begins to read its rows, and ends.
    """
    step: tl.constexpr = 1024 // rows.dtype.element_ty.primitive_bitwidth  # elements of a line of 128 bytes
    place = tl.minimum(begin + tl.arange(0, LINES) * step, end - 1)
    tl.inline_asm_elementwise(_PREFETCH, "=r,l", [rows + place[None, :]], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def let_next_start():
    """Lets the next kernel start as soon as all programs of this one are running."""
    gdc_launch_dependents()


@triton.jit
def wait_for_last():
    """Waits for the kernel before to have finished and its results to be visible."""
    gdc_wait()


@triton.jit
def wait(LATE: tl.constexpr = False):
    """Lets the next kernel start and waits for the one before; LATE: the other way round.

    Late where the next is a linear of few large programs: those that start while the kernel before this one still fills
    the machine find room on some multiprocessors only, share them to the end, and leave the others idle.
    """
    if LATE:
        wait_for_last()
        let_next_start()
    else:
        let_next_start()
        wait_for_last()
