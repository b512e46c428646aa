"""Reading memory and nothing else: what the other kernels' speed is held against."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_all(source, sink, SIZE: tl.constexpr, STEPS: tl.constexpr):
    """A word of each program's exclusive or, so that nothing of what is read can be left out.

    Args:
        source: int32, ``SIZE * STEPS`` for each program, one behind the other.
        sink: int32 ``[programs]``.
    """
    place = tl.program_id(0).to(tl.int64) * SIZE * STEPS + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.int32)
    for step in range(STEPS):
        total ^= tl.load(source + place + step * SIZE)
    tl.store(sink + tl.program_id(0), tl.xor_sum(total, axis=0))
