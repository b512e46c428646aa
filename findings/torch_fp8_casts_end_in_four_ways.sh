#!/usr/bin/env bash
# PyTorch 2.13.0 on a CPU, ml_dtypes 0.6.0
# 1e9, infinity, -3.0 and NaN are cast from float32 to five 8-bit floats by Tensor.to and by ndarray.astype.
#
# Guess: what is too large, an infinity at any rate, ends in one way in all formats: as the largest number, or as what stands for no number. e8m0
#        has no sign and a NaN, which is what -3.0 becomes. Both libraries agree.
# Seen:  PyTorch's e4m3fn alone saturates: 1e9 and infinity are 448 there, so that a tensor that has overflowed looks sound. Its e4m3fnuz
#        and e5m2fnuz make both NaN, e5m2 infinity. Its e8m0 drops the sign: -3.0 is 4.0. ml_dtypes never saturates, and -3.0 is NaN in its e8m0. Finite
#        numbers within the range are the same in both.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0
cat > run.py << 'END'
import math

import ml_dtypes
import numpy as np
import torch

nan, inf = math.nan, math.inf
VALUES = [1e9, inf, -3.0, nan]
SEEN = {  # format: PyTorch, ml_dtypes
    "float8_e4m3fn": ([448.0, 448.0, -3.0, nan], [nan, nan, -3.0, nan]),
    "float8_e4m3fnuz": ([nan, nan, -3.0, nan], [nan, nan, -3.0, nan]),
    "float8_e5m2": ([inf, inf, -3.0, nan], [inf, inf, -3.0, nan]),
    "float8_e5m2fnuz": ([nan, nan, -3.0, nan], [nan, nan, -3.0, nan]),
    "float8_e8m0fnu": ([2.0**30, nan, 4.0, nan], [2.0**30, nan, nan, nan]),
}
single = np.array(VALUES, np.float32)
same = True
for name, expected in SEEN.items():
    by_torch = torch.from_numpy(single).to(getattr(torch, name)).float().tolist()
    by_numpy = single.astype(getattr(ml_dtypes, name)).astype(np.float32).tolist()
    print(f"{name}: {VALUES} is {by_torch} in PyTorch, {by_numpy} in ml_dtypes")
    same = same and np.array_equal((by_torch, by_numpy), expected, equal_nan=True)
    # Within the range nothing differs.
    inside = np.exp2(np.linspace(-5, 7, 10001, dtype=np.float32))
    codes = torch.from_numpy(inside).to(getattr(torch, name)).view(torch.uint8).numpy()
    same = same and np.array_equal(codes, inside.astype(getattr(ml_dtypes, name)).view(np.uint8))
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python run.py
