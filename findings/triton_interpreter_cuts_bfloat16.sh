#!/usr/bin/env bash
# Triton 3.9.0, its interpreter (TRITON_INTERPRET=1), and the same kernel compiled for sm_90 (no GPU is needed)
# A kernel turns float32 into bfloat16: by .to(tl.bfloat16), by the same with fp_downcast_rounding="rtne", and by storing it to a pointer
# to bfloat16.
#
# Guess: numbers are rounded to the nearest, ties to even, as in compiled code and in PyTorch.
# Seen:  the low 16 bits are cut off in all three: half of all numbers are one step too near to zero. Compiled code rounds
#        ("cvt.rn.bf16"), and so does the interpreter with float16. Rounding to float8 goes up by one step too, but what carries into the
#        exponent is lost: 1.95 as float8e4nv is 1.0.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 numpy
new/bin/python -m pip install --quiet --disable-pip-version-check triton==3.9.0 # whatever version PyTorch asks for
export TRITON_CACHE_DIR=$folder/cache TRITON_DEFAULT_FP_FUSION=1
cat > kernels.py << 'END'
import triton
import triton.language as tl


@triton.jit
def cast(x, y, SIZE: tl.constexpr, DTYPE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place).to(DTYPE))


@triton.jit
def cast_to_nearest(x, y, SIZE: tl.constexpr, DTYPE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place).to(DTYPE, fp_downcast_rounding="rtne"))


@triton.jit
def store(x, y, SIZE: tl.constexpr, DTYPE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place))
END
cat > compiled.py << 'END'
import re

import kernels
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

same = True
for kernel in (kernels.cast, kernels.cast_to_nearest, kernels.store):
    types = {"x": "*fp32", "y": "*bf16", "SIZE": "constexpr", "DTYPE": "constexpr"}
    source = ASTSource(fn=kernel, signature=types, constexprs={"SIZE": 128, "DTYPE": tl.bfloat16})
    ptx = compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    said = sorted(set(re.findall(r"cvt\.[\w.]*bf16[\w.]*", ptx)))
    print("compiled,", kernel.__name__ + ":", *said)
    same = same and bool(said) and all(one.startswith("cvt.rn.") for one in said)
raise SystemExit(not same)
END
cat > interpreted.py << 'END'
import kernels
import torch
import triton.language as tl

SIZE = 4096
x = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
cut = (x.view(torch.int32) & ~0xFFFF).view(torch.float32)


def made(kernel, dtype: torch.dtype, name: tl.dtype, numbers: torch.Tensor = x) -> torch.Tensor:
    y = torch.empty(len(numbers), dtype=dtype)
    kernel[(1,)](numbers, y, len(numbers), name)
    return y.float()


same = True
for kernel in (kernels.cast, kernels.cast_to_nearest, kernels.store):
    y = made(kernel, torch.bfloat16, tl.bfloat16)
    nearest = float((y == x.bfloat16().float()).float().mean())
    print(f"interpreter, {kernel.__name__}: {nearest:.0%} are the nearest, {float((y == cut).float().mean()):.0%} are cut")
    same = same and bool((y == cut).all()) and 0.4 < nearest < 0.6
half = bool((made(kernels.cast, torch.float16, tl.float16) == x.half().float()).all())
print("interpreter, float16: all the nearest" if half else "interpreter, float16: not the nearest")
eight = made(kernels.cast, torch.float8_e4m3fn, tl.float8e4nv, torch.tensor([1.95, 0.49, 1.8, 1.1])).tolist()
print("interpreter, float8e4nv of 1.95, 0.49, 1.8 and 1.1:", *eight)
same = same and half and eight == [1.0, 0.25, 1.75, 1.125]
print("as seen" if same else "not as seen")
raise SystemExit(not same)
END
quiet new/bin/python compiled.py
TRITON_INTERPRET=1 quiet new/bin/python interpreted.py
