#!/usr/bin/env bash
# PyTorch 2.13.0 on a CPU, NumPy 2.4.6, ml_dtypes 0.6.0
# Float64 numbers that lie a hair (1e-12 of them) above the middle of two neighbours in float16, bfloat16 and e4m3fn are cast to these.
#
# Guess: they go up, to the nearer neighbour, in all of them: IEEE 754 rounds once.
# Seen:  NumPy's float16 alone does. PyTorch's three, and bfloat16 and e4m3fn of ml_dtypes, round to float32 first, where the hair is lost, and
#        then break a tie that was none: towards the even neighbour, below. A reference in float64 that ends in such a cast is off by a step there.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0
cat > run.py << 'END'
import ml_dtypes
import numpy as np
import torch

found = {}
for name, bits in (("float16", 10), ("bfloat16", 7), ("float8_e4m3fn", 3)):
    step = 2.0**-bits
    value = np.array([1 + step / 2 + 1e-12])  # nearer to 1 + step than to 1
    by_torch = torch.from_numpy(value).to(getattr(torch, name)).double().item()
    by_numpy = float(value.astype(np.float16 if name == "float16" else getattr(ml_dtypes, name))[0])
    found[name] = by_torch == 1 + step, by_numpy == 1 + step
    print(f"{name}: {value[0]!r} is {by_torch} in PyTorch, {by_numpy} in NumPy or ml_dtypes; right is {1 + step}")
    assert {by_torch, by_numpy} <= {1.0, 1 + step}
same = found == {"float16": (False, True), "bfloat16": (False, False), "float8_e4m3fn": (False, False)}
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python run.py
