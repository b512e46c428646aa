#!/usr/bin/env bash
# Triton 3.6.0, compiled for sm_90 (no GPU is needed)
# A kernel stores -x, and one that stores -0.0 - x.
#
# Guess: both are IEEE's negation: of +0.0 they give -0.0, as in Python, PyTorch and CUDA C++.
# Seen:  both are +0.0 - x: "arith.subf" from the constant 0.0, in PTX "sub.f32". So +0.0 stays +0.0: the minus of a zero, the
#        literal's too, is lost.
. "$(dirname "$0")"/environment.sh
environment new triton==3.6.0
cat > run.py << 'END'
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile


@triton.jit
def negated(x, y):
    tl.store(y, -tl.load(x))


@triton.jit
def from_minus_zero(x, y):
    tl.store(y, -0.0 - tl.load(x))


same = True
for kernel in (negated, from_minus_zero):
    source = ASTSource(fn=kernel, signature={"x": "*fp32", "y": "*fp32"}, constexprs={})
    made = compile(source, target=GPUTarget("cuda", 90, 32))
    said = [line.split(" loc(")[0].strip() for line in made.asm["ttir"].splitlines() if "arith." in line]
    print(kernel.__name__, *said, sep="\n    ")
    same = same and said[0].endswith("arith.constant 0.000000e+00 : f32") and "arith.subf %cst, " in said[1]
    same = same and "sub.f32" in made.asm["ptx"] and "neg.f32" not in made.asm["ptx"]
print("as seen" if same else "not as seen")
sys.exit(not same)
END
quiet new/bin/python run.py
