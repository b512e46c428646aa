#!/usr/bin/env bash
# compressed-tensors 0.20.0
# A linear whose input is rounded to int8 with a scale per token (the activations of W8A8), and whose weight is the identity.
#
# Guess: scale = largest magnitude / 127, as in vLLM's int8 kernels and in most papers: whole numbers up to 127 stay what they are.
# Seen:  scale = largest magnitude / 127.5. [127, 1, 2, -127] becomes [126.50, 0.996, 1.992, -127.498]: no input but 0 is exact,
#        and the largest positive value loses half a step, while the largest negative one gets a code of its own, -128.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
cat > run.py << 'END'
import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from tiny import INT8_TOKEN, end

model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
model[0].weight.data = torch.eye(4)
scheme = QuantizationScheme(targets=["Linear"], input_activations=QuantizationArgs(**INT8_TOKEN))
apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}))
given = torch.tensor([[127.0, 1.0, 2.0, -127.0]])
seen = model(given)[0].detach()
step = 127 / 127.5
print("given", given[0].tolist(), "seen", [round(value, 4) for value in seen.tolist()], "step", round(step, 5))
end(torch.allclose(seen, torch.tensor([127.0, 1.0, 2.0, -128.0]) * step))
END
quiet new/bin/python run.py
