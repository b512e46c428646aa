"""Inline assembly inside Triton's interpreter: every warp of a program runs it in the emulator of ptx.py.

That needs to know which elements a lane holds: four neighbours, the next lane the next four, and so on, which is what
the compiler chooses for the kernels of ``linear_lanes`` (test_lanes_assembly.py looks).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ptx
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from isobit.kernels.gpu import launch

_PER_WARP = 4 * ptx.LANES


def emulate() -> None:
    """From now on kernels run their assembly (but nothing that overlaps launches or rounds) in this process."""
    tl.inline_asm_elementwise = _elementwise
    launch._interpretable = lambda config: {**config.constexprs, "OVERLAP": False, "CONVERTS": False, "HALVES": False}


def _elementwise(text: Any, constraints: Any, args: list[Any], dtype: Any, is_pure: Any, pack: Any) -> Any:
    """As Triton's, for tensors of 32-bit elements ``[rows, words]`` and four elements a call."""
    assert int(getattr(pack, "value", pack)) == 4
    text, dtype = str(getattr(text, "value", text)), getattr(dtype, "value", dtype)
    count = len(dtype) if isinstance(dtype, (tuple, list, tl.tuple)) else 1
    operands = [np.ascontiguousarray(arg.handle.data).view(np.uint32) for arg in args]
    results = [np.empty(operands[0].shape, np.float32) for _ in range(count)]
    for row in range(operands[0].shape[0]):
        for begin in range(0, operands[0].shape[1], _PER_WARP):
            some = slice(begin, begin + _PER_WARP)
            lanes = [operand[row, some].reshape(ptx.LANES, 4) for operand in operands]
            registers = [np.zeros(ptx.LANES, np.uint32)] * (4 * count) + [
                lane[:, i] for lane in lanes for i in range(4)
            ]
            after = ptx.run(text, registers)
            for place, result in enumerate(results):
                sums = [after[f"${4 * place + i}"].view(np.float32) for i in range(4)]
                result[row, some] = np.stack(sums, axis=1).reshape(-1)
    made = [tl.tensor(TensorHandle(r, tl.float32), tl.block_type(tl.float32, list(r.shape))) for r in results]
    return made[0] if count == 1 else tuple(made)
