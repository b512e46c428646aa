#!/usr/bin/env bash
# compressed-tensors 0.20.0, PyTorch 2.13.0
# Scales and zero points of a weight (a Parameter) are asked for, with calculate_qparams, in a process that has asked before, for others.
#
# Guess: what was asked before, and in which mode of PyTorch, makes no difference.
# Seen:  the least and largest code of a format are kept between calls. Where the first call stood in torch.inference_mode(),
#        zero points of a Parameter are refused: "RuntimeError: Inference tensors cannot be saved for backward". After a first
#        call in torch.no_grad(), or with symmetric formats, they are given.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import sys

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams

first = {"inference_mode": torch.inference_mode, "no_grad": torch.no_grad}[sys.argv[1]]
args = QuantizationArgs(num_bits=4, type="int", symmetric=sys.argv[2] == "symmetric", strategy="channel")
weight = torch.nn.Parameter(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))


def ask() -> str:
    try:
        calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), args)
    except RuntimeError as error:
        return f"RuntimeError: {error}".split(". ")[0]
    return "scales and zero points"


with first():
    ask()
print(ask())
END
status=0
for format in asymmetric symmetric; do
    for mode in no_grad inference_mode; do
        found=$(quiet new/bin/python run.py "$mode" "$format")
        echo "$format, first call in $mode: $found"
        expected="scales and zero points"
        [ "$format $mode" = "asymmetric inference_mode" ] && expected="RuntimeError: Inference tensors cannot be saved for backward"
        [ "$found" = "$expected" ] || status=1
    done
done
exit $status
