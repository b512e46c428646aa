#!/usr/bin/env bash
# NumPy 2.4.6, ml_dtypes 0.6.0
# An array of 1000 ones in bfloat16 (as a checkpoint is read into NumPy): its mean, sum, var and product with itself.
#
# Guess: the mean is 1.0: NumPy sums float16 in float32 for a mean, and PyTorch does so for bfloat16.
# Seen:  0.255859. The sum is kept in bfloat16 and stands still at 256, where 256 + 1 rounds to 256. np.var and np.average follow,
#        np.sum says 256 too, and with float8_e4m3fn the mean is 0.015625. A product, a @ a, is 1000: that one accumulates in float32. No warning.
. "$(dirname "$0")"/environment.sh
environment new numpy==2.4.6 ml_dtypes==0.6.0
cat > run.py << 'END'
import ml_dtypes
import numpy as np

ones = np.ones(1000, ml_dtypes.bfloat16)
found = {
    "dtype": ones.dtype.name,
    "mean of float16": float(ones.astype(np.float16).mean()),
    "mean": float(ones.mean()),
    "sum": float(ones.sum()),
    "var": round(float(ones.var()), 3),
    "average": float(np.average(ones)),
    "product": float(ones @ ones),
    "mean in float32": float(ones.mean(dtype=np.float32)),
    "mean of e4m3fn": float(np.ones(1000, ml_dtypes.float8_e4m3fn).mean()),
}
for name, value in found.items():
    print(f"{name}: {value}")
SEEN = ["bfloat16", 1.0, 0.255859375, 256.0, None, 0.255859375, 1000.0, 1.0, 0.015625]
same = all(one == other or other is None for one, other in zip(found.values(), SEEN, strict=True))
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python run.py
