#!/usr/bin/env bash
# Triton 3.9.0, compiled for sm_100 and sm_120 (no GPU is needed)
# tl.dot_scaled on tiles of M x N: e2m1 by e2m1 (MXFP4, NVFP4), e4m3 by e4m3 (MXFP8) and e4m3 by e2m1 (MXFP8 by MXFP4), four warps.
#
# Guess: on a Blackwell, which has instructions for all of these, every tile that compiles is multiplied by them: tcgen05.mma with
#        kind::mxf4 or mxf8f6f4 on sm_100, mma.sync with block_scale on sm_120.
# Seen:  on sm_100 it needs 128 rows of the left matrix. With 64 rows, however many columns, both are widened to bfloat16 and multiplied
#        by tcgen05.mma with kind::f16; with 16 rows by the mma.sync of Ampere. On sm_120 one format by another is widened in every
#        tile, though its mma.sync has e4m3 by e2m1, too. No warning: the results are right, the units are not those that were meant.
. "$(dirname "$0")"/environment.sh
environment new triton==3.9.0
export TRITON_CACHE_DIR=$folder/cache TRITON_DEFAULT_FP_FUSION=1
cat > run.py << 'END'
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile


@triton.jit
def product(
    a, a_scale, b, b_scale, y, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    GROUP: tl.constexpr, A_PACK: tl.constexpr, B_PACK: tl.constexpr,
):  # fmt: skip
    """y [M, N] of rows [M, K] and [N, K]; A_PACK and B_PACK numbers a byte."""
    m, n = tl.arange(0, M)[:, None], tl.arange(0, N)[:, None]
    one = tl.load(a + m * (K // A_PACK) + tl.arange(0, K // A_PACK)[None, :])
    other = tl.load(b + n * (K // B_PACK) + tl.arange(0, K // B_PACK)[None, :])
    group = tl.arange(0, K // GROUP)[None, :]
    one_scale, other_scale = tl.load(a_scale + m * (K // GROUP) + group), tl.load(b_scale + n * (K // GROUP) + group)
    found = tl.dot_scaled(one, one_scale, A, other.T, other_scale, B)
    tl.store(y + m * N + tl.arange(0, N)[None, :], found)


NAMES = {"MXFP4": ("e2m1", "e2m1", 32), "NVFP4": ("e2m1", "e2m1", 16), "MXFP8": ("e4m3", "e4m3", 32)}
NAMES["MXFP8 by MXFP4"] = ("e4m3", "e2m1", 32)


def instructions(arch: int, name: str, m: int, n: int) -> str:
    """The instructions for products of matrices in the kernel's PTX."""
    a, b, group = NAMES[name]
    constants = {"M": m, "N": n, "K": 128, "A": a, "B": b, "GROUP": group}
    constants |= {"A_PACK": 1 + (a == "e2m1"), "B_PACK": 1 + (b == "e2m1")}
    scale = "*u8" if group == 32 else "*fp8e4nv"
    types = {"a": "*u8", "a_scale": scale, "b": "*u8", "b_scale": scale, "y": "*fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(5)}
    source = ASTSource(fn=product, signature=types, constexprs=constants, attrs=aligned)
    ptx = compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4}).asm["ptx"]
    return " ".join(sorted(set(re.findall(r"(?:tcgen05\.mma|mma\.sync)\.[\w.:]+", ptx))))


same = True
for arch in (100, 120):
    for name in NAMES:
        for m, n in ((128, 64), (64, 64), (64, 128), (16, 64)):
            said = instructions(arch, name, m, n)
            print(f"sm_{arch}, {name}, {m} x {n}: {said}")
            native = m == 128 if arch == 100 else name != "MXFP8 by MXFP4"
            same = same and ("block_scale" in said) == native and ("bf16" in said or "kind::f16" in said) != native
print("as seen" if same else "not as seen")
sys.exit(not same)
END
quiet new/bin/python run.py
