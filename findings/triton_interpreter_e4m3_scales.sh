#!/usr/bin/env bash
# Triton 3.9.0, its interpreter (TRITON_INTERPRET=1), and the same kernel compiled for sm_90 (no GPU is needed)
# tl.dot_scaled of e2m1 by e2m1 with scales of type float8e4nv for each 16 numbers, as NVFP4 has them.
#
# Guess: the interpreter computes what compiled code does: the numbers times their e4m3 scales.
# Seen:  compiled code converts the scales to bfloat16. The interpreter takes their bits for those of e8m0: 1.0, whose bits are 0x38, is
#        2^(56 - 127), 2.0 is 2^(64 - 127) and 1.5 is 2^(60 - 127). No error, and no number above 1e-30 where the largest are in the
#        hundreds. e8m0 scales for each 32 numbers are right.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 numpy
new/bin/python -m pip install --quiet --disable-pip-version-check triton==3.9.0 # whatever version PyTorch asks for
export TRITON_CACHE_DIR=$folder/cache TRITON_DEFAULT_FP_FUSION=1
cat > product.py << 'END'
import triton
import triton.language as tl


@triton.jit
def product(a, a_scale, b, b_scale, y, SIZE: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr):
    """y [SIZE, SIZE] of two matrices of rows, [SIZE, K] each, two numbers a byte."""
    row = tl.arange(0, SIZE)[:, None]
    byte = row * (K // 2) + tl.arange(0, K // 2)[None, :]
    group = row * (K // GROUP) + tl.arange(0, K // GROUP)[None, :]
    one, other = tl.load(a + byte), tl.load(b + byte)
    found = tl.dot_scaled(one, tl.load(a_scale + group), "e2m1", other.T, tl.load(b_scale + group), "e2m1")
    tl.store(y + row * SIZE + tl.arange(0, SIZE)[None, :], found)
END
cat > compiled.py << 'END'
import re

from product import product
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

constants = {"SIZE": 64, "K": 128, "GROUP": 16}
types = {"a": "*u8", "a_scale": "*fp8e4nv", "b": "*u8", "b_scale": "*fp8e4nv", "y": "*fp32"}
source = ASTSource(fn=product, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ttgir"].splitlines()
said = [found for line in made for found in re.findall(r"tt\.fp_to_fp %\w+ : tensor<(\w+),.* -> tensor<(\w+),", line)]
for one, other in said:
    print("compiled: a conversion of", one, "to", other)
converted = [pair for pair in said if pair[0].endswith("xf8E4M3FN") and pair[1].endswith("xbf16")]
raise SystemExit(len(said) != 2 or len(converted) != 2)
END
cat > interpreted.py << 'END'
import torch
from product import product

SIZE, K = 32, 64
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E2M1 = torch.cat((E2M1, -E2M1))
random = torch.Generator().manual_seed(0)
codes = torch.randint(0, 16, (2, SIZE, K), dtype=torch.uint8, generator=random)
packed = codes[..., ::2] | codes[..., 1::2] << 4


def found(scale: torch.Tensor, as_e8m0: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """What dot_scaled gives for scales [2, SIZE, K / group], e4m3 or the bytes of e8m0; and the product in float64."""
    y, group = torch.empty(SIZE, SIZE), K // scale.shape[-1]
    product[(1,)](packed[0], scale[0], packed[1], scale[1], y, SIZE, K, group)
    if as_e8m0 or scale.dtype == torch.uint8:
        value = 2.0 ** (scale.view(torch.uint8).double() - 127)
    else:
        value = scale.double()
    one, other = E2M1[codes.long()].double() * value.repeat_interleave(group, -1)
    return y, one @ other.T


e8m0 = torch.randint(124, 130, (2, SIZE, K // 32), dtype=torch.uint8, generator=random)
cases = {"e8m0": e8m0}
for name, number in (("e4m3, all 1.0", 1.0), ("e4m3, all 2.0", 2.0), ("e4m3, all 1.5", 1.5)):
    cases[name] = torch.full((2, SIZE, K // 16), number).to(torch.float8_e4m3fn)
cases["e4m3, 0.5 to 1.5"] = (torch.rand(2, SIZE, K // 16, generator=random) + 0.5).to(torch.float8_e4m3fn)
same = True
for name, scale in cases.items():
    y, right = found(scale)
    print(f"interpreter, {name}: the largest is {y.abs().max():.3g}, should be {right.abs().max():.5g}", end="")
    if name == "e8m0":
        print()
        same = same and torch.allclose(y.double(), right, rtol=1e-6, atol=1e-6 * right.abs().max().item())
        continue
    y, guess = found(scale, as_e8m0=True)
    print(f", by bits of e8m0 {guess.abs().max():.3g}")
    same = same and y.abs().max() < 1e-30 and torch.allclose(y.double(), guess, rtol=1e-3, atol=1e-3 * guess.abs().max().item())
print("as seen" if same else "not as seen")
raise SystemExit(not same)
END
quiet new/bin/python compiled.py
TRITON_INTERPRET=1 quiet new/bin/python interpreted.py
