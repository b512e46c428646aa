#!/usr/bin/env bash
# torchao 0.18.0, PyTorch 2.13.0 on a CPU
# A linear layer with a row of zeros (a pruned output, or a vocabulary padded with zeros) goes through quantize_ with weight-only configurations.
#
# Guess: the row stays zero whatever the format: each of them has a zero, and the smallest scale is kept above it.
# Seen:  Int8WeightOnlyConfig and IntxWeightOnlyConfig do that. Float8WeightOnlyConfig gives the row a scale of 0.0 and codes of NaN (zero divided by
#        zero), without an error: the output is NaN, and with it, in a model, everything behind it.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 torchao==0.18.0 numpy
cat > run.py << 'END'
import torch
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_

found = {}
for config in (Int8WeightOnlyConfig(), IntxWeightOnlyConfig(), Float8WeightOnlyConfig()):
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        linear = torch.nn.Linear(64, 8, bias=False, dtype=dtype)
        linear.weight.data[3] = 0
        quantize_(linear, config)
        with torch.no_grad():
            y = linear(torch.ones(1, 64, dtype=dtype))[0]
        name = type(config).__name__
        scale = linear.weight.scale.flatten()[3].item() if name.startswith("Float8") else None
        found[name, dtype] = y[3].item(), int(y.isnan().sum()), scale
        print(f"{name}, {dtype}: the output of the row of zeros is {y[3].item()}", "" if scale is None else f"under a scale of {scale}")
same = all(
    (value != value and count == 1 and scale == 0.0) if name.startswith("Float8") else (value == 0 and count == 0)
    for (name, _), (value, count, scale) in found.items()
)
print("as found" if same else "CHANGED")
raise SystemExit(not same)
END
quiet new/bin/python run.py
